"""Exact cost of any sub-network: sums of products of dimension sizes.

Every op that contracts costs two FLOPs per multiply-add, as `torch.utils.flop_counter.FlopCounterMode` counts them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import fx

from sortify.axes.algebra import Atom, ConcatExpr, Expr, ProductExpr, Size, resolve
from sortify.axes.analysis import Analysis
from sortify.axes.rules.table import size_of_dimension
from sortify.capture import Captured
from sortify.dims import Dim, Fixed, Named, active, axes_of, concat, parse_shape, product, shape_text
from sortify.flops import flops_of
from sortify.plan import Plan


@dataclass(frozen=True)
class Cost:
    """What one call costs at the sizes of the example inputs.

    Attributes:
        params: parameters that the sub-network holds.
        flops: floating-point operations (two per multiply-add) of the ops that contract.
        activation_bytes: bytes of all tensors that the ops of one call newly make, in the captured dtypes.
    """

    params: int
    flops: int
    activation_bytes: int


@dataclass(frozen=True)
class Term:
    """`weight` times the sizes of `dims`, counted for the metric when one of the `owners` is kept.

    An owner is (chain index, block number); no owners means always.
    """

    metric: str
    weight: int
    dims: tuple[Dim, ...]
    owners: tuple[tuple[int, int], ...] = ()


class CostModel:
    """Costs of the sub-networks of one plan.

    Args:
        terms: the sum, term by term.
        axes: axis names, in the order in which sizes come.
    """

    def __init__(self, terms: Sequence[Term], axes: Sequence[str]) -> None:
        self.terms = tuple(terms)
        self._axes = tuple(axes)
        self._cost = lru_cache(maxsize=65536)(self._count)

    def __call__(self, values: tuple[int, ...]) -> Cost:
        """The cost of the sub-network with these sizes and depths (`Subnet.values`)."""
        return self._cost(values)

    def _count(self, values: tuple[int, ...]) -> Cost:
        sizes = dict(zip(self._axes, values, strict=False))
        depths = values[len(self._axes) :]
        totals = {"params": 0, "flops": 0, "activation_bytes": 0}
        known: dict[tuple[Dim, ...], int] = {}
        for term in self.terms:
            if term.owners and not any(depths[chain] > number for chain, number in term.owners):
                continue
            if term.dims not in known:
                known[term.dims] = math.prod(active(dim, sizes) for dim in term.dims)
            totals[term.metric] += term.weight * known[term.dims]
        return Cost(**totals)

    def to_json(self) -> list[Any]:
        return [[t.metric, t.weight, shape_text(t.dims), [list(o) for o in t.owners]] for t in self.terms]

    @classmethod
    def from_json(cls, data: Sequence[Any], axes: Sequence[str]) -> CostModel:
        terms = [Term(m, int(w), parse_shape(d), tuple((int(c), int(n)) for c, n in o)) for m, w, d, o in data]
        return cls(terms, axes)


def make_cost_model(captured: Captured, analysis: Analysis, plan: Plan, named: Mapping[Atom, Named]) -> CostModel:
    """Count parameters over all tensors, FLOPs and activations over the eval graph.

    Args:
        captured: the model; analysis: its dimensions; plan: its axes and chains.
        named: the atom of every axis.
    """
    sized = _Sizer(captured, named)
    owners = {
        name: (c, number)
        for c, chain in enumerate(plan.chains)
        for number, block in enumerate(chain.blocks)
        for name in block.regions["eval"].nodes
    }
    terms = _parameter_terms(captured, plan, owners)
    for node, dims in analysis.nodes["eval"].items():
        own = (owners[node.name],) if node.name in owners else ()
        for factors in flops_of(node, analysis.nodes["eval"]):
            terms.append(Term("flops", 2, tuple(sized(f) for f in factors), own))
        if isinstance(dims, tuple) and _makes_new(node):
            size = node.meta["val"].element_size()
            terms.append(Term("activation_bytes", size, tuple(sized(d) for d in dims), own))
    return CostModel(_merged(terms), [axis.name for axis in plan.axes])


class _Sizer:
    """Expressions as final dimensions, unknown sizes replaced by those of the example inputs."""

    def __init__(self, captured: Captured, named: Mapping[Atom, Named]) -> None:
        self._named = named
        self._hints: dict[str, int] = {}
        for node in captured.programs["eval"].graph.nodes:
            value = node.meta.get("val")
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, torch.Tensor):
                    self._note(tensor)

    def _note(self, tensor: torch.Tensor) -> None:
        for size in tensor.shape:
            found = size_of_dimension(size)
            if len(found.symbols) == 1 and found.count:
                self._hints.setdefault(found.symbols[0], hint(size) // found.count)

    def __call__(self, expr: Expr) -> Dim:
        expr = resolve(expr)
        match expr:
            case Atom():
                return self._named.get(expr) or Fixed(self._number(expr.size))
            case ProductExpr(factors):
                return product([self(f) for f in factors])
            case ConcatExpr(segments):
                return concat([self(s) for s in segments])

    def _number(self, size: Size) -> int:
        return size.count * math.prod(self._hints.get(symbol, 1) for symbol in size.symbols)


def hint(size: int | torch.SymInt) -> int:
    """The size of a dimension at the example inputs; 1 where only the data decide it."""
    known = size if isinstance(size, int) else cast("int | None", size.node.hint)
    return 1 if known is None else int(known)


def _parameter_terms(captured: Captured, plan: Plan, owners: Mapping[str, tuple[int, int]]) -> list[Term]:
    """A parameter counts when any block that uses it is kept, and always when it is used elsewhere."""
    users: dict[str, set[tuple[int, int] | None]] = {}
    program = captured.programs["eval"]
    holes = [node for node in program.graph.nodes if node.op == "placeholder"][2:]
    for hole, name in zip(holes, program.tensors, strict=False):
        users[name] = {owners.get(user.name) for user in hole.users}
    terms = []
    for name, info in captured.infos.items():
        if info.kind == "parameter":
            dims = plan.shapes.get(name) or tuple(map(Fixed, captured.tensors[name].shape))
            own = users.get(name, {None})
            kept = () if None in own else tuple(sorted(o for o in own if o is not None))
            terms.append(Term("params", 1, dims, kept))
    return terms


def _merged(terms: Sequence[Term]) -> list[Term]:
    """Fixed sizes become part of the weight, equal products are added up."""
    sums: dict[tuple[str, tuple[Dim, ...], tuple[tuple[int, int], ...]], int] = {}
    for term in terms:
        elastic = tuple(sorted((d for d in term.dims if any(True for _ in axes_of(d))), key=str))
        weight = term.weight * math.prod(active(d, {}) for d in term.dims if not any(True for _ in axes_of(d)))
        key = term.metric, elastic, term.owners
        sums[key] = sums.get(key, 0) + weight
    return [Term(metric, weight, dims, owners) for (metric, dims, owners), weight in sums.items()]


def _makes_new(node: fx.Node) -> bool:
    """Whether an op returns new memory: neither a view of an input nor an input changed in place."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and all(r.alias_info is None for r in schema.returns)
