"""Comparisons of outputs and of named tensors, for all tests. tests/test_compare.py feeds each a wrong answer.

Structures must match strictly (types, lengths, keys and their order), leaves by shape, dtype and value; nothing is
broadcast, and a number that is not finite never passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def max_error(actual: Any, expected: Any) -> float:
    """The largest error of any tensor, relative to the largest magnitude in the expected one.

    Args:
        actual: Any nesting of tensors, tuples, lists, mappings, dataclasses and plain values.
        expected: The same nesting with the right numbers.

    Returns:
        The largest over all tensors of max|actual - expected| / max|expected|; where the expected tensor is all zero,
        the absolute error; infinite where a number on either side is not finite. Integers and booleans count as equal
        (0) or not (infinite).

    Raises:
        AssertionError: If structure, shape, dtype or a plain value differs, or no tensor is there to compare.
    """
    errors = [_tensor_error(a, b, where) for a, b, where in _pairs(actual, expected, "output") if isinstance(b, Tensor)]
    if not errors:
        raise AssertionError("nothing to compare: no tensor in the expected output")
    return max(errors)


def assert_close_outputs(actual: Any, expected: Any, tolerance: float) -> None:
    """Fail unless `max_error(actual, expected)` is at most the tolerance."""
    error = max_error(actual, expected)
    if not error <= tolerance:
        raise AssertionError(f"outputs differ: relative error {error:.3g}, tolerance {tolerance:.3g}")


def assert_same_tensors(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Fail unless both have the same names in the same order with bitwise equal tensors of equal dtype."""
    _same(list(actual), list(expected), "names")
    if not expected:
        raise AssertionError("nothing to compare: no tensors")
    for name, tensor in expected.items():
        _same_form(actual[name], tensor, name)
        if not torch.equal(actual[name].detach(), tensor.detach()):
            raise AssertionError(f"{name}: values differ")


def tensors(output: Any) -> list[Tensor]:
    """The tensors of a nested output, in order."""
    return [leaf for leaf, _, _ in _pairs(output, output, "output") if isinstance(leaf, Tensor)]


def _pairs(actual: Any, expected: Any, where: str) -> Iterator[tuple[Any, Any, str]]:
    """Leaves side by side, with their place; AssertionError where the structures differ."""
    if isinstance(expected, Tensor):
        if not isinstance(actual, Tensor):
            raise AssertionError(f"{where}: expected a tensor, got {type(actual).__name__}")
        yield actual, expected, where
        return
    _same(type(actual), type(expected), f"{where}: type")
    children = _children(expected)
    if children is None:
        _same(actual, expected, where)
        yield actual, expected, where
        return
    mine = _children(actual)
    _same(list(mine or ()), list(children), f"{where}: keys")
    for key, child in children.items():
        yield from _pairs((mine or {})[key], child, f"{where}[{key!r}]")


def _children(value: Any) -> dict[Any, Any] | None:
    """What a container holds, by key; None for a leaf."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    return None


def _tensor_error(actual: Tensor, expected: Tensor, where: str) -> float:
    """The relative error of one tensor."""
    _same_form(actual, expected, where)
    if expected.numel() == 0:
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(actual, expected) else float("inf")
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = actual.detach().to(wide), expected.detach().to(wide)
    if not (a.isfinite().all() and b.isfinite().all()):
        return float("inf")
    return float((a - b).abs().max() / (b.abs().max() or 1.0))


def _same_form(actual: Tensor, expected: Tensor, where: str) -> None:
    """Equal shape and dtype."""
    _same(tuple(actual.shape), tuple(expected.shape), f"{where}: shape")
    _same(actual.dtype, expected.dtype, f"{where}: dtype")


def _same(actual: object, expected: object, what: str) -> None:
    """Equal plain values."""
    if actual != expected:
        raise AssertionError(f"{what}: expected {expected}, got {actual}")
