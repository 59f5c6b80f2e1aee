"""Norms that keep running statistics, and graphs in which they measure them, or leave them alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import fx

from sortify.axes.rules.table import position_of
from sortify.capture.lifting import Program
from sortify.errors import CaptureError
from sortify.graph.ops import argument
from sortify.network.network import STATISTICS

FLAGS = ("training", "use_input_stats")
"""What such an op calls the choice between the statistics of the batch and those that it keeps."""


def measuring(program: Program) -> Program:
    """A graph whose norms normalise by the batch and write its statistics out whole."""
    graph = _copied(program)
    for node in _keeping(graph):
        _set(node, _flag(node), True)
        _set(node, "momentum", 1.0)
    return replace(program, graph=graph)


def frozen(program: Program) -> Program:
    """A graph whose norms normalise by the statistics that they keep and never change them, nor count batches.

    Raises:
        CaptureError: a norm cannot be told to.
    """
    if not any(argument(node, _flag(node)) is not False for node in _keeping(program.graph)):
        return program
    graph = _copied(program)
    modules = set[str]()
    for node in _keeping(graph):
        _set(node, _flag(node), False)
        modules.add(_module(node))
    for node in reversed(graph.nodes):
        if _module(node) in modules and _counts(node):
            graph.erase_node(node)
    return replace(program, graph=graph)


def _copied(program: Program) -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    return graph


def _keeping(graph: fx.Graph) -> Iterator[fx.Node]:
    """The calls of norms that keep statistics."""
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(argument(node, STATISTICS[0]), fx.Node):
            yield node


def _flag(node: fx.Node) -> str:
    names = {each.name for each in node.target._schema.arguments}  # type: ignore[union-attr]
    for flag in FLAGS:
        if flag in names:
            return flag
    raise CaptureError(f"{node.target} ({_module(node)}): whether it uses running statistics cannot be chosen")


def _set(node: fx.Node, name: str, value: Any) -> None:
    place = position_of(node, name)
    node.update_arg(place, value) if isinstance(place, int) else node.update_kwarg(place, value)


def _module(node: fx.Node) -> str:
    return str(node.meta.get("sortify_module", ""))


def _counts(node: fx.Node) -> bool:
    """Whether an op only changes a tensor of the model that nobody else reads."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable or node.users or not node.args:
        return False
    counter = node.args[0]
    return isinstance(counter, fx.Node) and counter.op == "placeholder" and len(counter.users) == 1
