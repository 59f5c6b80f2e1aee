"""Extraction: a sub-network as an ordinary module of its own size.

The captured graph gets its sizes as constants, blocks that the sub-network leaves out disappear, and every
tensor is cut once. Nothing of the slice nodes is used here, so that slice = extraction is a real check.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from sortify.capture.lifting import Program
from sortify.graph.dims import Dim, active, full, positions
from sortify.graph.ops import without_dead_code
from sortify.network.blueprint import Blueprint
from sortify.network.network import GraphModule, Runner, used_tensors
from sortify.plan import Plan
from sortify.rewriting.rewrite import set_size
from sortify.space.space import Subnet


class ExtractedModel(GraphModule):
    """A sub-network on its own: smaller tensors under the original names, fixed graphs, the original call.

    Attributes:
        runners: the graph of each mode; none where the original's code runs.
    """

    runners: Mapping[str, Runner] = MappingProxyType({})

    def __init__(
        self, blueprint: Blueprint, programs: Mapping[str, Program], tensors: Mapping[str, torch.Tensor]
    ) -> None:
        kept = {name: blueprint.infos[name] for name in tensors}
        aliases = {name: first for name, first in blueprint.aliases.items() if first in tensors}
        super().__init__(tensors, kept, aliases, blueprint.signature)
        self.runners = {
            mode: Runner(fx.GraphModule(nn.Module(), p.graph), p.tensors, p.outputs) for mode, p in programs.items()
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        runner = self.runners["train" if self.training else "eval"]
        return runner((), self.tensors, self._bind(args, kwargs))


def extract(
    blueprint: Blueprint,
    tensors: Mapping[str, torch.Tensor],
    subnet: Subnet,
    statistics: Mapping[str, torch.Tensor] | None = None,
) -> ExtractedModel:
    """The sub-network as a module of its own.

    Args:
        blueprint: the sorted model.
        tensors: its tensors at full size.
        subnet: which sub-network.
        statistics: batch-norm statistics of this sub-network, of its own sizes, if it has been recalibrated.
    """
    programs = {mode: shrink(program, blueprint.plan, mode, subnet) for mode, program in blueprint.programs.items()}
    before = {name for program in blueprint.programs.values() for name in used_tensors(program).values()}
    after = {name for program in programs.values() for name in program.tensors}
    kept = {name: tensor for name, tensor in tensors.items() if name in after or name not in before}
    own = {name: tensor for name, tensor in (statistics or {}).items() if name in kept}
    return ExtractedModel(blueprint, programs, {**cut_tensors(blueprint.plan, kept, subnet), **own})


def cut_tensors(plan: Plan, tensors: Mapping[str, torch.Tensor], subnet: Subnet) -> dict[str, torch.Tensor]:
    """Every tensor with the positions that the sub-network keeps."""
    return {name: cut(plan, name, tensor, subnet) for name, tensor in tensors.items()}


def cut(plan: Plan, name: str, tensor: torch.Tensor, subnet: Subnet) -> torch.Tensor:
    """The positions of the tensor called `name` that the sub-network keeps."""
    return pick(tensor, plan.shapes.get(name, ()), {axis: list(range(size)) for axis, size in subnet.sizes})


def pick(tensor: torch.Tensor, dims: Sequence[Dim], kept: Mapping[str, list[int]]) -> torch.Tensor:
    """The given positions of every axis, in the given order (a prefix, or a permutation)."""
    for place, dim in enumerate(dims):
        wanted = positions(dim, kept)
        if wanted != list(range(full(dim))):
            tensor = tensor.index_select(place, torch.tensor(wanted, device=tensor.device))
    return tensor


def shrink(program: Program, plan: Plan, mode: str, subnet: Subnet) -> Program:
    """The graph of one mode with the sub-network's sizes as constants and only its blocks."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, env))
    sizes = dict(subnet.sizes)
    by_name = {old.name: new for old, new in env.items()}
    for literal in plan.literals[mode]:
        set_size(by_name[literal.node], literal, lambda old, dim: _constant(graph, old, dim, sizes))
    depths, order = dict(subnet.depths), {node.name: place for place, node in enumerate(program.graph.nodes)}
    left_out = [block.regions[mode] for chain in plan.chains for block in chain.blocks[depths[chain.name] :]]
    gone = {_module(by_name[name]) for region in left_out for name in region.nodes}
    # From the last to the first: the entry of one may be the exit of another, in this chain or in the one before.
    for region in sorted(left_out, key=lambda region: order[region.exit], reverse=True):
        by_name[region.exit].replace_all_uses_with(by_name[region.entry])
        for name in reversed(region.nodes):
            _erase(graph, by_name[name])
    without_dead_code(graph)
    _without_counters(graph, gone)
    return _without_unused(graph, program)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node that nobody uses but sizes computed from it, which nobody uses any more."""
    for user in list(node.users):
        if user.target in (operator.floordiv, operator.mul):
            _erase(graph, user)
    graph.erase_node(node)


def _module(node: fx.Node) -> str:
    return str(node.meta.get("sortify_module", ""))


def _without_counters(graph: fx.Graph, left_out: set[str]) -> None:
    """Drop what modules that are gone would still write, such as the number of batches that a norm has seen."""
    alive = {_module(node) for node in graph.nodes if node.users and node.op == "call_function"}
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and _module(node) in left_out - alive:
            graph.erase_node(node)


def _constant(graph: fx.Graph, old: Any, dim: Dim, sizes: Mapping[str, int]) -> Any:
    if not isinstance(old, fx.Node):
        return active(dim, sizes)
    with graph.inserting_after(old):
        rest = graph.call_function(operator.floordiv, (old, full(dim)))
    with graph.inserting_after(rest):
        return graph.call_function(operator.mul, (rest, active(dim, sizes)))


def _without_unused(graph: fx.Graph, program: Program) -> Program:
    without_dead_code(graph)
    holes = [node for node in graph.nodes if node.op == "placeholder"]
    used = []
    for hole, name in zip(holes[2:], program.tensors, strict=False):
        if hole.users:
            used.append(name)
        else:
            graph.erase_node(hole)
    graph.lint()
    return Program(graph, tuple(used), program.outputs)
