"""Gradients of a sub-network, landed straight in those of the full parameters.

Autograd's own way through a slice makes a gradient of full size, zeros it, and adds it up: for a quarter of the width
that takes as long as the backward pass itself. Here the sub-network runs on leaves of its own, views of the parameters,
and the gradient of each is added to its place in the parameter's `.grad`: nothing of full size is made on the way.
The gradients are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sortify.slicing import Prefix

if TYPE_CHECKING:
    from sortify.model import SortedModel


class Landing:
    """The leaves of any sub-network of a model.

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
        self._prefixes = {name: Prefix(shapes[name]) for name, _ in model.named_parameters() if name in shapes}

    @contextmanager
    def landed(self) -> Iterator[None]:
        with self._model.standing_in(dict(self._leaves())):
            yield

    def _leaves(self) -> Iterator[tuple[str, Tensor]]:
        """A leaf for every parameter that the active sub-network has a smaller view of."""
        sizes = dict(self._model.active.sizes)
        for name, prefix in self._prefixes.items():
            parameter = self._model.tensors[name]
            if not _plain(parameter):
                continue
            view = prefix.of(parameter.detach(), sizes)
            if view is not None and view.shape != parameter.shape:
                leaf = view.requires_grad_()
                leaf.register_post_accumulate_grad_hook(partial(_land, parameter, prefix, sizes))
                yield name, leaf


def _land(parameter: Tensor, prefix: Prefix, sizes: Mapping[str, int], leaf: Tensor) -> None:
    """Move the gradient of a leaf to its place in that of the parameter."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    place, gradient = prefix.of(parameter.grad, sizes), leaf.grad
    assert place is not None
    assert gradient is not None
    place.add_(gradient)
    leaf.grad = None


def _plain(parameter: Tensor) -> bool:
    """Whether a parameter and its gradient are dense, and nobody else has an eye on the gradient."""
    watched = parameter._backward_hooks or parameter._post_accumulate_grad_hooks
    dense = parameter.grad is None or parameter.grad.layout == torch.strided
    trained = parameter.requires_grad and parameter.is_leaf and type(parameter) is torch.nn.Parameter
    return trained and dense and not watched
