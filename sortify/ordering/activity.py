"""Activity: how strongly the units of a model answer to data, and how much its blocks change what goes through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sortify.capture.lifting import Program
from sortify.depth import Chain
from sortify.graph.dims import Dim, full
from sortify.graph.ops import argument
from sortify.network.network import used_tensors

# Operation -> (argument, its dimension, the output's dimension that this one becomes).
PRODUCES: Mapping[Any, tuple[str, int, int]] = {
    torch.ops.aten.linear.default: ("weight", 0, -1),
    torch.ops.aten.embedding.default: ("weight", 1, -1),
    torch.ops.aten.conv1d.default: ("weight", 0, -2),
    torch.ops.aten.conv1d.padding: ("weight", 0, -2),
    torch.ops.aten.conv2d.default: ("weight", 0, -3),
    torch.ops.aten.conv2d.padding: ("weight", 0, -3),
    torch.ops.aten.conv3d.default: ("weight", 0, -4),
    torch.ops.aten.conv3d.padding: ("weight", 0, -4),
    torch.ops.aten.addmm.default: ("mat2", 1, -1),
    torch.ops.aten.mm.default: ("mat2", 1, -1),
    torch.ops.aten.bmm.default: ("mat2", 2, -1),
    torch.ops.aten.matmul.default: ("other", -1, -1),
    torch.ops.aten.conv_transpose1d.default: ("weight", 1, -2),
    torch.ops.aten.conv_transpose2d.input: ("weight", 1, -3),
    torch.ops.aten.conv_transpose3d.input: ("weight", 1, -4),
    torch.ops.aten.batch_norm.default: ("weight", 0, 1),
    torch.ops.aten.instance_norm.default: ("weight", 0, 1),
    torch.ops.aten.group_norm.default: ("weight", 0, 1),
    torch.ops.aten.layer_norm.default: ("weight", -1, -1),
    torch.ops.aten.rms_norm.default: ("weight", -1, -1),
}


class Watch(fx.Interpreter):
    """Runs a graph and adds up the mean |output| of the watched nodes, unit by unit, and how much blocks change.

    Attributes:
        sums: node -> a sum over runs for each unit of `dims`.
        dims: node -> the dimension of its weight that its output repeats.
        changes: exit of a block -> a sum over runs of the length of (output - input), relative to the output's.
    """

    def __init__(self, program: Program, module: fx.GraphModule, chains: Sequence[Chain]) -> None:
        super().__init__(module)
        self._graph = module.graph
        self.places: dict[fx.Node, int] = {}
        self.dims: dict[fx.Node, Dim] = {}
        self.sums: dict[fx.Node, Tensor] = {}
        regions = [block.regions["eval"] for chain in chains for block in chain.blocks]
        self._entries = {region.exit: region.entry for region in regions}
        self._readers = Counter(region.entry for region in regions)
        self._values: dict[str, tuple[Tensor, int]] = {}
        self.changes: dict[str, float] = dict.fromkeys(self._entries, 0.0)
        self._names = used_tensors(program)

    def watch(self, shapes: Mapping[str, Sequence[Dim]]) -> None:
        """Note the nodes whose weights carry an axis; `shapes` are the dimensions of tensors."""
        for node in self._graph.nodes:
            weight, own, there = PRODUCES.get(node.target, ("", 0, 0))
            source = _carrier(argument(node, weight), self._names, shapes) if weight else None
            if source is not None and -len(source) <= own < len(source):
                self.places[node], self.dims[node] = there, source[own]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.places and value.shape[self.places[n]] == full(self.dims[n]):
            others = [d for d in range(value.dim()) if d != self.places[n] % value.dim()]
            line = value.abs().mean(others, dtype=torch.float64) if others else value.abs().double()
            self.sums[n] = self.sums.get(n, 0) + line
        if n.name in self._entries:
            before = self._taken(self._entries[n.name])
            whole = float(value.double().norm())
            self.changes[n.name] += float((value.double() - before.double()).norm()) / whole if whole else 0.0
        if n.name in self._readers:
            self._values[n.name] = value, self._readers[n.name]
        return value

    def _taken(self, entry: str) -> Tensor:
        """What enters a block; forgotten when its last block has read it."""
        value, left = self._values.pop(entry)
        if left > 1:
            self._values[entry] = value, left - 1
        return value


def _carrier(node: Any, names: Mapping[fx.Node, str], shapes: Mapping[str, Sequence[Dim]]) -> tuple[Dim, ...] | None:
    """The dimensions of a tensor of the model, or of one turned round; None for anything else."""
    if not isinstance(node, fx.Node):
        return None
    if node in names:
        return tuple(shapes[names[node]]) if names[node] in shapes else None
    if node.target not in (torch.ops.aten.t.default, torch.ops.aten.transpose.int, torch.ops.aten.permute.default):
        return None
    before = _carrier(node.args[0], names, shapes)
    if before is None:
        return None
    if node.target == torch.ops.aten.permute.default:
        return tuple(before[place] for place in _whole_numbers(node.args[1]))
    one, other = _whole_numbers(node.args[1:]) if len(node.args) == 3 else (0, len(before) - 1)
    turned = list(before)
    turned[one], turned[other] = turned[other], turned[one]
    return tuple(turned)


def _whole_numbers(values: Any) -> list[int]:
    return [int(value) for value in values]
