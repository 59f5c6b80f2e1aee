"""Calls of an extracted model at the example inputs' sizes and at others, with what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sortify.capture.prepare import mode_of
from sortify.network.extract import ExtractedModel


@dataclass(frozen=True, eq=False)
class Call:
    """One call and its answer.

    Attributes:
        tensors: the tensor inputs, in captured order.
        args, kwargs: the same as the model takes them.
        output: what the model answers in evaluation mode.
    """

    tensors: tuple[Tensor, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors of the output, in order."""
        return tensors_of(self.output)

    def __str__(self) -> str:
        return ", ".join(str(list(tensor.shape)) for tensor in self.tensors)


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a nested value, in order."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def calls_of(model: ExtractedModel, examples: Sequence[Tensor]) -> list[Call]:
    """The example call, and for every open size a call in which it is another, where the model serves it.

    Open dimensions that are equally large in the example are taken for the same size.
    """
    with mode_of(model, training=False), torch.no_grad():
        found = [_call(model, examples)]
        for size in _open_sizes(model, examples):
            for other in (size - 1, size + 1) if size > 2 else (size + 1,):  # tables of positions end somewhere
                try:
                    found.append(_call(model, _resized(model, examples, size, other)))
                except Exception:  # whatever the model says of sizes that it does not serve
                    continue
                break
    return found


def _call(model: ExtractedModel, tensors: Sequence[Tensor]) -> Call:
    args, kwargs = model.signature.call(tensors)
    return Call(tuple(tensors), args, kwargs, model(*args, **kwargs))


def _open_dims(model: ExtractedModel, examples: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """The number of the input and the dimension, of every dimension that may have any size."""
    for number, (spec, tensor) in enumerate(zip(model.signature.specs, examples, strict=True)):
        yield from ((number, dim) for dim in range(tensor.dim()) if spec.shape[dim] is None)


def _open_sizes(model: ExtractedModel, examples: Sequence[Tensor]) -> list[int]:
    sizes = [examples[number].shape[dim] for number, dim in _open_dims(model, examples)]
    return [size for size in dict.fromkeys(sizes) if size]


def _resized(model: ExtractedModel, examples: Sequence[Tensor], size: int, other: int) -> list[Tensor]:
    """The inputs with all open dimensions of one size repeated or cut to another."""
    found = list(examples)
    for number, dim in _open_dims(model, examples):
        if examples[number].shape[dim] == size:
            places = torch.arange(other, device=examples[number].device) % size
            found[number] = found[number].index_select(dim, places)
    return found
