"""Importance: a score for every unit of every axis, and for every block of every chain.

Three measures:

- magnitude: of a unit the length (L2 norm) of its slice of each parameter, relative to the mean of that parameter's
  slices; of a block that of its own parameters;
- activation: of a unit the mean |output| of the operations whose weights carry the axis, relative in the same way; of
  a block how much it changes what goes through it, relative to what comes out;
- taylor: the sum of |weight * gradient| over the slices of a unit, or over a block's own parameters (first order;
  arXiv 1906.10771, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sortify.errors import DataError
from sortify.graph.dims import Concat, Dim, Fixed, Named, Product, axes_of
from sortify.models.calibration import bind_batch
from sortify.network.network import used_tensors
from sortify.ordering.activity import Watch

if TYPE_CHECKING:
    from sortify.models.sorted_model import SortedModel

MEASURES = ("magnitude", "activation", "taylor")

Scores = dict[str, Tensor]
Loss = Callable[[Any, Any], Tensor]
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Importance:
    """Scores of a model: axis -> `[units]`, chain -> `[blocks]`, float64, on the CPU; higher is more important."""

    units: Scores
    blocks: Scores


# -- one score per unit


@lru_cache(maxsize=4096)
def owners(dim: Dim, axis: str) -> tuple[tuple[int, ...], ...]:
    """For each position of a dimension, the units of the axis without which it would not be there."""
    match dim:
        case Fixed(size):
            return ((),) * size
        case Named(name, size):
            return tuple((unit,) if name == axis else () for unit in range(size))
        case Product(factors):
            result: tuple[tuple[int, ...], ...] = ((),)
            for factor in factors:
                inner = owners(factor, axis)
                result = tuple(tuple(dict.fromkeys((*outer, *units))) for outer in result for units in inner)
            return result
        case Concat(segments):
            return tuple(units for segment in segments for units in owners(segment, axis))


def per_unit(score: Tensor, dims: Sequence[Dim], axis: str, size: int) -> Tensor:
    """Sum the score of each element of a tensor over the slices of each unit of an axis.

    Args:
        score: of the tensor's shape, not negative.
        dims: the tensor's dimensions.
        axis: which axis; size: its number of units.

    Returns:
        `[size]`, float64. Where the axis is in two dimensions, both slices of a unit count, and so does their crossing.
    """
    total = torch.zeros(size, dtype=torch.float64, device=score.device)
    for place, dim in enumerate(dims):
        pairs = [(position, unit) for position, units in enumerate(owners(dim, axis)) for unit in units]
        if pairs:
            others = [other for other in range(score.dim()) if other != place]
            line = score.sum(others, dtype=torch.float64) if others else score.double()
            positions, units = torch.tensor(pairs, device=score.device).unbind(1)
            total.index_add_(0, units, line[positions])
    return total


class _Tally:
    """Scores of all axes, summed over tensors."""

    def __init__(self, model: SortedModel) -> None:
        self._sizes = {name: axis.size for name, axis in model.axes.items()}
        self._sums: Scores = {}
        self._counts: dict[str, int] = {}

    def add(self, score: Tensor, dims: Sequence[Dim], relative: bool, root: bool = False) -> None:
        """Count one tensor's score for every axis that it carries; `relative` to its mean over units."""
        for axis in dict.fromkeys(named.axis for dim in dims for named in axes_of(dim)):
            units = per_unit(score.detach(), dims, axis, self._sizes[axis]).cpu()
            units = units.sqrt() if root else units
            mean = float(units.mean())
            if relative and mean == 0:
                continue
            self._sums[axis] = self._sums.get(axis, 0) + (units / mean if relative else units)
            self._counts[axis] = self._counts.get(axis, 0) + 1

    def means(self) -> Scores:
        return {axis: total / self._counts[axis] for axis, total in self._sums.items()}


# -- measures


def measure(
    model: SortedModel,
    by: str = "magnitude",
    data: Iterable[Any] | None = None,
    batches: int = 20,
    loss: Loss | None = None,
    progress: Progress | None = None,
) -> Importance:
    """The importance of every unit of every axis and of every block, in the full network.

    Raises:
        DataError: unknown measure; the measure needs data, and none is given.
    """
    if by not in MEASURES:
        raise DataError(f"order by {by!r}: expected one of {', '.join(MEASURES)}")
    if by == "magnitude":
        squares = {name: tensor.detach().double().square() for name, _, tensor in _parameters(model)}
        tally = _Tally(model)
        for name, dims, _ in _parameters(model):
            tally.add(squares[name], dims, relative=True, root=True)
        lengths = {chain: total.sqrt() for chain, total in _of_blocks(model, squares).items()}
        return Importance(tally.means(), lengths)
    if data is None:
        raise DataError(f"order by {by}: needs data to measure on; give data=loader, or order by 'magnitude'")
    if batches < 1:
        raise DataError(f"order by {by}: batches is {batches}, expected 1 or more")
    with _full_network(model):
        counted = _counted(data, batches, by, progress)
        return _activation(model, counted) if by == "activation" else _taylor(model, counted, loss or task_loss)


