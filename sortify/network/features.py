"""Hidden features of sub-networks, beside their outputs, and how far those of one are from another's.

Features are what the blocks of chains put out, and what the last layers are given. Sub-networks are nested: the units
of one are the first units of a larger one, so they are compared as they are, without learnt projections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx

from sortify.graph.dims import Concat, Dim, Fixed, Named, Product, Sizes, shape_text
from sortify.network.network import Runner
from sortify.plan import Plan
from sortify.rewriting.rewrite import CAPTURED
from sortify.rewriting.slicing import axis_names, take
from sortify.space.space import Subnet

SMALLEST = 1e-6
"""The square of a teacher's feature is not counted as less."""
Features = Mapping[str, Tensor]


@dataclass(frozen=True)
class Processes:
    """Those of a run: how many, and what adds a tensor up over them."""

    count: int
    added: Callable[[Tensor], Tensor]


class Noted:
    """Runs rewritten train graphs, and keeps the features of the last run.

    Args:
        plan: names the features.
    """

    def __init__(self, plan: Plan) -> None:
        self._names = tuple(plan.features)
        self.last: Features = {}

    def run(
        self, runner: Runner, values: Sequence[int], tensors: Mapping[str, Tensor], inputs: Sequence[Tensor]
    ) -> Any:
        """The output of the sub-network of these sizes and depths."""
        module, found = _noting(runner, self._names)

        def noting(*arguments: Any) -> Any:
            flat, features = module(*arguments)
            self.last = dict(zip(found, features, strict=True))
            return flat

        return runner.run_with(noting, tensors, inputs, (values,))


@lru_cache(maxsize=4)
def _noting(runner: Runner, names: tuple[str, ...]) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The graph with the values of some nodes beside its output, and the names of those that it has."""
    nodes, copied, graph = list(runner.module.graph.nodes), dict[fx.Node, fx.Node](), fx.Graph()
    flat = graph.graph_copy(runner.module.graph, copied)
    kept = {node.meta[CAPTURED]: copied[node] for node in nodes if node.meta.get(CAPTURED) in names}
    graph.output((flat, list(kept.values())))
    return fx.GraphModule(runner.module, graph), tuple(kept)


def distance(
    plan: Plan, subnet: Subnet, own: Features, larger: Subnet, taught: Features, processes: Processes | None = None
) -> Tensor:
    """The square of the difference of features, as a share of the larger one's square; the mean over all features.

    The square error is that of FitNets (arXiv 1412.6550), TinyBERT (1909.10351) and DynaBERT (2004.04037); the share
    lets one weight serve features of any scale. Blocks that the smaller one leaves out are not compared; what a whole
    chain puts out always is.

    Args:
        plan: of the model.
        subnet, own: the smaller sub-network and its features.
        larger, taught: one that contains it, and its features on the same inputs.
        processes: of a run with several, each of which has a part of the batch: how many, and what adds a tensor up
            over them. The mean over processes is then what one with the whole batch would have.

    Returns:
        a scalar in float32; 0 for the same sub-network.
    """
    left_out = _left_out(plan, subnet)
    squares = [
        _squares(own[name], cut(taught[name], dims, larger, subnet))
        for name, dims in plan.features.items()
        if name in own and name not in left_out and own[name].is_floating_point()
    ]
    if not squares:
        return torch.zeros(())
    apart, whole = (torch.stack(column) for column in zip(*squares, strict=True))
    if processes is not None:
        apart, whole = apart * processes.count, processes.added(whole)
    return (apart / whole.clamp_min(SMALLEST)).mean()


def cut(tensor: Tensor, dims: tuple[Dim, ...], larger: Subnet, subnet: Subnet) -> Tensor:
    """The part of a larger sub-network's feature that a smaller one has.

    Args:
        tensor: of the larger one.
        dims: of the full network's.
        larger, subnet: the two.
    """
    sizes = dict(subnet.sizes)
    there = tuple(_resized(dim, dict(larger.sizes)) for dim in dims)
    return take(tensor, shape_text(there), [sizes[axis] for axis in axis_names(there)])


def _squares(own: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the squares of the difference, and of the target."""
    own, target = own.float(), target.detach().float()
    assert own.shape == target.shape, f"features of shapes {tuple(own.shape)} and {tuple(target.shape)}"
    return (own - target).square().sum(), target.square().sum()


def _resized(dim: Dim, sizes: Sizes) -> Dim:
    """The dimension as it is in a sub-network, with its axes as the full ones."""
    match dim:
        case Fixed():
            return dim
        case Named(axis, _):
            return Named(axis, sizes[axis])
        case Product(factors):
            return Product(tuple(_resized(factor, sizes) for factor in factors))
        case Concat(segments):
            return Concat(tuple(_resized(segment, sizes) for segment in segments))


def _left_out(plan: Plan, subnet: Subnet) -> set[str]:
    """What the blocks put out that a sub-network leaves out, but the end of every chain: something comes out there."""
    depths, order = dict(subnet.depths), list(plan.features)
    found = set[str]()
    for chain in plan.chains:
        exits = [block.regions["train"].exit for block in chain.blocks]
        found |= set(exits[depths[chain.name] :]) - set([name for name in order if name in exits][-1:])
    return found
