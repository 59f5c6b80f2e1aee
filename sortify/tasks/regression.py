"""Regression: numbers as targets.

Shapes: B samples, K numbers per sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sortify.errors import DataError
from sortify.tasks.base import Totals, aligned
from sortify.tasks.inputs import CallShape, Inputs, Vocabulary, logits_of, split_batch

ROUNDING = 1e-14
"""A spread of targets that is smaller than this share of their squares is rounding: they are all the same."""


@dataclass(frozen=True)
class Regression:
    """Numbers: output and targets `[B]` or `[B, K]`, or of any one shape; mean squared error and R^2.

    Attributes:
        call: how the model is called.
    """

    name: ClassVar[str] = "regression"
    metric: ClassVar[str] = "r2"
    expects: ClassVar[str] = "[batch] or [batch, numbers]"
    ranks: ClassVar[tuple[int, ...]] = ()

    call: CallShape = field(default_factory=CallShape)

    @classmethod
    def fitted(cls, call: CallShape, logits: Tensor, vocabulary: Vocabulary | None) -> Self:
        """Make the task for a model that answers its example inputs with these values."""
        return cls(call)

    def split(self, batch: Any, seed: int = 0) -> tuple[Inputs, Tensor]:
        """Take `(inputs, numbers)` or a dict with labels apart."""
        given, target = split_batch(batch)
        if target is None:
            raise DataError("a batch has no targets; expected (inputs, targets) or a dict with 'labels'")
        return self.call.inputs(given), target if target.is_floating_point() else target.float()

    def count(self, target: Tensor) -> Tensor:
        """Return how many numbers there are."""
        return torch.tensor(target.numel(), device=target.device)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Sum the squared errors."""
        return (aligned(logits_of(output), target) - target).square().sum()

    def match(self, output: Any, teacher: Any, target: Tensor) -> Tensor:
        """Sum the squared differences of two outputs."""
        return self.loss(output, aligned(logits_of(teacher), target))

    def totals(self, output: Any, target: Tensor) -> Totals:
        """Sum errors and targets, each of the K numbers apart, in float64."""
        values, truth = (_columns(each).double() for each in (aligned(logits_of(output), target), target))
        error = values - truth
        sums = {"absolute": error.abs(), "squared": error.square(), "truth": truth, "truth_squared": truth.square()}
        found = {name: value.sum(0) for name, value in sums.items()}
        found["samples"] = torch.tensor(len(truth), device=truth.device)
        return Totals(found["squared"].sum(), self.count(target), found)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Return loss (mean squared error), R^2 (its mean over the K numbers), RMSE and MAE.

        R^2 is 1 minus the squared error over that of always saying the mean of the test targets: 1 is perfect, 0 is no
        better than that mean.
        """
        sums, count = totals.sums, int(totals.count)
        spread = (sums["truth_squared"] - sums["truth"].square() / sums["samples"]).clamp_min(0)
        spread = spread.masked_fill(spread < ROUNDING * sums["truth_squared"], 0)
        unexplained = torch.where(spread > 0, sums["squared"] / spread, (sums["squared"] > 0).double())
        loss, absolute = float(totals.loss) / count, float(sums["absolute"].sum()) / count
        return {"loss": loss, "r2": float((1 - unexplained).mean()), "rmse": math.sqrt(loss), "mae": absolute}


def _columns(values: Tensor) -> Tensor:
    """Return `[B, K]`; numbers of pictures and the like count as one column."""
    return values if values.dim() == 2 else values.reshape(-1, 1)
