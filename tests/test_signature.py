"""Signatures: every call that the original takes gives the captured tensors, every other one a clear line."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from sortify.errors import CheckpointError, InputError
from sortify.graph.signature import Constant, LeafSpec, Signature

X, Y, IDS = torch.ones(2, 3), torch.zeros(2), torch.ones(2, 5, dtype=torch.long)


def forward(
    x: Tensor, y: Tensor | None = None, scale: float = 2.0, *, flag: bool | None = None, mode: Any = len
) -> None:
    """The forward of most tests."""


def loose(*states: Tensor, **options: Any) -> None:
    """A forward that takes anything."""


def signature(*args: Any, of: Any = forward, **kwargs: Any) -> Signature:
    made = Signature.of(of, args, kwargs)
    again = Signature.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))
    assert again == made
    return again


def bind(to: Signature, *args: Any, **kwargs: Any) -> list[Tensor]:
    return to.bind(args, kwargs)


def same(got: list[Tensor], *expected: Tensor) -> bool:
    return len(got) == len(expected) and all(a is b for a, b in zip(got, expected, strict=True))


def test_the_comparison_sees_a_difference() -> None:
    assert same([X], X)
    assert not same([X], Y)
    assert not same([X], X, X)


def test_by_position_by_name_and_in_any_order() -> None:
    given = signature(X, Y)
    assert given.tensor_names == ("x", "y")
    assert same(bind(given, X, Y), X, Y)
    assert same(bind(given, X, y=Y), X, Y)
    assert same(bind(given, y=Y, x=X), X, Y)
    assert same(bind(signature(y=Y, x=X), X, Y), Y, X)


def test_defaults_may_be_given_or_left_out() -> None:
    given = signature(X)
    for kwargs in ({}, {"scale": 2.0}, {"scale": 2}, {"y": None}, {"flag": None}):
        assert same(bind(given, X, **kwargs), X)


def test_an_undecided_default_stays_what_was_captured() -> None:
    given = signature(X, flag=False)
    assert same(bind(given, X), X)
    assert same(bind(given, X, flag=False), X)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X,), {}, "missing input 'y': the model was converted with it"),
        ((X, None), {}, r"input 'y': expected float32 \[any\], got None"),
        ((X, Y, 3.0), {}, "argument 'scale' was 2.5 when the model was converted, got 3.0"),
        ((X, Y), {}, "argument 'scale' is left out, which means 2.0, but the model was converted with 2.5"),
        ((X, Y, Y), {}, r"input 'scale' was 2.5 when the model was converted, got a tensor: convert again"),
        ((X, Y, 2.5, 4), {}, r"too many positional arguments: forward takes at most 3 \(x, y, scale\), got 4"),
        ((X, Y, 2.5), {"x": X}, "argument 'x' is given twice"),
        ((X, Y, 2.5), {"z": X}, "unknown argument 'z': forward takes x, y, scale, flag, mode"),
        ((X, Y, 2.5), {"flag": True}, "argument 'flag' was left at its default None .*, got True .*: convert again"),
        ((X, Y, 2.5), {"flag": X}, "input 'flag' was not given when the model was converted: convert again"),
        ((X, Y, 2.5), {"mode": max}, "argument 'mode' was left at its default .*len.*got .*max"),
        ((3.0, Y, 2.5), {}, r"input 'x': expected float32 \[any, any\], got 3.0 \(float\)"),
        ((Y, Y, 2.5), {}, r"input 'x': expected 2 dimensions float32 \[any, any\], got float32 \[2\]"),
        ((IDS, Y, 2.5), {}, r"input 'x': expected float32 \[any, any\], got int64 \[2, 5\]; convert its dtype"),
        (([X, X], Y, 2.5), {}, r"input 'x': expected float32 .*, got \[tensor.* \(list\)"),
        ((), {"y": Y, "scale": 2.5}, "missing input 'x'"),
    ],
)
def test_calls_that_do_not_fit(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        bind(signature(X, Y, 2.5), *args, **kwargs)
    assert "\n" not in str(caught.value)


def test_the_captured_opaque_default_may_be_given() -> None:
    assert same(bind(signature(X), X, mode=len), X)


def test_a_required_constant_is_required() -> None:
    given = Signature.of(lambda x, many: None, (X, 3), {})
    assert same(bind(given, X, 3), X)
    with pytest.raises(InputError, match="missing argument 'many'"):
        bind(given, X)


def test_anything_goes_where_the_forward_takes_anything() -> None:
    given = signature(X, Y, of=loose, mask=Y, use_cache=False)
    assert given.tensor_names == ("states[0]", "states[1]", "mask")
    assert same(bind(given, X, Y, mask=Y), X, Y, Y)
    assert same(bind(given, X, Y, use_cache=False, mask=Y, other=None), X, Y, Y)
    with pytest.raises(InputError, match=r"argument 'states': expected 2 items, got tuple of 1"):
        bind(given, X, mask=Y)
    with pytest.raises(InputError, match=r"argument 'use_cache' was False .* got True"):
        bind(given, X, Y, mask=Y, use_cache=True)
    with pytest.raises(InputError, match=r"unknown argument 'depth' \(3 \(int\)\): convert again"):
        bind(given, X, Y, mask=Y, depth=3)
    with pytest.raises(InputError, match="input 'labels' was not given"):
        bind(given, X, Y, mask=Y, labels=IDS)


def test_nested_inputs_match_by_key_and_place() -> None:
    given = signature({"ids": IDS, "more": [X, None, 7]})
    assert given.tensor_names == ("x['ids']", "x['more'][0]")
    assert same(bind(given, {"more": (X, None, 7), "ids": IDS}), IDS, X)
    for value, message in [
        ({"ids": IDS}, r"argument 'x': expected the keys \['ids', 'more'\], got \['ids'\]"),
        ({"ids": IDS, "more": [X, None]}, r"argument 'x\['more'\]': expected 3 items, got list of 2"),
        ({"ids": IDS, "more": [X, Y, 7]}, r"argument 'x\['more'\]\[1\]' was None .*, got float32 \[2\]"),
        ({"ids": IDS, "more": [X, None, 8]}, r"argument 'x\['more'\]\[2\]' was 7 .*, got 8"),
        ({"ids": IDS, "more": X}, r"argument 'x\['more'\]': expected a list, got float32"),
        (X, r"argument 'x': expected a dict, got float32 \[2, 3\]"),
        (None, r"argument 'x': expected a dict, got None"),
    ]:
        with pytest.raises(InputError, match=message):
            bind(given, value)


def test_fixed_sizes_are_checked() -> None:
    given = signature(X, Y).with_specs([LeafSpec((None, 3), "float32"), LeafSpec((None,), "float32")])
    assert given.specs[0].shape == (None, 3)
    assert bind(given, torch.ones(7, 3), Y)[0].shape == (7, 3)
    with pytest.raises(
        InputError, match=r"input 'x': dimension 1 is fixed at 3, expected .*\[any, 3\], got .*\[2, 4\]"
    ):
        bind(given, torch.ones(2, 4), Y)
    with pytest.raises(InputError, match="expected 2 specs"):
        given.with_specs([])


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        ("float32", torch.bfloat16, torch.long),
        ("int64", torch.int32, torch.float32),
        ("int64", torch.uint8, torch.bool),
        ("bool", torch.bool, torch.long),
        ("complex64", torch.complex128, torch.float32),
    ],
)
def test_dtypes_match_by_kind(spec: str, good: torch.dtype, bad: torch.dtype) -> None:
    LeafSpec((None,), spec).check("x", torch.ones(1).to(good))
    with pytest.raises(InputError, match=f"expected {spec}"):
        LeafSpec((None,), spec).check("x", torch.ones(1).to(bad))


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1, 1.0, True), (1, True, False), (float("nan"), float("nan"), True), ("a", "a", True), (None, 0, False),
        (torch.float32, torch.float32, True), (torch.float32, torch.float16, False),
        ("torch.float32", torch.float32, False),
    ],
)  # fmt: skip
def test_constants_equal_by_value(a: Any, b: Any, equal: bool) -> None:
    assert Constant.of(a).equals(b) is equal


def test_an_example_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="unknown argument 'nothing'"):
        signature(X, nothing=X)
    with pytest.raises(InputError, match="too many positional"):
        signature(X, Y, 2.0, 3, 4)


def test_a_module_gives_the_signature_of_its_forward() -> None:
    given = signature(X, of=torch.nn.Linear(3, 4))
    assert [p.name for p in given.parameters] == ["input"]
    assert same(bind(given, input=X), X)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("parameters",), 3, "should be list"),
        (("arguments", 0, "name"), None, "'name' should be str"),
        (("arguments", 0, "structure"), None, "'kind' is missing"),
        (("arguments", 0, "leaves"), [], "has 1 leaves, 0 described"),
        (("arguments", 0, "leaves", 0, "shape"), [1.5], "whole numbers"),
        (("arguments", 0, "leaves", 0, "shape"), [-1], "whole numbers"),
        (("arguments", 0, "leaves", 0, "dtype"), "load", "unknown dtype"),
        (("arguments", 0, "leaves", 0), {}, "a constant was expected"),
        (("arguments", 1, "name"), "x", "stands twice"),
        (("parameters", 0, "kind"), "ANY", "unknown parameter kind"),
        (("parameters", 2, "default", "value"), [1], "plain value"),
        (("parameters", 2, "default"), 3, "a constant was expected"),
    ],
)
def test_damaged_signatures_are_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    data = signature(X, Y).to_json()
    holder: Any = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(CheckpointError, match=message):
        Signature.from_json(data)
