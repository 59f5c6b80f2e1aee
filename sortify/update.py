"""The sorted update: repeat {draw a sub-network, forward, backward}, then one optimiser step.

SortedNet, arXiv 2309.00255, Algorithm 1. The mean over the draws is taken, not the sum, so that a learning rate
means the same for any number of draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._pytree import tree_map_only

from sortify.batches import mix
from sortify.landing import Landing
from sortify.objectives import Objective, soft_cross_entropy
from sortify.samplers import Sampler

if TYPE_CHECKING:
    from sortify.model import SortedModel
    from sortify.space import Subnet

BUCKET = 2**24
"""Gradient elements that are sent between processes at once."""


Match = Callable[[Any, Any], Tensor]
"""How far an output is from a teacher's: a scalar, in the units of the loss."""


@dataclass(frozen=True)
class Drawn:
    """One sub-network of an update, its loss, and how far it is from its teacher (no gradients)."""

    subnet: Subnet
    loss: Tensor
    apart: Tensor | None = None


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
        objective: what each learns from; by default the loss alone.
        weight: the share of the teacher in the loss of a sub-network that has one; the rest is the loss itself, which
            Scala (arXiv 2412.04786, table 5) found worth keeping.
        match: how far an output is from the teacher's; by default the divergence of the classes of logits `[..., C]`.
        share_batch: whether all sub-networks of a step see the same batch; None for the way of sampler and objective.
            Sub-networks of equal widths that differ in depth then share one forward pass.
    """

    def __init__(
        self,
        model: SortedModel,
        sampler: Sampler,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        *,
        objective: Objective | None = None,
        weight: float = 0.5,
        match: Match = soft_cross_entropy,
        share_batch: bool | None = None,
    ) -> None:
        self._model = model
        self._sampler = sampler
        self._seed = seed
        self._accelerator = accelerator
        self._objective, self._weight, self._match = objective, weight, match
        by_itself = sampler.shares_batch or (objective is not None and objective.shares_batch)
        self._shared = by_itself if share_batch is None else share_batch
        self._landing = Landing(model)
        self.step = 0

    def draw(self) -> list[Subnet]:
        """Return the sub-networks that the next update runs, in their order."""
        generator = torch.Generator().manual_seed(mix(self._seed, "subnets", self.step))
        drawn = self._sampler.draw(generator, self.step)
        return drawn if self._objective is None else self._objective.members(drawn)

    def __call__(
        self, loss: Callable[[], Tensor], backward: Callable[[Tensor], object] = Tensor.backward
    ) -> list[Drawn]:
        """Accumulate the gradients of one update.

        Args:
            loss: runs the model and returns the mean loss; called once per sub-network.
            backward: what to do with the loss, such as scaling it first.

        Returns:
            the sub-networks with their losses, before division by their number.
        """
        subnets, before = self.draw(), self._model.active
        lessons = _Lessons(self._objective, self._match, self._weight)
        drawn = list[Drawn]()
        watch = self._model.register_forward_hook(lessons.watch) if lessons.teaching else nullcontext()
        try:
            with watch:
                for group in self._groups(subnets):
                    drawn += self._group(group, lessons, loss, lambda total: backward(total / len(subnets)))
        finally:
            self._model.activate(before)
        if self._accelerator is not None:
            average_gradients(self._model.parameters(), self._accelerator)
        self.step += 1
        return drawn

    def _groups(self, subnets: list[Subnet]) -> list[list[Subnet]]:
        """Runs of sub-networks of equal widths that see the same batch, and one by one all others."""
        if not self._shared:
            return [[subnet] for subnet in subnets]
        return [list(group) for _, group in groupby(subnets, key=lambda subnet: subnet.sizes)]

    def _group(
        self,
        group: list[Subnet],
        lessons: _Lessons,
        loss: Callable[[], Tensor],
        backward: Callable[[Tensor], object],
    ) -> list[Drawn]:
        """Run sub-networks of equal widths, forward and backward."""
        self._model.activate(group[0])
        drawn, totals = list[Drawn](), list[Tensor]()
        with self._landing(), self._model.together(group):
            for subnet in group:
                self._model.activate(subnet)
                value = loss()
                total, apart = lessons.mixed(subnet, value)
                totals.append(total)
                drawn.append(Drawn(subnet, value.detach(), apart))
            backward(sum(totals[1:], totals[0]))
        return drawn


class _Lessons:
    """What the sub-networks of one step have put out, for those that learn from them."""

    def __init__(self, objective: Objective | None, match: Match, weight: float) -> None:
        self._objective, self._match, self._weight = objective, match, weight
        self._last: Any = None
        self._said: dict[Subnet, Any] = {}
        self.teaching = objective is not None and objective.teaches and weight > 0

    def watch(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """Remember what the model has just put out."""
        self._last = output

    def mixed(self, subnet: Subnet, loss: Tensor) -> tuple[Tensor, Tensor | None]:
        """The loss with the teacher's part in it, and that part alone, where there is a teacher."""
        if self._objective is None or not self.teaching:
            return loss, None
        output, self._last = self._last, None
        teacher = self._objective.teacher(subnet, list(self._said))
        self._said[subnet] = tree_map_only(Tensor, Tensor.detach, output)
        if teacher is None:
            return loss, None
        apart = self._match(output, self._said[teacher])
        return (1 - self._weight) * loss + self._weight * apart, apart.detach()


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
