"""Counting: what a captured model costs, term by term, in the sizes of its axes and the sizes that a call decides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from sortify.axes.algebra import Atom, ConcatExpr, Expr, ProductExpr, Size, resolve
from sortify.axes.analysis import Analysis
from sortify.axes.sizes import size_of_dimension, sizes_of
from sortify.capture.capture import Captured
from sortify.costs.cost import CostModel, Term
from sortify.costs.flops import Known, flops_of
from sortify.costs.kv_cache import Kept
from sortify.costs.open_sizes import Opens, OpenSize, natural_name
from sortify.costs.presence import ALWAYS, NEVER, Needs, needs_of_nodes, needs_of_parameters
from sortify.graph.arithmetic import follows, renamed
from sortify.graph.dims import Dim, Fixed, Named, Product, active, axes_of, concat, product
from sortify.graph.symbols import hint
from sortify.plan import Plan


def make_cost_model(
    captured: Captured,
    analysis: Analysis,
    plan: Plan,
    named: Mapping[Atom, Named],
    kept: Sequence[Kept] = (),
) -> CostModel:
    """Count parameters over all tensors, FLOPs and activations over the eval graph.

    Args:
        captured: the model; analysis: its dimensions; plan: its axes and chains.
        named: the atom of every axis.
        kept: what a cache of keys and values holds.
    """
    axes = [axis.name for axis in plan.axes]
    found = _open_sizes(captured, {name.split(".")[0] for name in axes})
    sized = _Sizer(found.by_symbol, named)
    needs = {mode: needs_of_nodes(program, plan.chains, mode) for mode, program in captured.programs.items()}
    terms = _parameter_terms(captured, plan, needs)
    known = analysis.nodes["eval"]
    for node, dims in known.items():
        own = needs["eval"][node.name]
        for factors in flops_of(node, known):
            terms.append(Term("flops", 2, tuple(sized(f) for f in factors), own))
        if isinstance(dims, tuple) and _makes_new(node):
            size = node.meta["val"].element_size()
            terms.append(Term("activation_bytes", size, tuple(sized(d) for d in dims), own))
    terms += _cache_terms(captured, kept, known, sized, needs["eval"], found)
    return CostModel(_merged([term for term in terms if term.needs != NEVER]), axes, found.opens)


# -- open sizes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """The open sizes of a graph, and by which of them a symbol of the tracer goes."""

    opens: Opens
    by_symbol: Mapping[str, OpenSize]


def _open_sizes(captured: Captured, taken: set[str]) -> _Found:
    """Symbols that are dimensions of an input get readable names; others follow from these by a rule."""
    chosen: dict[str, OpenSize] = {}
    rules: dict[str, str] = {}
    hints: dict[str, int] = {}
    for name, size in _input_sizes(captured):
        found = size_of_dimension(size)
        if len(found.symbols) == 1 and found.symbols[0].isidentifier() and found.symbols[0] not in rules:
            symbol = found.symbols[0]
            again = name == "batch" and name in chosen and chosen[name].size == hint(size)  # of another input
            own = name if again else _unused(name, {*taken, *chosen})
            chosen[own] = OpenSize(own, hint(size))
            rules[symbol] = own if found.count == 1 else f"{own} / {found.count}"
    for size in sorted(_all_sizes(captured), key=lambda size: len(size_of_dimension(size).symbols)):
        found = size_of_dimension(size)
        new = [symbol for symbol in found.symbols if symbol not in hints]
        if len(new) == 1:
            others = math.prod(hints[symbol] for symbol in found.symbols if symbol != new[0])
            hints[new[0]] = hint(size) // max(1, found.count * others)
    names = {symbol: f"({rule})" if "/" in rule else rule for symbol, rule in rules.items()}
    by_symbol, opens = {}, [*chosen.values()]
    values = {each.name: each.size for each in opens}
    for symbol, known in hints.items():
        rule = renamed(symbol, names)
        if rule in chosen:
            by_symbol[symbol] = chosen[rule]
            continue
        rule = rule if follows(rule, values, known) else f"unknown: {rule}"
        by_symbol[symbol] = OpenSize(_unused(f"size_{len(opens)}", {*taken, *values}), known, rule)
        opens.append(by_symbol[symbol])
    return _Found(tuple(opens), by_symbol)


def _input_sizes(captured: Captured) -> Iterator[tuple[str, int | torch.SymInt]]:
    """Every dimension of every input: a name for people, and its size."""
    program = captured.programs["eval"]
    holes = [node for node in program.graph.nodes if node.op == "placeholder"][2 + len(program.tensors) :]
    for hole, name in zip(holes, captured.signature.tensor_names, strict=True):
        value = hole.meta["val"]
        for place, size in enumerate(value.shape):
            yield natural_name(name, value, place), size


def _unused(name: str, taken: set[str]) -> str:
    own, number = name, 2
    while own in taken:
        own, number = f"{name}_{number}", number + 1
    return own


def _all_sizes(captured: Captured) -> Iterator[int | torch.SymInt]:
    for node in captured.programs["eval"].graph.nodes:
        value = node.meta.get("val")
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(tensor, torch.Tensor):
                yield from tensor.shape


class _Sizer:
    """Expressions as final dimensions; symbols become open sizes."""

    def __init__(self, opens: Mapping[str, OpenSize], named: Mapping[Atom, Named]) -> None:
        self._named, self._opens = named, opens

    def __call__(self, expr: Expr) -> Dim:
        expr = resolve(expr)
        match expr:
            case Atom():
                return self._named.get(expr) or self._sized(expr.size)
            case ProductExpr(factors):
                return product([self(f) for f in factors])
            case ConcatExpr(segments):
                return concat([self(s) for s in segments])

    def _sized(self, size: Size) -> Dim:
        opens = [self._opens[symbol] for symbol in size.symbols if symbol in self._opens]
        return product([Fixed(size.count), *(Named(each.name, each.size) for each in opens)])


# -- terms --------------------------------------------------------------------------------------------------------


def _parameter_terms(captured: Captured, plan: Plan, needs: Mapping[str, Mapping[str, Needs]]) -> list[Term]:
    """A parameter counts where an op of either mode that is run reads it, and always where none does in any case."""
    known = needs_of_parameters(captured.programs, needs)
    terms = []
    for name, info in captured.infos.items():
        if info.kind == "parameter":
            dims = plan.shapes.get(name) or tuple(map(Fixed, captured.tensors[name].shape))
            terms.append(Term("params", 1, dims, known.get(name, ALWAYS)))
    return terms


def _cache_terms(
    captured: Captured,
    kept: Sequence[Kept],
    known: Known,
    sized: _Sizer,
    needs: Mapping[str, Needs],
    found: _Found,
) -> Iterator[Term]:
    """What a cache holds of one token of one sequence: without the dimensions of tokens and of the batch."""
    nodes = {node.name: node for node in captured.programs["eval"].graph.nodes}
    for each in kept:
        node = nodes[each.node]
        value, dims = node.meta["val"], known.get(node)
        if not isinstance(dims, tuple):
            dims = tuple(Atom(size) for size in sizes_of(value))
        factors = [factor for place, dim in enumerate(dims) if place != each.dim for factor in _factors(sized(dim))]
        batch = found.by_symbol[each.batch].name
        own = tuple(factor for factor in factors if not (isinstance(factor, Named) and factor.axis == batch))
        yield Term("cache_bytes", value.element_size(), own, needs[each.node])


def _factors(dim: Dim) -> tuple[Dim, ...]:
    return dim.factors if isinstance(dim, Product) else (dim,)


def _merged(terms: Sequence[Term]) -> list[Term]:
    """Fixed sizes become part of the weight, equal products are added up."""
    sums: dict[tuple[str, tuple[Dim, ...], Needs], int] = {}
    for term in terms:
        elastic = tuple(sorted((d for d in term.dims if any(True for _ in axes_of(d))), key=str))
        weight = term.weight
        for dim in term.dims:
            weight *= active(dim, {}) if not any(True for _ in axes_of(dim)) else 1
        key = term.metric, elastic, term.needs
        sums[key] = sums.get(key, 0) + weight
    return [Term(metric, weight, dims, needs) for (metric, dims, needs), weight in sums.items()]


def _makes_new(node: fx.Node) -> bool:
    """Whether an op returns new memory: neither a view of an input nor an input changed in place."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and all(r.alias_info is None for r in schema.returns)
