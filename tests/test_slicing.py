"""The slice node: which part it takes, when it is a view, where gradients and writes go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sortify.graph.dims import axes_of, parse_shape
from sortify.rewriting.slicing import axis_names, take, take_copy


def _grid(*shape: int) -> Tensor:
    return torch.arange(np.prod(shape, dtype=int)).reshape(shape).double()


# What is cut -> shape in the language of dims, active sizes in order of appearance, and the same by plain indexing.
CASES: dict[str, tuple[tuple[int, ...], str, list[int], Callable[[Tensor], Tensor]]] = {
    "a prefix": ((6,), "a:6", [4], lambda t: t[:4]),
    "two prefixes": ((6, 5), "a:6, b:5", [4, 2], lambda t: t[:4, :2]),
    "one of two": ((6, 5), "a:6, b:5", [6, 2], lambda t: t[:, :2]),
    "the same axis twice": ((4, 4), "a:4, a:4", [3], lambda t: t[:3, :3]),
    "outer factor": ((12, 2), "(heads:4 * 3), 2", [2], lambda t: t[:6]),
    "inner factor": ((12,), "(4 * head:3)", [2], lambda t: t.reshape(4, 3)[:, :2].reshape(8)),
    "both factors": ((12,), "(a:4 * b:3)", [2, 1], lambda t: t.reshape(4, 3)[:2, :1].reshape(2)),
    "q, k and v": ((12,), "(a:4 + a:4 + a:4)", [3], lambda t: torch.cat([t[0:3], t[4:7], t[8:11]])),
    "segments of their own": ((9,), "(a:4 + 2 + b:3)", [1, 2], lambda t: torch.cat([t[:1], t[4:6], t[6:8]])),
    "qkv per head": (
        (2, 28),
        "2, (heads:4 * (k:2 + k:2 + 3))",
        [2, 1],
        lambda t: t.reshape(2, 4, 7)[:, :2][:, :, [0, 2, 4, 5, 6]].reshape(2, 10),
    ),
    "many runs": ((60,), "(30 * a:2)", [1], lambda t: t[::2]),
    "many runs in two dimensions": ((60, 40), "(30 * a:2), (20 * b:2)", [1, 1], lambda t: t[::2][:, ::2]),
    "nothing but numbers": ((3, 4), "3, 4", [], lambda t: t),
    "a number": ((), "", [], lambda t: t),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cut", [take, take_copy])
def test_takes_what_indexing_takes(name: str, cut: Callable[[Tensor, str, list[int]], Tensor]) -> None:
    shape, text, sizes, expected = CASES[name]
    full = _grid(*shape)
    assert torch.equal(cut(full, text, sizes), expected(full))


@pytest.mark.parametrize("name", ["a prefix", "two prefixes", "one of two", "outer factor"])
def test_prefixes_are_views(name: str) -> None:
    shape, text, sizes, _ = CASES[name]
    full = _grid(*shape)
    assert take(full, text, sizes).untyped_storage().data_ptr() == full.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", CASES)
def test_what_is_small_already_passes(name: str) -> None:
    shape, text, sizes, expected = CASES[name]
    small = expected(_grid(*shape)).clone()
    assert take(small, text, sizes) is small
    assert take_copy(small, text, sizes) is small


@pytest.mark.parametrize("name", CASES)
def test_full_sizes_give_the_tensor_itself(name: str) -> None:
    shape, text, _, _ = CASES[name]
    full = _grid(*shape)
    known = {axis.axis: axis.size for dim in parse_shape(text) for axis in axes_of(dim)}
    assert take(full, text, [known[axis] for axis in axis_names(parse_shape(text))]) is full


@pytest.mark.parametrize("name", CASES)
def test_gradients_go_where_the_numbers_came_from(name: str) -> None:
    shape, text, sizes, expected = CASES[name]
    full = _grid(*shape).requires_grad_()
    part = take(full, text, sizes)
    weight = torch.rand_like(part)
    (part * weight).sum().backward()
    reference = _grid(*shape).requires_grad_()
    (expected(reference) * weight).sum().backward()
    assert full.grad is not None
    assert torch.equal(full.grad, reference.grad)


def test_copies_isolate_writes() -> None:
    full = _grid(6)
    take_copy(full, "a:6", [4]).add_(1)
    assert torch.equal(full, _grid(6))
    take(full, "a:6", [4]).add_(1)
    assert not torch.equal(full, _grid(6))


def test_writes_to_the_full_size_arrive() -> None:
    """Running statistics of the full network are its own."""
    full = _grid(6)
    take_copy(full, "a:6", [6]).add_(1)
    assert torch.equal(full, _grid(6) + 1)


def test_a_wrong_number_of_sizes_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        take(_grid(6), "a:6", [4, 2])


def test_axis_names_come_once_and_in_order() -> None:
    assert axis_names(parse_shape("(b:2 * 3), a:4, b:2")) == ("b", "a")
