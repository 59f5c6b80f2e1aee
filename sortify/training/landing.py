"""Gradients of a sub-network, landed straight in those of the full parameters.

Autograd's own way through a slice makes a gradient of full size, zeros it, and adds it up: for a quarter of the width
that takes as long as the backward pass itself. Here the gradient of a slice is added to its place in the parameter's
`.grad`, and nothing of full size is made on the way. The gradients are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sortify.network.network import written_statistics
from sortify.rewriting.slicing import Place, Places, view

if TYPE_CHECKING:
    from sortify.models.sorted_model import SortedModel
    from sortify.space.space import Subnet


BUNDLE = 2**20
"""Elements of full parameters whose gradients wait for each other, at most, unless one parameter alone has more."""


class Landing:
    """The way of gradients to the parameters of a model, for any sub-network.

    Parameters keep autograd's own way where a sub-network's part is no view of them (positions that lie apart), where
    something waits for their gradient (hooks, as of optimisers that step in the backward pass), and where they or
    their gradients are no plain tensors (as those of FSDP2, or sparse ones).

    Args:
        model: a sorted model.
    """

    def __init__(self, model: SortedModel) -> None:
        self._parts = [_Part(part) for _, part in model.captured_parts()]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Run the model's active sub-network, forward and backward, inside this block."""
        with ExitStack() as open_parts:
            for part in self._parts:
                open_parts.enter_context(part.landed())
            yield


class _Part:
    """One captured model."""

    def __init__(self, model: SortedModel) -> None:
        self._model = model
        shapes = model.plan.shapes
        written = written_statistics(model.blueprint.programs["train"])
        self._parameters = {name: Places(shapes[name]) for name, _ in model.named_parameters() if name in shapes}
        self._statistics = {name: Places(shapes[name]) for name in written if name in shapes}
        self._dropped = dict[tuple[str, Place], Tensor]()
        self._places = lru_cache(maxsize=256)(self._places_of)

    @contextmanager
    def landed(self) -> Iterator[None]:
        parameters, statistics = self._places(self._model.active)
        sliced = dict(self._sliced(parameters)) if torch.is_grad_enabled() else {}
        if self._model.training and not self._model.norms_frozen:
            sliced |= {name: self._scratch(name, place) for name, place in statistics}
        with self._model.standing_in(sliced):
            yield

    def _places_of(self, subnet: Subnet) -> tuple[list[tuple[str, Place]], ...]:
        """Where a sub-network's part of each parameter, and of each statistic, is a smaller view."""
        sizes = dict(subnet.sizes)
        kinds = (
            {name: places.of(sizes) for name, places in kind.items()} for kind in (self._parameters, self._statistics)
        )
        return tuple([(name, place) for name, place in kind.items() if place] for kind in kinds)

    def _sliced(self, found: Iterable[tuple[str, Place]]) -> Iterator[tuple[str, Tensor]]:
        """The parameters cut to the sub-network."""
        tensors = self._model.tensors
        for bundle in _bundles((name, tensors[name], place) for name, place in found):
            names, parameters, places = zip(*bundle, strict=True)
            yield from zip(names, _Slices.apply(places, *parameters), strict=True)

    def _scratch(self, name: str, place: Place) -> Tensor:
        """Where a norm may write the statistics of a sub-network, which nobody reads: they are dropped."""
        full, known = self._model.tensors[name], self._dropped.get((name, place))
        if known is None or (known.device, known.dtype) != (full.device, full.dtype):
            known = self._dropped[name, place] = view(full, place).clone()
        return known


Placed = tuple[str, Tensor, Place]


def _bundles(placed: Iterable[Placed]) -> Iterator[list[Placed]]:
    """Small parameters that follow each other go together: each call of autograd has its price."""
    bundle, size = list[Placed](), 0
    for each in placed:
        if not _plain(each[1]):
            continue
        bundle.append(each)
        size += each[1].numel()
        if size >= BUNDLE:
            yield bundle
            bundle, size = [], 0
    if bundle:
        yield bundle


class _Slices(torch.autograd.Function):
    """Views of parameters, whose gradients are added to their places in those of the parameters."""

    @staticmethod
    def forward(ctx: Any, places: Sequence[Place], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.parameters, ctx.places = parameters, places
        ctx.set_materialize_grads(False)
        return tuple(view(each.detach(), place) for each, place in zip(parameters, places, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        there, found = list[Tensor](), list[Tensor]()
        for parameter, place, gradient in zip(ctx.parameters, ctx.places, gradients, strict=True):
            if gradient is not None:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                there.append(view(parameter.grad, place))
                found.append(gradient)
        if found:
            torch._foreach_add_(there, found)
        return (None, *(None for _ in gradients))


def _plain(parameter: Tensor) -> bool:
    """Whether a parameter and its gradient are dense, and nobody else has an eye on the gradient."""
    watched = parameter._backward_hooks or parameter._post_accumulate_grad_hooks
    dense = parameter.grad is None or parameter.grad.layout == torch.strided
    trained = parameter.requires_grad and parameter.is_leaf and type(parameter) is torch.nn.Parameter
    return trained and dense and not watched
