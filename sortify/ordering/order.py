"""Importance order: the units of every axis sorted, the most important first, so that small sub-networks keep those.

A permutation of an axis, applied to every tensor that carries it, leaves the full network's function as it is; which
units a sub-network keeps changes. So does the order in which blocks are given up, see `block_order`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sortify.difference import difference
from sortify.errors import DataError, ProofError
from sortify.graph.dims import Dim, axes_of
from sortify.network.blueprint import Blueprint
from sortify.network.extract import pick
from sortify.network.network import followed
from sortify.ordering.block_order import in_order
from sortify.ordering.importance import Loss, Progress, measure
from sortify.proof.proof import DOUBLE, SINGLE
from sortify.proof.trials import Lazily

if TYPE_CHECKING:
    from sortify.models.sorted_model import SortedModel

NEARLY = 1e-5  # relative: units this close count as equal, so that rounding reorders nothing


@dataclass(frozen=True)
class Ordered:
    """What `SortedModel.order` did.

    Attributes:
        by: the measure.
        orders: axis -> where each unit came from: `orders[axis][0]` was the most important unit's place.
        scores: axis -> the units' scores in the new order.
        left: axes without a score (nothing that carries them can be measured) or whose order a caller sees
            in an output; they stay as they were.
        error: the largest difference of the outputs before and after; tolerance: what is allowed.
        blocks: chain -> its blocks in the new order, where these were ranked: the last is the first to be given up.
        left_blocks: chain -> why its blocks stay in the order in which they run, or why the first one stays first.
    """

    by: str
    orders: Mapping[str, tuple[int, ...]]
    scores: Mapping[str, tuple[float, ...]]
    left: tuple[str, ...]
    error: float
    tolerance: float
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_blocks: Mapping[str, str] = field(default_factory=dict)


def order(
    model: SortedModel,
    by: str,
    data: Iterable[Any] | None,
    batches: int,
    loss: Loss | None,
    progress: Progress | None,
    blocks: bool = False,
) -> Ordered:
    """Sort every axis of a model in place; see `SortedModel.order`."""
    if blocks and any(prefix for prefix, _ in model.captured_parts()):
        raise DataError("order: blocks of a model in parts cannot be ranked; leave blocks=True out")
    if any(tensor.is_meta for tensor in model.tensors.values()):
        raise ProofError("order: the weights are on the meta device, without values; load weights first")
    importance = measure(model, by, data, batches, loss, progress)
    found = importance.units
    shown = {axis for prefix, part in model.captured_parts() for axis in _shown(prefix, part.blueprint)}
    orders = {axis: ranking(units) for axis, units in found.items() if axis not in shown}
    chosen = {chain: ranking(own) for chain, own in importance.blocks.items()} if blocks else {}
    blueprint, left = in_order(model.blueprint, chosen) if blocks else (None, {})
    error, tolerance = arrange(model, orders)
    if blueprint is not None:
        model.record_block_order(blueprint)
    model.record_order(by)
    return Ordered(
        by,
        {axis: tuple(places) for axis, places in orders.items()},
        {axis: tuple(found[axis][places].tolist()) for axis, places in orders.items()},
        tuple(axis for axis in model.axes if axis not in orders),
        error,
        tolerance,
        {name: tuple(block.name for block in model.chains[name].blocks) for name in chosen},
        left,
    )


def _shown(prefix: str, blueprint: Blueprint) -> Iterator[str]:
    """The axes that outputs carry: the caller would see another order."""
    for shapes in blueprint.plan.outputs.values():
        yield from (prefix + axis.axis for dims in shapes.values() for dim in dims for axis in axes_of(dim))


def ranking(units: Tensor) -> list[int]:
    """The places of the units from the highest score to the lowest; units that are in order already stay."""
    slack = NEARLY * float(units.abs().max())
    if bool((units[:-1] >= units[1:] - slack).all()):
        return list(range(len(units)))
    return [int(place) for place in units.argsort(descending=True, stable=True)]


# -- moving the units


def arrange(model: SortedModel, orders: Mapping[str, Sequence[int]]) -> tuple[float, float]:
    """Permute axes in place in every tensor that carries them, and check that outputs stay what they were.

    Returns:
        The largest difference of the outputs on the example inputs, and what is allowed.

    Raises:
        ProofError: the outputs change; all tensors are then as they were.
    """
    tensors, shapes = model.tensors, model.plan.shapes
    before = [(part, *_outputs(part)) for _, part in model.captured_parts()]
    back = {axis: sorted(range(len(places)), key=places.__getitem__) for axis, places in orders.items()}
    moved: list[str] = []
    worst = 0.0, DOUBLE
    try:
        for name in dict.fromkeys(name for name in tensors if name in shapes):
            _move(tensors[name], shapes[name], orders)
            moved.append(name)
        for part, expected, tolerance in before:
            error = difference(expected, _outputs(part)[0])
            worst = max(worst, (error, tolerance), key=lambda pair: pair[0] / pair[1])
            if not error <= tolerance:
                raise ProofError(
                    f"order: outputs change by {error:.3g}, allowed {tolerance:.3g}; the weights are as they were."
                    " Run model.verify() to see which check fails"
                )
    except BaseException:
        for name in moved:
            _move(tensors[name], shapes[name], back)
        raise
    model.forget_statistics()
    return worst


def _move(tensor: Tensor, dims: Sequence[Dim], orders: Mapping[str, Sequence[int]]) -> None:
    """Permute a tensor in place, and its gradient with it."""
    kept = {axis: list(places) for axis, places in orders.items()}
    with torch.no_grad():
        for each in (tensor, tensor.grad) if isinstance(tensor, nn.Parameter) else (tensor,):
            if each is not None:
                each.copy_(pick(each, dims, kept))


def _outputs(model: SortedModel) -> tuple[Any, float]:
    """The full network's outputs on its examples and their tolerance: in float64 where it runs in that."""
    runner, full = model.blueprint.sorted_runners["eval"], (model.space.full.values,)

    def run(dtype: torch.dtype) -> Any:
        def change(_: str, tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.clone()

        inputs = [change("", each) for each in followed(model.example_tensors, model.tensors)]
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            return runner(full, Lazily(model.tensors, change), inputs)

    try:
        found = run(torch.float64)
    except RuntimeError:  # as of a tensor that the model makes in a dtype of its own
        return run(torch.float32), SINGLE
    leaves = torch.utils._pytree.tree_leaves(found)
    floats = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    nodes = model.blueprint.programs["eval"].graph.nodes
    small = {torch.float16, torch.bfloat16, torch.float32}
    casts = any(v in small for n in nodes for v in (*n.args, *n.kwargs.values()) if isinstance(v, torch.dtype))
    return found, DOUBLE if not casts and all(leaf.dtype == torch.float64 for leaf in floats) else SINGLE
