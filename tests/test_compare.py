"""The comparisons are fed wrong answers and must fail; right ones must pass."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from compare import assert_close_outputs, assert_same_tensors, max_error, tensors
from torch import Tensor
from zoo_dense import NetOutput

A = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
B = torch.tensor([10.0, 20.0, 30.0])
NAN = torch.tensor([10.0, float("nan"), 30.0])
INFINITE = torch.tensor([10.0, float("inf"), 30.0])
Pair = namedtuple("Pair", ["first", "second"])


@dataclass(frozen=True)
class Record:
    first: Tensor
    second: Tensor


NESTED = {"a": A, "rest": (B, [A, None, 3, "word"])}


@pytest.mark.parametrize(
    "value",
    [A, (A, B), [A, B], Pair(A, B), Record(A, B), {"a": A, "b": B}, NetOutput(logits=A, layers=(B, A)), NESTED],
    ids=["tensor", "tuple", "list", "namedtuple", "dataclass", "dict", "ModelOutput", "nested"],
)
def test_equal_outputs_pass(value: Any) -> None:
    assert max_error(value, value) == 0.0
    assert_close_outputs(value, value, 0.0)


WRONG_STRUCTURE = {
    "missing leaf in a tuple": ((A,), (A, B)),
    "extra leaf in a tuple": ((A, B), (A,)),
    "missing key": ({"a": A}, {"a": A, "b": B}),
    "extra key": ({"a": A, "b": B}, {"a": A}),
    "other key": ({"a": A, "c": B}, {"a": A, "b": B}),
    "swapped keys": ({"b": B, "a": A}, {"a": A, "b": B}),
    "list for tuple": ([A, B], (A, B)),
    "tuple for namedtuple": ((A, B), Pair(A, B)),
    "dict for ordered dict": ({"a": A}, OrderedDict(a=A)),
    "dict for ModelOutput": ({"logits": A}, NetOutput(logits=A)),
    "ModelOutput without a field": (NetOutput(logits=A), NetOutput(logits=A, probabilities=A)),
    "tensor for tuple": (A, (A,)),
    "None for tensor": ((A, None), (A, B)),
    "tensor for None": ((A, B), (A, None)),
    "number for tensor": (1.0, torch.tensor(1.0)),
    "other number": ((A, 2), (A, 3)),
    "other word": ((A, "x"), (A, "y")),
    "shape that would broadcast": (A[:1], A),
    "scalar that would broadcast": (torch.tensor(1.0), torch.ones(3)),
    "extra dimension of one": (A[None], A),
    "transposed shape": (torch.ones(2, 3), torch.ones(3, 2)),
    "other dtype": (A.double(), A),
    "no tensor at all": ((1, "x"), (1, "x")),
    "empty": ((), ()),
}


@pytest.mark.parametrize(("actual", "expected"), WRONG_STRUCTURE.values(), ids=WRONG_STRUCTURE.keys())
def test_wrong_structure_fails(actual: Any, expected: Any) -> None:
    with pytest.raises(AssertionError, match=r"expected .*, got |nothing to compare"):
        max_error(actual, expected)
    with pytest.raises(AssertionError, match=r"expected .*, got |nothing to compare"):
        assert_close_outputs(actual, expected, tolerance=1e9)


WRONG_NUMBERS = {
    "swapped order": ((A, A * 2), (A * 2, A)),
    "nan": (NAN, B),
    "nan expected": (B, NAN),
    "nan on both sides": (NAN, NAN),
    "infinite": (INFINITE, B),
    "infinite on both sides": (INFINITE, INFINITE),
    "a little over the tolerance": (B + torch.tensor([0.0, 0.0, 30 * 1.1e-3]), B),
    "negative difference": (B - torch.tensor([30 * 1.1e-3, 0.0, 0.0]), B),
    "only the last leaf": ({"a": A, "rest": [B, B * 1.01]}, {"a": A, "rest": [B, B]}),
    "small leaf beside a large one": ((A * 1e6, B * 1e-6), (A * 1e6, B * 1.01e-6)),
    "against zero": (torch.full((3,), 1.1e-3), torch.zeros(3)),
    "other integer": (torch.tensor([1, 2]), torch.tensor([1, 3])),
    "other flag": (torch.tensor([True]), torch.tensor([False])),
    "all zero": (torch.zeros(3), B),
    "half precision": (B.half() * 1.01, B.half()),
}


@pytest.mark.parametrize(("actual", "expected"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS.keys())
def test_wrong_numbers_fail(actual: Any, expected: Any) -> None:
    assert max_error(actual, expected) > 1e-3
    with pytest.raises(AssertionError, match="outputs differ: relative error"):
        assert_close_outputs(actual, expected, tolerance=1e-3)


def test_error_is_relative_to_the_largest_expected_value() -> None:
    assert max_error(B + torch.tensor([0.3, 0.0, 0.0]), B) == pytest.approx(0.01, rel=1e-5)
    assert max_error(torch.full((3,), 0.25), torch.zeros(3)) == 0.25
    assert_close_outputs(B * 1.0009, B, tolerance=1e-3)


def test_tensors_come_in_order() -> None:
    found = tensors(NESTED)
    assert len(found) == 3
    assert found[0] is A
    assert found[1] is B
    assert found[2] is A
    assert tensors(NetOutput(logits=B, layers=(A,)))[1] is A


def test_nan_tolerance_passes_nothing() -> None:
    with pytest.raises(AssertionError, match="outputs differ"):
        assert_close_outputs(A, A, tolerance=float("nan"))


def test_same_tensors_pass() -> None:
    assert_same_tensors({"a": A, "b": B}, {"a": A.clone(), "b": B.clone()})


WRONG_TENSORS = {
    "missing name": ({"a": A}, {"a": A, "b": B}),
    "extra name": ({"a": A, "b": B}, {"a": A}),
    "other order": ({"b": B, "a": A}, {"a": A, "b": B}),
    "swapped tensors": ({"a": A * 2, "b": A}, {"a": A, "b": A * 2}),
    "one bit": ({"a": torch.nextafter(A, A + 1)}, {"a": A}),
    "nan": ({"b": NAN}, {"b": NAN}),
    "shape": ({"a": A[:1]}, {"a": A}),
    "dtype": ({"a": A.double()}, {"a": A}),
    "none": ({}, {}),
}


@pytest.mark.parametrize(("actual", "expected"), WRONG_TENSORS.values(), ids=WRONG_TENSORS.keys())
def test_wrong_tensors_fail(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    with pytest.raises(AssertionError, match=r"expected .*, got |values differ|nothing to compare"):
        assert_same_tensors(actual, expected)


def test_a_wrong_field_of_a_dataclass_fails() -> None:
    right = Record(A, B)
    with pytest.raises(AssertionError, match="outputs differ"):
        assert_close_outputs(replace(right, second=B * 1.01), right, tolerance=1e-3)
