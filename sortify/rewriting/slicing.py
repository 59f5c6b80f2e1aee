"""The slice node: the part of a tensor that a sub-network uses.

Nested sub-networks share weights: each axis keeps a prefix. For a plain axis that is a view. Products and
concatenations keep several runs of positions; where they lie is worked out once per sub-network, not per step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from sortify.graph.dims import Dim, active, axes_of, parse_shape, positions, shape_text
from sortify.graph.graphs import register_function

Runs = tuple[tuple[int, int], ...]
FEW_RUNS = 16


def axis_names(dims: tuple[Dim, ...]) -> tuple[str, ...]:
    """The axes that `dims` mention, each once, in order of appearance."""
    return tuple(dict.fromkeys(axis.axis for dim in dims for axis in axes_of(dim)))


def take(tensor: torch.Tensor, shape: str, sizes: list[int]) -> torch.Tensor:
    """The sub-network's part of a tensor.

    Args:
        tensor: full size, or already of the sub-network's size (then returned as it is).
        shape: its dimensions in the language of `sortify.graph.dims`, such as `(heads:12 * 64), hidden:768`.
        sizes: the active size of each axis that `shape` mentions, in order of appearance.

    Returns:
        A view where prefixes are enough, else a new tensor; gradients flow to `tensor`.
    """
    target, cuts = _plan(shape, tuple(sizes))
    if tensor.shape == target:
        return tensor
    for dim, runs in cuts:
        tensor = _cut(tensor, dim, runs)
    return tensor


Place = tuple[tuple[int, int, int], ...]
"""Where a smaller part lies in a tensor, for as long as it is a view: dimension, start and length of each cut."""


class Places:
    """Where the parts of tensors of one shape lie.

    Args:
        dims: the shape.
    """

    def __init__(self, dims: tuple[Dim, ...]) -> None:
        self._shape, self._axes = shape_text(dims), axis_names(dims)

    def of(self, sizes: Mapping[str, int]) -> Place | None:
        """Where a sub-network's part lies; None where it has to be gathered from several places.

        Args:
            sizes: of the axes.
        """
        _, cuts = _plan(self._shape, tuple(sizes[axis] for axis in self._axes))
        return tuple((dim, *runs[0]) for dim, runs in cuts) if all(len(runs) == 1 for _, runs in cuts) else None


def view(tensor: torch.Tensor, place: Place) -> torch.Tensor:
    """The part of a tensor of full size that lies there."""
    sizes, strides, offset = list(tensor.shape), tensor.stride(), tensor.storage_offset()
    for dim, start, length in place:
        sizes[dim] = length
        offset += start * strides[dim]
    return tensor.as_strided(sizes, strides, offset)


def take_copy(tensor: torch.Tensor, shape: str, sizes: list[int]) -> torch.Tensor:
    """Like `take`, but writes to a smaller part never reach the full tensor.

    Running statistics belong to one sub-network: what a smaller one writes while training is dropped. A tensor that is
    of the sub-network's size already is somebody's own.
    """
    part = take(tensor, shape, sizes)
    return part if part is tensor else part.clone()


def _cut(tensor: torch.Tensor, dim: int, runs: Runs) -> torch.Tensor:
    if len(runs) == 1:
        return tensor.narrow(dim, *runs[0])
    if len(runs) <= FEW_RUNS:
        return torch.cat([tensor.narrow(dim, start, length) for start, length in runs], dim)
    return tensor.index_select(dim, _index(runs, tensor.device))


@lru_cache(maxsize=65536)
def _plan(shape: str, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[tuple[int, Runs], ...]]:
    """The target shape, and for every dimension that shrinks the runs of positions to keep."""
    dims = parse_shape(shape)
    known = dict(zip(axis_names(dims), sizes, strict=True))
    kept = {name: list(range(size)) for name, size in known.items()}
    shrunk = [(place, dim) for place, dim in enumerate(dims) if any(known[a.axis] != a.size for a in axes_of(dim))]
    return (
        tuple(active(dim, known) for dim in dims),
        tuple((place, _runs(positions(dim, kept))) for place, dim in shrunk),
    )


def _runs(kept: list[int]) -> Runs:
    runs: list[tuple[int, int]] = []
    for position in kept:
        if runs and sum(runs[-1]) == position:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((position, 1))
    return tuple(runs)


@lru_cache(maxsize=4096)
def _index(runs: Runs, device: torch.device) -> torch.Tensor:
    return torch.cat([torch.arange(start, start + length, device=device) for start, length in runs])


register_function("sortify.take", take)
register_function("sortify.take_copy", take_copy)
