"""The sorted update: repeat {draw a sub-network, forward, backward}, then one optimiser step.

SortedNet, arXiv 2309.00255, Algorithm 1. The mean over the draws is taken, not the sum, so that a learning rate
means the same for any number of draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from sortify.batches import mix
from sortify.landing import Landing
from sortify.samplers import Sampler

if TYPE_CHECKING:
    from sortify.model import SortedModel
    from sortify.space import Subnet

BUCKET = 2**24
"""Gradient elements that are sent between processes at once."""


@dataclass(frozen=True)
class Drawn:
    """One draw of an update: a sub-network and its loss (no gradients)."""

    subnet: Subnet
    loss: Tensor


class SortedUpdate:
    """The sorted update for any training loop, in two lines:

        update = SortedUpdate(model, make_sampler("random", model.space, levels, count=4))
        ...
        update(lambda: criterion(model(x), y))      # instead of criterion(model(x), y).backward()
        optimizer.step()

    States: `step` counts the updates made; it is all that has to be kept to go on later, for every draw
    is a function of the seed and the step. Afterwards the sub-network that was active is active again.

    Args:
        model: a sorted model.
        sampler: which sub-networks to draw.
        seed: of the draws; alike on all processes, so that all draw alike.
        accelerator: of a run with several processes; gradients are then averaged over them after the last draw.
            The model must not be wrapped in DistributedDataParallel, which would lose the gradients of
            parameters that only an earlier draw used.
    """

    def __init__(
        self, model: SortedModel, sampler: Sampler, seed: int = 0, accelerator: Accelerator | None = None
    ) -> None:
        self._model = model
        self._sampler = sampler
        self._seed = seed
        self._accelerator = accelerator
        self._landing = Landing(model)
        self.step = 0

    def draw(self) -> list[Subnet]:
        """Return the sub-networks of the next update."""
        generator = torch.Generator().manual_seed(mix(self._seed, "subnets", self.step))
        return self._sampler.draw(generator, self.step)

    def __call__(
        self, loss: Callable[[], Tensor], backward: Callable[[Tensor], object] = Tensor.backward
    ) -> list[Drawn]:
        """Accumulate the gradients of one update.

        Args:
            loss: runs the model and returns the mean loss; called once per draw.
            backward: what to do with the loss, such as scaling it first.

        Returns:
            the draws with their losses, before division by the number of draws.
        """
        subnets, before = self.draw(), self._model.active
        drawn = []
        try:
            for subnet in subnets:
                self._model.activate(subnet)
                with self._landing():
                    value = loss()
                    backward(value / len(subnets))
                drawn.append(Drawn(subnet, value.detach()))
        finally:
            self._model.activate(before)
        if self._accelerator is not None:
            average_gradients(self._model.parameters(), self._accelerator)
        self.step += 1
        return drawn


def average_gradients(parameters: Iterable[Tensor], accelerator: Accelerator) -> None:
    """Average gradients over all processes, in flat buffers; with one process nothing is done.

    A parameter that has a gradient on some processes counts as zero on the others; one that has none anywhere
    is left without.
    """
    if accelerator.num_processes == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    device = trained[0].device if trained else accelerator.device
    present = torch.tensor([parameter.grad is not None for parameter in trained], device=device, dtype=torch.float32)
    anywhere = accelerator.reduce(present, reduction="sum").tolist()
    used = [parameter for parameter, count in zip(trained, anywhere, strict=True) if count]
    for bucket in _buckets(used):
        gradients = [
            parameter.grad if parameter.grad is not None else torch.zeros_like(parameter) for parameter in bucket
        ]
        flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
        parts = flat.split([gradient.numel() for gradient in gradients])
        for parameter, part in zip(bucket, parts, strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape))  # in the parameter's layout


def _buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Group parameters of one type and device into runs of about `BUCKET` elements."""
    kinds = sorted(parameters, key=lambda parameter: (str(parameter.dtype), str(parameter.device)))
    for _, group in groupby(kinds, key=lambda parameter: (parameter.dtype, parameter.device)):
        bucket: list[Tensor] = []
        for parameter in group:
            bucket.append(parameter)
            if sum(member.numel() for member in bucket) >= BUCKET:
                yield bucket
                bucket = []
        if bucket:
            yield bucket
