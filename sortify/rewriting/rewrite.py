"""Rewriting: apply a plan to a captured graph.

Every tensor that carries an axis passes through a slice node, every size literal becomes an expression of the
active sizes, and every bypassable block becomes a sub-module that runs or hands its input on. The result is
a pure function: `forward(sizes, device, dtype, *tensors, *inputs)`, where `sizes` holds one integer per axis and then
one per chain. Print `.graph` or `.code` to see it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from sortify.axes.rules.table import position_of
from sortify.capture.capture import TensorInfo
from sortify.capture.lifting import Program, device_type
from sortify.depth import Region
from sortify.graph.dims import Concat, Dim, Fixed, Named, Product, full, shape_text
from sortify.plan import Plan, SizeLiteral
from sortify.rewriting.slicing import axis_names, take, take_copy

AUTOCAST = (torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast, device_type)
CAPTURED = "sortify_captured"
"""Key under which nodes of a rewritten graph tell their names in the captured one; names of their own may differ."""
Size = int | fx.Node


class Bypass(nn.Module):
    """A block that a sub-network may leave out: its first tensor argument then is its result.

    Attributes:
        recomputes: whether the backward pass computes the activations again that the forward pass does not keep.
    """

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__()
        self.body = body
        self.recomputes = False

    def forward(self, keep: bool, sizes: Sequence[int], entry: torch.Tensor, *others: Any) -> Any:
        if not keep:
            return entry
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(self.body, sizes, entry, *others, use_reentrant=False)
        return self.body(sizes, entry, *others)


@dataclass(frozen=True)
class _BlockSite:
    """Where a block is called in the main graph: its place in `sizes`, its number in the chain, its region."""

    name: str
    chain: int
    number: int
    region: Region


def rewrite(program: Program, plan: Plan, mode: str, infos: Mapping[str, TensorInfo]) -> fx.GraphModule:
    """The graph of one mode with slice nodes, computed sizes and bypassable blocks.

    Args:
        program: the captured graph; it is not changed.
        plan: what to rewrite; made for the same captured model.
        mode: 'train' or 'eval'.
        infos: tells buffers from parameters: in training, smaller sub-networks write to copies of buffers.
    """
    holes = [node for node in program.graph.nodes if node.op == "placeholder"]
    weights = dict(zip(holes[2:], program.tensors, strict=False))
    slicers = {
        node: take_copy if mode == "train" and infos[name].kind != "parameter" else take
        for node, name in weights.items()
    }
    shapes = {node: plan.shapes[name] for node, name in weights.items() if name in plan.shapes}
    source = _Source(plan, {x.node: [] for x in plan.literals[mode]}, shapes, slicers)
    for literal in plan.literals[mode]:
        source.literals[literal.node].append(literal)
    root = nn.Module()
    main = _Writer(source)
    main.copy_main(program.graph, _sites(plan, mode), root)
    main.graph.lint()
    return fx.GraphModule(root, main.graph)


def readable(module: fx.GraphModule) -> str:
    """A rewritten graph as code, its blocks after it."""
    blocks = [(name, child.body) for name, child in module.named_children() if isinstance(child, Bypass)]
    parts = [("GraphModule", module), *blocks]
    return "\n".join(
        part.print_readable(print_output=False).replace("class GraphModule(", f"class {name}(", 1)
        for name, part in parts
    )


def _sites(plan: Plan, mode: str) -> dict[str, _BlockSite]:
    """Every block by the name of its exit node."""
    return {
        block.regions[mode].exit: _BlockSite(block.name, len(plan.axes) + c, number, block.regions[mode])
        for c, chain in enumerate(plan.chains)
        for number, block in enumerate(chain.blocks)
    }


@dataclass(frozen=True, eq=False)
class _Source:
    """What every written graph needs to know about the graph that it comes from."""

    plan: Plan
    literals: dict[str, list[SizeLiteral]]
    shapes: Mapping[fx.Node, tuple[Dim, ...]]
    slicers: Mapping[fx.Node, Callable[..., torch.Tensor]]


class _Writer:
    """Writes one graph: the main one or the body of a block."""

    def __init__(self, source: _Source) -> None:
        self.source = source
        self.graph = fx.Graph()
        self.sizes = self.graph.placeholder("sizes")
        self.env: dict[fx.Node, fx.Node] = {}
        self.slices: dict[fx.Node, fx.Node] = {}
        self.computed: dict[Dim | int, fx.Node] = {}

    def copy_main(self, graph: fx.Graph, sites: Mapping[str, _BlockSite], root: nn.Module) -> None:
        order = {node: place for place, node in enumerate(graph.nodes)}
        by_name = {node.name: node for node in graph.nodes}
        bodies = {exit: _members(graph, site.region, by_name, order) for exit, site in sites.items()}
        inside = {node for members in bodies.values() for node in members}
        for node in graph.nodes:
            if node.name in sites:
                self._call_block(sites[node.name], bodies[node.name], by_name, order, root)
            elif node not in inside:
                self.copy(node)

    def _call_block(
        self,
        site: _BlockSite,
        members: Sequence[fx.Node],
        by_name: Mapping[str, fx.Node],
        order: Mapping[fx.Node, int],
        root: nn.Module,
    ) -> None:
        entry, exit = by_name[site.region.entry], by_name[site.region.exit]
        outer = {source for node in members for source in node.all_input_nodes} - set(members) - {entry}
        inputs = [entry, *sorted(outer, key=order.__getitem__)]
        body = _Writer(self.source)
        for node in inputs:
            hole = body.graph.placeholder(node.name)
            hole.meta = dict(node.meta)
            body.env[node] = hole
        for node in members:
            body.copy(node)
        body.graph.output(body.env[exit])
        body.graph.lint()
        target = f"block_{re.sub(r'[^0-9a-zA-Z_]', '_', site.name)}_{site.number}"
        if target in root._modules:  # the attention and the feed-forward part of one layer may each be a block
            target = f"{target}_{site.region.exit}"
        root.add_module(target, Bypass(fx.GraphModule(nn.Module(), body.graph)))
        keep = self.graph.call_function(operator.gt, (self._entry(site.chain), site.number))
        called = self.graph.create_node(
            "call_module", target, (keep, self.sizes, *(self.env[node] for node in inputs)), name=exit.name
        )
        called.meta = {**exit.meta, CAPTURED: exit.name}
        self.env[exit] = called

    def copy(self, node: fx.Node) -> None:
        """Copy one node: slices for its tensors first, then its size arguments."""
        if node.op == "placeholder":
            self.env[node] = self.graph.node_copy(node)
            return
        new = self.graph.node_copy(node, self._use)
        new.meta[CAPTURED] = node.name
        self.env[node] = new
        with self.graph.inserting_before(new):
            for literal in self.source.literals.get(node.name, ()):
                set_size(new, literal, lambda old, dim: self._resized(old, dim))

    def _use(self, node: fx.Node) -> fx.Node:
        shape = self.source.shapes.get(node)
        if shape is None:
            return self.env[node]
        if node not in self.slices:
            sizes = [self._entry(self._index(name)) for name in axis_names(shape)]
            arguments = self.env[node], shape_text(shape), sizes
            slicer = self.source.slicers[node]
            new = self.graph.create_node("call_function", slicer, arguments, name=f"{node.name}_slice")
            new.meta = dict(node.meta)
            self.slices[node] = new
        return self.slices[node]

    def _index(self, axis: str) -> int:
        return next(i for i, a in enumerate(self.source.plan.axes) if a.name == axis)

    def _entry(self, index: int) -> fx.Node:
        """`sizes[index]`, named after the axis or chain."""
        if index not in self.computed:
            names = [a.name for a in self.source.plan.axes] + [f"depth_{c.name}" for c in self.source.plan.chains]
            name = re.sub(r"[^0-9a-zA-Z_]", "_", names[index])
            with self.graph.inserting_after(self._last_hole()):
                self.computed[index] = self.graph.create_node(
                    "call_function", operator.getitem, (self.sizes, index), name=name
                )
        return self.computed[index]

    def _last_hole(self) -> fx.Node:
        holes: list[fx.Node] = [node for node in self.graph.nodes if node.op == "placeholder"]
        return holes[-1]

    def _resized(self, old: Any, dim: Dim) -> Size:
        if isinstance(old, fx.Node):
            rest = self.graph.call_function(operator.floordiv, (old, full(dim)))
            return self.graph.call_function(operator.mul, (rest, self._size(dim)))
        return self._size(dim)

    def _size(self, dim: Dim) -> Size:
        match dim:
            case Fixed(size):
                return size
            case Named(axis, _):
                return self._entry(self._index(axis))
            case Product(parts):
                return self._fold(operator.mul, parts)
            case Concat(parts):
                return self._fold(operator.add, parts)

    def _fold(self, function: Callable[..., Any], parts: Sequence[Dim]) -> fx.Node:
        result = self._size(parts[0])
        for part in parts[1:]:
            result = self.graph.call_function(function, (result, self._size(part)))
        assert isinstance(result, fx.Node)
        return result


def _members(
    graph: fx.Graph, region: Region, by_name: Mapping[str, fx.Node], order: Mapping[fx.Node, int]
) -> list[fx.Node]:
    """The nodes of a region, with the autocast switches that stand between them."""
    names = set(region.nodes)
    first, last = order[by_name[region.nodes[0]]], order[by_name[region.exit]]
    return [n for n in graph.nodes if n.name in names or (first < order[n] < last and n.target in AUTOCAST)]


def set_size(node: fx.Node, literal: SizeLiteral, resized: Callable[[Any, Dim], Any]) -> None:
    """Replace one size argument of `node`; `resized(old, dim)` gives the new value."""
    place: int | str = position_of(node, literal.argument)
    old = node.args[place] if isinstance(place, int) else node.kwargs[place]
    if literal.index is None:
        new: Any = resized(old, literal.dim)
    else:
        assert isinstance(old, (list, tuple))
        values = list(old)
        values[literal.index] = resized(values[literal.index], literal.dim)
        new = values
    if isinstance(place, int):
        node.update_arg(place, new)
    else:
        node.update_kwarg(place, new)
