"""Analysis: run the rules over both captured graphs and see which dimensions are one and the same."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from sortify.axes import algebra
from sortify.axes.algebra import fixed_atom, open_atom
from sortify.axes.control import check_used, inside, matching, paths_to
from sortify.axes.reasons import Place
from sortify.axes.rules.table import RULES, Call, Dims, Literal, Result
from sortify.axes.sizes import sizes_of
from sortify.capture.capture import Captured
from sortify.capture.lifting import Program
from sortify.graph.structure import LONE


@dataclass(eq=False)
class Analysis:
    """The dimension expressions of every tensor and node; atoms are shared by both programs."""

    tensors: dict[str, Dims]
    nodes: dict[str, dict[fx.Node, Result]] = field(default_factory=dict)
    literals: dict[str, list[Literal]] = field(default_factory=dict)


def analyse(
    captured: Captured, rules: Mapping[str, Any] = RULES, opaque: Sequence[str] = (), free: Sequence[str] = ()
) -> Analysis:
    """Apply one rule per node, train and eval graph together.

    Args:
        captured: the captured model.
        rules: the rule table; an op that is not in it fixes every dimension that reaches it.
        opaque: patterns of module paths; what reaches an op of such a module, or of one inside it, is fixed.
        free: patterns of outputs (`Structure.names`) whose dimensions may become smaller.
    """
    if opaque:
        modules = (
            str(node.meta.get("sortify_module", "")) for p in captured.programs.values() for node in p.graph.nodes
        )
        check_used("opaque", opaque, (path for module in modules for path in paths_to(module)))
    analysis = Analysis({name: tuple(map(open_atom, t.shape)) for name, t in captured.tensors.items()})
    for mode, program in captured.programs.items():
        analysis.nodes[mode], analysis.literals[mode] = _run(program, analysis.tensors, rules, opaque)
        _fix_outputs(program, analysis.nodes[mode], free)
    return analysis


def _run(
    program: Program, tensors: Mapping[str, Dims], rules: Mapping[str, Any], opaque: Sequence[str]
) -> tuple[dict[fx.Node, Result], list[Literal]]:
    known: dict[fx.Node, Result] = {}
    literals: list[Literal] = []
    holes = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, name in zip(holes[2:], program.tensors, strict=False):
        known[node] = tensors[name]
    for node in holes[2 + len(program.tensors) :]:
        sizes = sizes_of(node.meta["val"])
        known[node] = tuple(fixed_atom(size, f"it is a dimension of the input '{node.name}'") for size in sizes)
    for node in program.graph.nodes:
        if node.op == "call_function":
            known[node] = _apply(node, known, literals, {} if inside(opaque, _module(node)) else rules)
    return known, literals


def _fix_outputs(program: Program, known: Mapping[fx.Node, Result], free: Sequence[str]) -> None:
    """Whoever calls the model relies on the sizes of its outputs."""
    for name, leaf in outputs_of(program):
        if matching(free, [name]) is None:
            _fix_all(known.get(leaf), "it is a dimension of the output" + (f" '{name}'" if name != LONE else ""))


def outputs_of(program: Program) -> list[tuple[str, fx.Node]]:
    """The outputs that ops compute, with their names."""
    leaves: Any = next(iter(reversed(program.graph.nodes))).args[0]
    return [(n, leaf) for n, leaf in zip(program.outputs.names(), leaves, strict=True) if isinstance(leaf, fx.Node)]


def _module(node: fx.Node) -> str:
    """The path of the module that called an op."""
    return str(node.meta.get("sortify_module", ""))


def place_of(node: fx.Node) -> Place:
    """Where a node comes from: op, module path, source line."""
    op = str(node.target) if not callable(node.target) or hasattr(node.target, "_schema") else node.name
    return Place(op, _module(node), node.meta.get("sortify_source", ""))


def _apply(node: fx.Node, known: Mapping[fx.Node, Result], literals: list[Literal], rules: Mapping[str, Any]) -> Result:
    if node.target is operator.getitem:
        source = known.get(node.args[0])  # type: ignore[arg-type]
        return source[node.args[1]] if isinstance(source, list) else None  # type: ignore[index]
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    if not tensors and not any(isinstance(known.get(n), tuple) for n in node.all_input_nodes):
        return None
    call = Call(node, place_of(node), _arguments(node), known)
    if node.target is torch.ops.aten.sym_size.int:
        dims = call.dims("self")
        call.fix([dims[call.axis("dim", len(dims))]] if dims else [], "its size is read as a number")
        return None
    result, why = _by_rule(call, rules, tensors)
    if not why:
        literals += call.literals
        return result
    for dims in call.tensors():
        call.fix(dims, why)
    fixed = [tuple(call.fixed(size, why) for size in sizes_of(v)) for v in tensors]
    return fixed if isinstance(value, (list, tuple)) else fixed[0] if fixed else None


def _by_rule(call: Call, rules: Mapping[str, Any], tensors: list[torch.Tensor]) -> tuple[Result, str]:
    """What the rule returns, and an empty reason; or why there is no result to rely on."""
    if not rules:
        return None, "its module is opaque"
    rule = rules.get(str(call.node.target))
    if rule is None:
        return None, "this op has no rule"
    try:
        result = rule(call)
    except NotImplementedError:
        return None, "this op has no rule for such arguments"
    except Exception as error:  # a use that the rule does not foresee: what it ties stays tied, the rest is fixed
        return None, f"its rule does not apply ({type(error).__name__}: {error})"
    return result, "" if _fits(result, tensors) else "the result of its rule does not fit"


def _fits(result: Result, tensors: list[torch.Tensor]) -> bool:
    """Whether the result has the rank and sizes that the tracer saw."""
    results: list[Dims] = result if isinstance(result, list) else [result]
    return len(results) == len(tensors) and all(
        tuple(algebra.size_of(d) for d in dims) == sizes_of(tensor)
        for dims, tensor in zip(results, tensors, strict=True)
    )


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an op by the names of its schema, defaults filled in; lists are plain lists."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    named: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            value: Any = node.args[position]
        elif argument.name in node.kwargs:
            value = node.kwargs[argument.name]
        elif argument.has_default_value():
            value = argument.default_value
        else:
            continue
        named[argument.name] = list(value) if isinstance(value, (list, tuple)) else value
    return named


def _fix_all(result: Result, why: str) -> None:
    for dims in result if isinstance(result, list) else [result]:
        for dim in dims or ():
            algebra.fix(dim, why)


def dims_equal(a: Dims, b: Dims) -> bool:
    """Whether two tensors are known to have one and the same dimensions."""
    return len(a) == len(b) and all(algebra.same(x, y) for x, y in zip(a, b, strict=True))
