"""Importance order: the units of every axis sorted, the most important first, so that small sub-networks keep those.

A permutation of an axis, applied to every tensor that carries it, leaves the full network's function as it is; which
units a sub-network keeps changes. Three measures of a unit:

- magnitude: the length (L2 norm) of its slice of each parameter, relative to the mean of that parameter's slices;
- activation: the mean |output| of the operations whose weights carry the axis, relative in the same way;
- taylor: the sum of |weight * gradient| over its slices (first order; arXiv 1906.10771, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from sortify.blueprint import Blueprint
from sortify.calibration import bind_batch
from sortify.difference import difference
from sortify.dims import Concat, Dim, Fixed, Named, Product, axes_of
from sortify.errors import DataError, ProofError
from sortify.extract import pick
from sortify.network import argument, used_tensors
from sortify.proof import DOUBLE, SINGLE, Lazily

if TYPE_CHECKING:
    from sortify.model import SortedModel

MEASURES = ("magnitude", "activation", "taylor")
NEARLY = 1e-5  # relative: units this close count as equal, so that rounding reorders nothing

Scores = dict[str, Tensor]
Loss = Callable[[Any, Any], Tensor]
Progress = Callable[[int, int], object]

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
    torch.ops.aten.batch_norm.default: ("weight", 0, 1),
    torch.ops.aten.instance_norm.default: ("weight", 0, 1),
    torch.ops.aten.group_norm.default: ("weight", 0, 1),
    torch.ops.aten.layer_norm.default: ("weight", -1, -1),
    torch.ops.aten.rms_norm.default: ("weight", -1, -1),
}


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
    """

    by: str
    orders: Mapping[str, tuple[int, ...]]
    scores: Mapping[str, tuple[float, ...]]
    left: tuple[str, ...]
    error: float
    tolerance: float


def order(
    model: SortedModel,
    by: str,
    data: Iterable[Any] | None,
    batches: int,
    loss: Loss | None,
    progress: Progress | None,
) -> Ordered:
    """Sort every axis of a model in place; see `SortedModel.order`."""
    if any(tensor.is_meta for tensor in model.tensors.values()):
        raise ProofError("order: the weights are on the meta device, without values; load weights first")
    found = scores(model, by, data, batches, loss, progress)
    shown = {axis for prefix, part in model.captured_parts() for axis in _shown(prefix, part.blueprint)}
    orders = {axis: ranking(units) for axis, units in found.items() if axis not in shown}
    error, tolerance = arrange(model, orders)
    return Ordered(
        by,
        {axis: tuple(places) for axis, places in orders.items()},
        {axis: tuple(found[axis][places].tolist()) for axis, places in orders.items()},
        tuple(axis for axis in model.axes if axis not in orders),
        error,
        tolerance,
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


def scores(
    model: SortedModel,
    by: str = "magnitude",
    data: Iterable[Any] | None = None,
    batches: int = 20,
    loss: Loss | None = None,
    progress: Progress | None = None,
) -> Scores:
    """The importance of every unit of every axis of the full network: axis -> `[units]`, float64, on the CPU.

    Raises:
        DataError: unknown measure; the measure needs data, and none is given.
    """
    if by not in MEASURES:
        raise DataError(f"order by {by!r}: expected one of {', '.join(MEASURES)}")
    if by == "magnitude":
        tally = _Tally(model)
        for _, dims, parameter in _parameters(model):
            tally.add(parameter.detach().double().square(), dims, relative=True, root=True)
        return tally.means()
    if data is None:
        raise DataError(f"order by {by}: needs data to measure on; give data=loader, or order by 'magnitude'")
    if batches < 1:
        raise DataError(f"order by {by}: batches is {batches}, expected 1 or more")
    with _full_network(model):
        counted = _counted(data, batches, by, progress)
        return _activation(model, counted) if by == "activation" else _taylor(model, counted, loss or task_loss)


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


class _Watch(fx.Interpreter):
    """Runs a graph and adds up the mean |output| of the given nodes along one dimension each."""

    def __init__(self, module: fx.GraphModule, places: Mapping[fx.Node, int]) -> None:
        super().__init__(module)
        self.places = places
        self.sums: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.places:
            others = [d for d in range(value.dim()) if d != self.places[n] % value.dim()]
            line = value.abs().mean(others, dtype=torch.float64) if others else value.abs().double()
            self.sums[n] = self.sums.get(n, 0) + line
        return value


def _activation(model: SortedModel, batches: Iterable[Any]) -> Scores:
    tally, watches = _Tally(model), {}
    for prefix, part in model.captured_parts():
        program = part.blueprint.programs["eval"]
        names, places, dims = used_tensors(program), {}, {}
        for node in program.graph.nodes:
            weight, own, there = PRODUCES.get(node.target, ("", 0, 0))
            name = names.get(argument(node, weight)) if weight else None
            if name is not None and name in part.plan.shapes:
                places[node], dims[node] = there, model.plan.shapes[prefix + name][own]
        watches[prefix] = (_Watch(part.blueprint.plain_runners["eval"].module, places), dims, part)
    with torch.no_grad():
        for batch in batches:
            for prefix, inputs in model.captured_inputs(batch):
                watch, _, part = watches[prefix]
                part.blueprint.plain_runners["eval"].run_with(watch.run, part.tensors, inputs)
    for watch, dims, _ in watches.values():
        for node, line in watch.sums.items():
            tally.add(line, (dims[node],), relative=True)
    return tally.means()


def _taylor(model: SortedModel, batches: Iterable[Any], loss: Loss) -> Scores:
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
    return tally.means()


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
    like = next((t for t in model.tensors.values() if t.is_floating_point()), None)
    device = like.device if like is not None else torch.device("cpu")
    runner, full = model.blueprint.sorted_runners["eval"], (model.space.full.values,)

    def run(dtype: torch.dtype) -> Any:
        def change(_: str, tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.clone()

        inputs = [change("", t.to(device)) for t in model.example_tensors]
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
