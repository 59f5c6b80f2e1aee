"""Samples for the law of rules: one table over all ops, the regular families made from their schemas.

Sizes inside a sample differ wherever the op allows it, so that dimensions cannot be confused unnoticed; where equal
sizes are what hides a fault (a square transpose), there is a sample with equal sizes as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from rule_law import Sample
from rule_samples_contraction import CONTRACTION
from rule_samples_images import IMAGES, matrix_op
from rule_samples_indexing import COPIED, INDEXING
from rule_samples_recurrent import RECURRENT
from rule_samples_scattering import SCATTERING
from rule_samples_shapes import SHAPES
from rule_tensors import flags, numbers, whole

from sortify.axes.rules import RULES, images, indexing, layouts, pointwise, reductions
from sortify.axes.rules.table import find_op

INTEGERS = "bitwise_and bitwise_not bitwise_or bitwise_xor __and__ __or__ __xor__ __iand__ __ior__ __ixor__".split()
INTEGERS += "bitwise_left_shift bitwise_right_shift __lshift__ __rshift__ __ilshift__ __irshift__ gcd lcm".split()
BOOLEANS = "logical_and logical_not logical_or logical_xor".split()
ABOVE_ONE = "acosh arccosh".split()
NOISY = """bernoulli uniform normal_functional exponential rand_like randn_like empty_like rand randn empty new_empty
randperm cauchy geometric log_normal normal random rrelu""".split()


def packet(op: str) -> str:
    """`acosh` for `aten.acosh_.default`."""
    name = op.split(".")[1]
    return name if name.startswith("__") else name.removesuffix("_")


def samples_of(op: str) -> list[Sample]:
    """Every sample of one op."""
    family = next((make for rule, make in FAMILIES.items() if RULES[op] is rule), None)
    regular = list(family(op)) if family and op not in IRREGULAR else []
    return [*regular, *(sample for sample in WRITTEN if sample.op == op)]


# -- element by element


def _pointwise(op: str) -> Iterator[Sample]:
    """One shape for all tensors, then shapes that broadcast; the first is the largest, for the in-place variants."""
    tensors = sum("Tensor" in str(a.type) for a in find_op(op)._schema.arguments)
    yield _elementwise(op, [(3, 4)] * tensors, opens=2)
    if tensors > 1:
        yield _elementwise(op, [(2, 3, 4), (3, 1), (4,)][:tensors], opens=3)


def _elementwise(op: str, shapes: list[tuple[int, ...]], **more: Any) -> Sample:
    rest = iter(shapes)
    args, kwargs = list[Any](), dict[str, Any]()
    for argument in find_op(op)._schema.arguments:
        value = _value(op, argument, rest)
        if argument.has_default_value() and "Tensor" not in str(argument.type):
            continue
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return Sample(op, tuple(args), kwargs, **more)


def _value(op: str, argument: Any, shapes: Iterator[tuple[int, ...]]) -> Any:
    """A value for one argument, by its type and name."""
    kind, name = str(argument.type), packet(op)
    if "Tensor" in kind:
        if argument.name in ("condition", "mask"):
            return flags(*next(shapes))
        if op.startswith("aten.masked_fill") and argument.name == "value":
            return numbers()
        return _operand(name, next(shapes))
    if argument.name == "rounding_mode":
        return "floor"
    if kind == "number" and not argument.has_default_value():
        return 2 if name in INTEGERS else 0.5
    return {"float": 0.5, "int": 1, "bool": False}.get(kind) if not argument.has_default_value() else None


def _operand(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name in INTEGERS:
        return whole(*shape, below=8)
    if name in BOOLEANS:
        return flags(*shape)
    return numbers(*shape) + (1 if name in ABOVE_ONE else 0)


def _copies(op: str) -> Iterator[Sample]:
    noisy = packet(op) in NOISY
    yield _elementwise(op, [(3, 4), (3, 4)], opens=2, noisy=noisy)


def _softmax(op: str) -> Iterator[Sample]:
    for dim in (-1, 0):
        last = (False,) if op.startswith("aten._") else ()
        yield Sample(op, (numbers(3, 4), dim, *last), opens=2, values="shape")


# -- reductions and pools


def _reduce(op: str) -> Iterator[Sample]:
    schema = find_op(op)._schema
    names = [argument.name for argument in schema.arguments]
    kinds = {argument.name: str(argument.type) for argument in schema.arguments}
    several = "List[int]" in kinds.get("dim", "")
    dims: list[Any] = [None] if "dim" not in names else [[1], [-1, 0]] if several else [1, -1]
    for dim in dims:
        for keep in (False, True) if "keepdim" in names else (None,):
            yield _reduction(op, schema, dim, keep)


def _reduction(op: str, schema: Any, dim: Any, keep: bool | None) -> Sample:
    given = {"p": 2, "dtype": torch.float64, "unbiased": True, "correction": 1, "dim": dim, "keepdim": keep, "ord": 2}
    given |= {"q": 0.5, "interpolation": "linear"}
    args, kwargs = list[Any](), dict[str, Any]()
    for argument in schema.arguments[1:]:
        if argument.kwarg_only:
            kwargs[argument.name] = given[argument.name]
        else:
            args.append(given[argument.name])
    value = flags(2, 3, 4) if packet(op) in ("all", "any") else numbers(2, 3, 4)
    return Sample(op, (value, *args), kwargs, opens=_opens_after(op, dim), values="shape")


FINDING = [f"aten.{name}.dim" for name in ("max", "min", "median", "nanmedian")]


def _opens_after(op: str, dim: Any) -> int:
    """Positions as results fix what was reduced."""
    finds = packet(op) in ("argmax", "argmin") or op in FINDING
    return 2 if finds else 3


def _pool(op: str) -> Iterator[Sample]:
    name = packet(op)
    rank = int(next(letter for letter in name if letter.isdigit()))
    image = (6, 5, 4)[:rank]
    yield Sample(op, (numbers(2, 3, *image), *_pool_arguments(op, rank)), opens=2)
    yield Sample(op, (numbers(2, 3, *(5,) * rank), *_pool_arguments(op, rank)), opens=2)
    if "upsample" not in name:
        yield Sample(op, (numbers(3, *image), *_pool_arguments(op, rank)), opens=1)


def _pool_arguments(op: str, rank: int) -> list[Any]:
    vec = op.endswith(".vec")
    given: dict[str, Any] = {
        "kernel_size": [2] * rank,
        "padding": [1] * 2 * rank,
        "output_size": None if vec else [3] * rank,
        "scale_factors": [2.0] * rank,
        "align_corners": False,
    }
    return [given[a.name] for a in find_op(op)._schema.arguments[1:] if not a.has_default_value()]


# -- creation


def _create(op: str) -> Iterator[Sample]:
    names = [argument.name for argument in find_op(op)._schema.arguments]
    first = (numbers(5),) if "self" in names else ()
    value = (0.5,) if "fill_value" in names else ()
    kwargs = {"generator": torch.Generator()} if "generator" in names else {}
    yield Sample(op, (*first, [3, 1, 4], *value), kwargs, opens=2 + len(first), noisy=packet(op) in NOISY)


def _count(op: str) -> Iterator[Sample]:
    given = {"end": 5, "start": 2, "step": 1, "steps": 4, "n": 3, "m": 4, "row": 3, "col": 4, "s": 2.0}
    given["window_length"] = 5
    names = [argument.name for argument in find_op(op)._schema.arguments if argument.name in given]
    yield Sample(op, tuple(given[name] for name in names), opens=0, noisy=packet(op) in NOISY)


FAMILIES = {
    pointwise.pointwise: _pointwise,
    reductions.extreme_of_two: _pointwise,
    pointwise.same_shape: _copies,
    pointwise.softmax: _softmax,
    reductions.reduce: _reduce,
    images.pool: _pool,
    layouts.matrices: matrix_op,
    indexing.create: _create,
    indexing.count: _count,
}

WRITTEN = (*CONTRACTION, *RECURRENT, *IMAGES, *SCATTERING, *SHAPES, *INDEXING)
# Ops of a regular family whose schema does not tell what a sensible call is.
IRREGULAR = frozenset(sample.op for sample in COPIED)
