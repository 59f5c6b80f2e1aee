"""Run a captured graph on several sets of tensors side by side, each tensor looked up when it is first needed.

Two runs of a model that differ in their weights only are thus compared while just the tensors at hand are in memory,
and what does not depend on the weights (masks, positions) is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from sortify.capture.lifting import Program
from sortify.graph.ops import nesting_restored

Lookup = Callable[[str], Sequence[torch.Tensor]]
Value = Callable[[fx.Node], Any]
Watch = Callable[[fx.Node, Any], Any]


def run_side_by_side(
    program: Program, lookup: Lookup, inputs: Sequence[torch.Tensor], watch: Watch | None = None
) -> list[Any]:
    """The outputs of `program`, once for each set of tensors; several runs draw the same random numbers.

    Args:
        program: the graph.
        lookup: gives for the name of a tensor what stands in for it in each run; called once per name in use.
        inputs: the inputs of all runs; not changed.
        watch: is given every op and its result, and gives the result to go on with.
    """
    with nesting_restored():
        return _SideBySide(program, lookup, inputs, watch or _as_it_is).outputs()


def _as_it_is(node: fx.Node, value: Any) -> Any:
    return value


class _SideBySide:
    """What is known while the graph runs: values that all runs share, and values of each run."""

    def __init__(self, program: Program, lookup: Lookup, inputs: Sequence[torch.Tensor], watch: Watch) -> None:
        self.program, self.lookup, self.watch = program, lookup, watch
        self.nodes = list(program.graph.nodes)
        self.shared: dict[fx.Node, Any] = {}
        self.own: dict[fx.Node, list[Any]] = {}
        self.changes = any(getattr(getattr(n.target, "_schema", None), "is_mutable", False) for n in self.nodes)
        device, dtype, *holes = (node for node in self.nodes if node.op == "placeholder")
        self.names = dict(zip(holes, program.tensors, strict=False))
        like = self._like(inputs)
        self.shared |= {device: like.device, dtype: like.dtype}
        for hole, value in zip(holes[len(self.names) :], inputs, strict=True):
            if self.changes:
                self.own[hole] = [value.clone() for _ in range(self.runs)]
            else:
                self.shared[hole] = value

    def _like(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensor whose device and dtype the model's literals follow; as in `network.Runner`."""
        self.runs = 1
        for hole in self.names:
            found = self._load(hole)
            self.runs = len(found)
            if found[0].is_floating_point():
                return found[0]
        known: list[torch.Tensor] = [*(values[0] for values in self.own.values()), *inputs]
        return known[0]

    def _load(self, hole: fx.Node) -> list[torch.Tensor]:
        if hole not in self.own:
            self.own[hole] = [t.clone() if self.changes else t for t in self.lookup(self.names[hole])]
        return self.own[hole]

    def outputs(self) -> list[Any]:
        last = {source: node for node in self.nodes for source in node.all_input_nodes}
        for place, node in enumerate(self.nodes):
            for source in node.all_input_nodes:
                if source in self.names:
                    self._load(source)
            if node.op == "call_function":
                self._run(node, place if self.runs > 1 else None)
            for source in node.all_input_nodes if node.op != "output" else ():
                if last[source] is node:
                    self.own.pop(source, None)
                    self.shared.pop(source, None)
        flat = self.nodes[-1].args[0]
        return [self.program.outputs.build(map_arg(flat, self._value(run))) for run in range(self.runs)]

    def _run(self, node: fx.Node, seed: int | None) -> None:
        if any(source in self.own for source in node.all_input_nodes):
            self.own[node] = [self.watch(node, _call(node, self._value(run), seed)) for run in range(self.runs)]
        else:
            self.shared[node] = self.watch(node, _call(node, self.shared.__getitem__, seed))

    def _value(self, run: int) -> Value:
        return lambda node: self.own[node][run] if node in self.own else self.shared[node]


def _call(node: fx.Node, value: Value, seed: int | None) -> Any:
    """One op; what draws random numbers draws the same ones in every run of several."""
    if seed is not None and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        torch.manual_seed(seed)
    return node.target(*map_arg(node.args, value), **map_arg(node.kwargs, value))  # type: ignore[operator]
