"""Exact cost of any sub-network: sums of products of dimension sizes.

Every op that contracts costs two FLOPs per multiply-add, as `torch.utils.flop_counter.FlopCounterMode` counts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import fx

from sortify.axes.algebra import Atom, ConcatExpr, Expr, ProductExpr, Size, resolve
from sortify.axes.analysis import Analysis
from sortify.axes.rules.contraction import CONTRACTIONS, convolution, transposed_convolution
from sortify.axes.rules.table import RULES, Dims, size_of_dimension
from sortify.capture import Captured
from sortify.dims import Dim, Fixed, Named, active, axes_of, concat, parse_shape, product, shape_text
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
        if str(node.target) in CONTRACTIONS:
            known = analysis.nodes["eval"]
            for factors in FLOPS[str(node.target)](node, known):
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
    """The size of a dimension at the example inputs."""
    return size if isinstance(size, int) else int(cast(int, size.node.hint))


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


# -- FLOPs, one rule per contraction: the products to add up ----------------------------------------------------------

Known = Mapping[fx.Node, Any]
Factors = list[tuple[Expr, ...]]


def _of(known: Known, node: Any) -> Dims:
    found = known.get(node) if isinstance(node, fx.Node) else None
    return tuple(resolve(d) for d in found) if isinstance(found, tuple) else ()


def _with_inner(first: int) -> Callable[[fx.Node, Known], Factors]:
    """Output size times the last dimension of the operand at index `first`."""
    return lambda node, known: [(*_of(known, node), _of(known, node.args[first])[-1])]


def _convolution(node: fx.Node, known: Known) -> Factors:
    return [(*_of(known, node), *_of(known, node.args[1])[1:])]


def _transposed(node: fx.Node, known: Known) -> Factors:
    return [(*_of(known, node.args[0]), *_of(known, node.args[1])[1:])]


def _attention(node: fx.Node, known: Known) -> Factors:
    query, key, value = (_of(known, node.args[i]) for i in range(3))
    return [(*query, key[-2]), (*query[:-1], key[-2], value[-1])]


def _einsum(node: fx.Node, known: Known) -> Factors:
    terms = str(node.args[0]).replace(" ", "").partition("->")[0].split(",")
    operands = [_of(known, operand) for operand in node.args[1]]  # type: ignore[union-attr]
    if len(operands) < 2:
        return []
    letters: dict[str, Expr] = {}
    spread: Dims = ()
    for term, dims in zip(terms, operands, strict=True):
        before, dots, after = term.partition("...")
        letters |= dict(zip(before, dims, strict=False)) | dict(zip(after, dims[len(dims) - len(after) :], strict=True))
        middle = dims[len(before) : len(dims) - len(after)] if dots else ()
        spread = middle if len(middle) > len(spread) else spread
    return [(*letters.values(), *spread)]


def _matrices(node: fx.Node, known: Known) -> Factors:
    """Products with a vector are not counted, as FlopCounterMode does not count them."""
    matrices = all(len(_of(known, operand)) > 1 for operand in node.args[:2])
    return _with_inner(0)(node, known) if matrices else []


def _not_counted(node: fx.Node, known: Known) -> Factors:
    return []


FLOPS: dict[str, Callable[[fx.Node, Known], Factors]] = {
    "aten.linear.default": _with_inner(0),
    "aten.addmm.default": _with_inner(1),
    "aten.baddbmm.default": _with_inner(1),
    **dict.fromkeys(("aten.matmul.default", "aten.mm.default", "aten.bmm.default"), _matrices),
    **dict.fromkeys(("aten.mv.default", "aten.dot.default", "aten.outer.default"), _not_counted),
    **{name: _convolution for name, function in RULES.items() if function is convolution},
    **{name: _transposed for name, function in RULES.items() if function is transposed_convolution},
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.einsum.default": _einsum,
}
