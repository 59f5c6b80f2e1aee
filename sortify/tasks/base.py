"""What all tasks share: the sums that they measure, what training and evaluation ask of them, and checks of targets.

Shapes: B samples, C classes, N rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from sortify.errors import DataError
from sortify.tasks.inputs import Inputs

IGNORED = -100
"""Targets with this value count for nothing, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True)
class Totals:
    """Sums over targets, so that parts of a batch, or batches, add up exactly.

    Attributes:
        loss: sum of the losses.
        count: targets that count.
        sums: whatever else the metrics are made of, by name, such as right answers; of any shape.
    """

    loss: Tensor
    count: Tensor
    sums: Mapping[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: Totals) -> Totals:
        sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        return Totals(self.loss + other.loss, self.count + other.count, sums)

    def exact(self) -> Totals:
        """Return the same sums in float64, where they are no integers."""
        return Totals(_wide(self.loss), self.count, {name: _wide(value) for name, value in self.sums.items()})


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


class Task(Protocol):
    """What training and evaluation ask of a task. Implementations are frozen and hold no tensors."""

    @property
    def name(self) -> str:
        """In tables and files."""
        ...

    @property
    def metric(self) -> str:
        """Name of the score; a larger score is better."""
        ...

    def split(self, batch: Any, seed: int = 0) -> tuple[Inputs, Any]:
        """Return the model's inputs and the targets of a batch.

        Args:
            batch: as the loader gives it.
            seed: of whatever the task draws. In training it belongs to the batch's place, alike on all processes;
                0, as in evaluation, draws the same for the same samples each time.
        """
        ...

    def count(self, target: Any) -> Tensor:
        """Return how many targets count."""
        ...

    def loss(self, output: Any, target: Any) -> Tensor:
        """Return the loss of one call's output, summed over the targets that count."""
        ...

    def match(self, output: Any, teacher: Any, target: Any) -> Tensor:
        """Return how far an output is from that of a larger sub-network, summed over the targets that count."""
        ...

    def totals(self, output: Any, target: Any) -> Totals:
        """Return summed loss, count and what the metrics are made of, for one call's output."""
        ...

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Return the means by name: "loss", the score under `metric`, and whatever else is usual."""
        ...


def mean_metrics(task: Task, parts: Iterable[Totals]) -> dict[str, float]:
    """Return a task's metrics over many calls.

    Raises:
        DataError: there is nothing to measure.
    """
    found = list(parts)
    if not sum(int(part.count) for part in found):
        raise DataError("the data has no targets to measure")
    total = found[0]
    for part in found[1:]:
        total = total + part
    return task.metrics(total)


def check_classes(target: Tensor, classes: int | None, task: str) -> None:
    """Refuse targets that are no class numbers of the model, before a device fails on them without a word.

    Only targets in main memory are looked through: elsewhere each look would make the device wait.

    Raises:
        DataError: targets are floats, or outside of 0 to C - 1 and not ignored.
    """
    shape = list(target.shape)
    if target.is_floating_point() or target.is_complex():
        kind = str(target.dtype).removeprefix("torch.")
        raise DataError(f"{task} expects class numbers, got {kind} of shape {shape}; floats are for regression")
    if classes is None or target.device.type != "cpu":
        return
    if not target.numel() or _within(target, classes):
        return
    known = target[target != IGNORED]
    if not known.numel():
        return
    low, high = (int(value) for value in known.aminmax())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        last = classes - 1
        raise DataError(
            f"a target of shape {shape} holds {wrong}; the model has {classes} outputs (0 to {last}; -100 is ignored)"
        )


def _within(target: Tensor, classes: int) -> bool:
    """Say whether all targets are classes, in one pass, which is what is found nearly always."""
    low, high = target.aminmax()
    return int(low) >= 0 and int(high) < classes


def wide_rows(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return `[N, C]` logits in float32 at least, and `[N]` targets.

    Raises:
        DataError: the shapes do not fit.
    """
    if logits.shape[:-1] != target.shape:
        expected = list(logits.shape[:-1])
        shapes = f"model outputs of shape {list(logits.shape)} do not fit targets of shape {list(target.shape)}"
        raise DataError(f"{shapes}; expected class numbers of shape {expected}")
    flat = logits.flatten(0, -2)
    return flat if flat.dtype == torch.float64 else flat.float(), target.flatten().long()


def aligned(values: Tensor, target: Tensor) -> Tensor:
    """Return outputs in the shape of their targets, in float32 at least: `[B, 1]` goes with `[B]`, and the reverse.

    Raises:
        DataError: the shapes do not fit. (torch would stretch one to the other, and compare all with all.)
    """
    if values.shape != target.shape:
        if values.numel() != target.numel() or values.shape[:1] != target.shape[:1] or values.numel() != len(values):
            shapes = f"model outputs of shape {list(values.shape)} do not fit targets of shape {list(target.shape)}"
            raise DataError(f"{shapes}; expected one target for each output")
        values = values.reshape(target.shape)
    return values if values.dtype == torch.float64 else values.float()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Sum cross entropy over the targets that count: `[N, C]` and `[N]`."""
    return functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of each row of `[N, C]` logits from the teacher's, `[N]`, in float32 at least.

    Hinton et al., arXiv 1503.02531, at temperature 1: the gradient is that of the cross-entropy with soft targets.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    own, taught = functional.log_softmax(logits.to(wide), -1), functional.log_softmax(teacher.to(wide), -1)
    return functional.kl_div(own, taught, reduction="none", log_target=True).sum(-1)


def counted(target: Tensor) -> Tensor:
    """Return how many targets are not ignored."""
    return (target != IGNORED).sum()
