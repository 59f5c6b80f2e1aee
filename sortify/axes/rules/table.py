"""The rule table: one small pure function per ATen op.

A rule looks at a `Call` (an op with its arguments and the dimension expressions of its inputs), says
which dimensions are one and the same, and returns the dimensions of the output. It also names the
integer arguments that are sizes (`Call.literal`), so that the rewritten graph can compute them.
An op without a rule fixes every dimension that reaches it (DESIGN, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from sortify.axes import algebra
from sortify.axes.algebra import Expr, Size
from sortify.axes.reasons import Place, Reason
from sortify.axes.sizes import sizes_of

Dims = tuple[Expr, ...]
Result = Any  # Dims for a tensor, a list of Dims for several tensors, None for anything else


@dataclass(frozen=True, eq=False)
class Literal:
    """An integer argument of a node that is a size: the sum of the sizes of `parts`.

    `index` is the place inside a list argument, None for a plain integer.
    """

    node: str
    argument: str
    index: int | None
    parts: tuple[Expr, ...]


@dataclass(eq=False)
class Call:
    """One op call as a rule sees it."""

    node: fx.Node
    place: Place
    arguments: Mapping[str, Any]
    known: Mapping[fx.Node, Result]
    literals: list[Literal] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    def dims(self, name: str) -> Dims:
        """The dimensions of the tensor argument `name`; () for numbers."""
        return self.dims_of(self.arguments.get(name))

    def dims_of(self, value: Any) -> Dims:
        found = self.known.get(value) if isinstance(value, fx.Node) else None
        return tuple(algebra.resolve(d) for d in found) if isinstance(found, tuple) else ()

    def tensors(self) -> list[Dims]:
        """The dimensions of every tensor among the arguments, lists included."""
        return [self.dims_of(node) for node in self.node.all_input_nodes if isinstance(self.known.get(node), tuple)]

    @property
    def shape(self) -> tuple[Size, ...]:
        """The sizes of the (first) output."""
        return self.shapes[0]

    @property
    def shapes(self) -> list[tuple[Size, ...]]:
        """The sizes of every output tensor."""
        value = self.node.meta["val"]
        values = value if isinstance(value, (tuple, list)) else [value]
        return [sizes_of(v) for v in values if isinstance(v, torch.Tensor)]

    def unify(self, a: Expr, b: Expr) -> None:
        algebra.unify(a, b, self.place)

    def unify_all(self, a: Sequence[Expr], b: Sequence[Expr]) -> None:
        for x, y in zip(a, b, strict=True):
            self.unify(x, y)

    def fix(self, dims: Iterable[Expr], why: str) -> None:
        for dim in dims:
            algebra.fix(dim, Reason(why, self.place))

    def fixed(self, size: Size | int, why: str) -> Expr:
        return algebra.fixed_atom(size, Reason(why, self.place))

    def literal(self, argument: str, index: int | None, *parts: Expr) -> None:
        """Note that an integer argument is the size of `parts` together."""
        self.literals.append(Literal(self.node.name, argument, index, parts))

    def axis(self, argument: str, rank: int) -> int:
        """A dimension argument as a non-negative index."""
        return int(self[argument]) % max(rank, 1)


Rule = Callable[[Call], Result]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register one rule for the ops of the given names (`aten.linear.default`).

    Raises:
        ValueError: an op does not exist or has a rule already.
    """

    def register(function: Rule) -> Rule:
        for op in ops:
            find_op(op)
            if op in RULES:
                raise ValueError(f"{op} has a rule already")
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def find_op(name: str) -> torch._ops.OpOverload:
    """The op overload of a name such as `aten.linear.default`; ValueError when there is none."""
    try:
        namespace, packet, overload = name.split(".")
        found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{name} is no op of this torch") from error
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"{name} is no op overload")
    return found


def overloads(*packets: str) -> list[str]:
    """Every overload of the given ATen packets, in-place variants included, out variants not."""
    names = []
    for packet in packets:
        for variant in (packet, f"{packet}_"):
            found = getattr(torch.ops.aten, variant, None)
            for overload in found.overloads() if found is not None else ():
                schema = getattr(found, overload)._schema
                if not any(argument.is_out for argument in schema.arguments):
                    names.append(f"aten.{variant}.{overload}")
    return names


def position_of(node: fx.Node, argument: str) -> int | str:
    """Where a named argument of an op call stands: its index in `args`, or its key in `kwargs`."""
    if argument in node.kwargs:
        return argument
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    return names.index(argument)