def _of_blocks(model: SortedModel, scores: Mapping[str, Tensor]) -> Scores:
    """Sum the scores of each block's own parameters: chain -> `[blocks]`."""
    found = {}
    for prefix, part in model.captured_parts():
        users = {
            name: {user.name for user in hole.users}
            for hole, name in used_tensors(part.blueprint.programs["eval"]).items()
        }
        for chain in part.plan.chains:
            nodes = [set(block.regions["eval"].nodes) for block in chain.blocks]
            own = [[prefix + name for name, where in users.items() if where <= inside] for inside in nodes]
            sums = [sum(float(scores[name].sum()) for name in names if name in scores) for names in own]
            found[prefix + chain.name] = torch.tensor(sums, dtype=torch.float64)
    return found


def _counted(data: Iterable[Any], batches: int, by: str, progress: Progress | None) -> Iterator[Any]:
    done = 0
    for batch in islice(data, batches):
        yield batch
        done += 1
        if progress is not None:
            progress(done, batches)
    if not done:
        raise DataError(f"order by {by}: the loader yields no batch")


def _parameters(model: SortedModel) -> list[tuple[str, Sequence[Dim], Tensor]]:
    """Every floating-point parameter that carries an axis: name, dimensions, itself."""
    return [
        (name, model.plan.shapes[name], tensor)
        for name, tensor in model.tensors.items()
        if name in model.plan.shapes and isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
    ]


@contextmanager
def _full_network(model: SortedModel) -> Iterator[None]:
    """The full network in eval mode; modes and the active sub-network come back."""
    modes = {child: child.training for child in model.modules()}
    model.eval()
    try:
        with model.using():
            yield
    finally:
        for child, training in modes.items():
            child.training = training


def _activation(model: SortedModel, batches: Iterable[Any]) -> Importance:
    tally, watches = _Tally(model), {}
    for prefix, part in model.captured_parts():
        program = part.blueprint.programs["eval"]
        watch = Watch(program, part.blueprint.plain_runners["eval"].module, part.plan.chains)
        watch.watch({name: model.plan.shapes[prefix + name] for name in part.plan.shapes})
        watches[prefix] = watch, part
    with torch.no_grad():
        for batch in batches:
            for prefix, inputs in model.captured_inputs(batch):
                watch, part = watches[prefix]
                part.blueprint.plain_runners["eval"].run_with(watch.run, part.tensors, inputs)
    blocks = {}
    for prefix, (watch, part) in watches.items():
        for node, line in watch.sums.items():
            tally.add(line, (watch.dims[node],), relative=True)
        for chain in part.plan.chains:
            changes = [watch.changes[block.regions["eval"].exit] for block in chain.blocks]
            blocks[prefix + chain.name] = torch.tensor(changes, dtype=torch.float64)
    return Importance(tally.means(), blocks)


def _taylor(model: SortedModel, batches: Iterable[Any], loss: Loss) -> Importance:
    """Gradients are taken aside: `.grad` and `requires_grad` stay as they were."""
    carried = _parameters(model)
    weights = [tensor for _, _, tensor in carried]
    wanted = [tensor.requires_grad for tensor in weights]
    totals = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in weights]
    count = 0
    try:
        for tensor in weights:
            tensor.requires_grad_(True)
        for batch in batches:
            args, kwargs = model.signature.call(bind_batch(model, batch))
            with torch.enable_grad():
                value = loss(model(*args, **kwargs), _target(model, batch))
                gradients = torch.autograd.grad(value, weights, allow_unused=True)
            for total, tensor, gradient in zip(totals, weights, gradients, strict=True):
                if gradient is not None:
                    total += (tensor.detach() * gradient).abs()
            count += 1
    finally:
        for tensor, before in zip(weights, wanted, strict=True):
            tensor.requires_grad_(before)
    tally = _Tally(model)
    for (_, dims, _), total in zip(carried, totals, strict=True):
        tally.add(total / count, dims, relative=False)
    totals_of = {name: total / count for (name, _, _), total in zip(carried, totals, strict=True)}
    return Importance(tally.means(), _of_blocks(model, totals_of))


def _target(model: SortedModel, batch: Any) -> Any:
    """The second of a pair, or the labels of a mapping, on the model's device."""
    target = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        target = batch[1]
    return target.to(next(iter(model.tensors.values())).device) if isinstance(target, Tensor) else target


def task_loss(output: Any, target: Any) -> Tensor:
    """The model's own loss (`output.loss`), or the cross-entropy of logits `[..., classes]` and classes `[...]`."""
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    logits = getattr(output, "logits", leaves[0])
    if not isinstance(target, Tensor) or target.is_floating_point() or target.shape != logits.shape[:-1]:
        got = f"{target.dtype} {list(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise DataError(
            f"order by taylor: expected class numbers of shape {list(logits.shape[:-1])} as targets, got {got};"
            " give batches as (inputs, target), or loss=, a function of (outputs, target)"
        )
    return nn.functional.cross_entropy(logits.flatten(0, -2), target.flatten())
