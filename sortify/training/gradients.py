"""What is done with the gradients of an update: averages over processes, how far they agree, and their conflicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations, groupby

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

BUCKET = 2**24
"""Gradient elements that are sent between processes at once."""
PROBED = 4096
"""Elements of a parameter that are looked at, at most, to see whether gradients agree."""


def average_gradients(parameters: Iterable[Tensor], accelerator: Accelerator) -> None:
    """Average gradients over all processes, in flat buffers; with one process nothing is done.

    A parameter that has a gradient on some processes counts as zero on the others; one that has none anywhere
    is left without. Sharded parameters (FSDP2) are passed over: their gradients are averages already.
    """
    if accelerator.num_processes == 1:
        return
    trained = [each for each in parameters if each.requires_grad and not isinstance(each, DTensor)]
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


class Probe:
    """How far the gradients of the sub-networks of one step agree, where both have any.

    Of every parameter `PROBED` elements are looked at, so that it costs little.

    Args:
        parameters: those that are trained.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        chance = torch.Generator().manual_seed(0)
        self._looked = [
            (each, torch.randint(each.numel(), (min(PROBED, each.numel()),), generator=chance))
            for each in parameters
            if each.requires_grad and each.numel()
        ]
        self._before, self._seen = torch.zeros(0), list[Tensor]()

    def start(self) -> None:
        """Begin a step."""
        self._before, self._seen = self._now(), []

    def add(self) -> None:
        """Look at what the last backward pass has added to the gradients."""
        now = self._now()
        self._seen.append(now - self._before)
        self._before = now

    def agreement(self) -> float | None:
        """The mean cosine of all pairs of the step; None where no pair has anything in common."""
        found = [_cosine(one, other) for one, other in combinations(self._seen, 2)]
        known = [cosine for cosine in found if cosine is not None]
        return sum(known) / len(known) if known else None

    def _now(self) -> Tensor:
        parts = [
            torch.zeros(len(places)) if each.grad is None else each.grad.flatten()[places.to(each.device)].float().cpu()
            for each, places in self._looked
        ]
        return torch.cat(parts) if parts else torch.zeros(0)


def _cosine(one: Tensor, other: Tensor) -> float | None:
    """Of two gradients, over the elements that both of them have."""
    both = (one != 0) & (other != 0)
    size = one[both].norm() * other[both].norm()
    return float(one[both].dot(other[both]) / size) if size > 0 else None


class Projection:
    """Takes the conflict out of the gradients of one step, parameter by parameter.

    Where a new gradient points against the sum of those before it, that sum loses its part along the new one (NASViT,
    ICLR 2022, which does so for the largest and the smaller sub-networks; PCGrad, arXiv 2001.06782). It needs the
    memory of one more set of gradients.

    Args:
        parameters: those that are trained.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = [each for each in parameters if each.requires_grad]
        self._sum: list[Tensor | None] = []

    def start(self) -> None:
        """Begin a step: gradients that are there already count as one."""
        self._sum = self._taken()

    def add(self) -> None:
        """Join what the last backward pass has left as gradients to the sum."""
        self._sum = [_joined(total, new) for total, new in zip(self._sum, self._taken(), strict=True)]

    def finish(self) -> None:
        """Make the sum the gradients."""
        for parameter, total in zip(self._parameters, self._sum, strict=True):
            parameter.grad = total
        self._sum = []

    def _taken(self) -> list[Tensor | None]:
        found = [each.grad for each in self._parameters]
        for each in self._parameters:
            each.grad = None
        return found


def _joined(total: Tensor | None, new: Tensor | None) -> Tensor | None:
    if total is None or new is None:
        return new if total is None else total
    against, size = (total * new).sum(), new.square().sum()
    share = torch.where((against < 0) & (size > 0), against / size, torch.zeros_like(size))
    return total.sub_(new * share).add_(new)
