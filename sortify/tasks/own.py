"""Tasks of one's own: a loss function with scores, or an object with everything that a task has.

Shapes: B samples.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sortify.data.batches import length
from sortify.errors import DataError, TrainingError
from sortify.tasks.base import Task, Totals
from sortify.tasks.inputs import CallShape, Inputs, call_shape, split_batch
from sortify.tasks.own_functions import called_with, imported

if TYPE_CHECKING:
    from sortify.data.load import Data
    from sortify.models.sorted_model import SortedModel

Measure = Callable[[Any, Any], Tensor]
"""A function of (output, target): a scalar, the mean over the samples, or `[B]` or `[B, ...]`, values for each."""

PARTS = ("name", "metric", "split", "count", "loss", "totals", "metrics")


@dataclass(frozen=True)
class OwnTask:
    """A task made of functions of (output, target).

    The output is what the model returns, the target what stands beside the inputs in a batch; without any, the inputs
    themselves are the target. Means over test batches are weighted by the number of samples.

    Attributes:
        criterion: the loss; see `Measure`.
        scores: further measures by name; the first is the score, so larger must be better. Without any, the score is
            minus the loss.
        matching: how far an output is from a teacher's, a function of (output, teacher), for distillation.
        name: in tables and files.
        call: how the model is called.
    """

    criterion: Measure
    scores: Mapping[str, Measure] = field(default_factory=dict)
    matching: Measure | None = None
    name: str = ""
    call: CallShape = field(default_factory=CallShape)

    @property
    def metric(self) -> str:
        """Name of the score."""
        return next(iter(self.scores), "negative_loss")

    def split(self, batch: Any, seed: int = 0) -> tuple[Inputs, Any]:
        """Take `(inputs, targets)`, a dict with labels apart, or inputs alone."""
        given, target = split_batch(batch)
        return self.call.inputs(given), given if target is None else target

    def count(self, target: Any) -> Tensor:
        """Return the number of samples."""
        device = next((leaf.device for leaf in tree_leaves(target) if isinstance(leaf, Tensor)), None)
        return torch.tensor(length(target), device=device)

    def loss(self, output: Any, target: Any) -> Tensor:
        """Return the loss, summed over samples."""
        return self._summed("the loss", self.criterion(output, target), length(target))

    def match(self, output: Any, teacher: Any, target: Any) -> Tensor:
        """Return how far an output is from its teacher's, summed over samples."""
        if self.matching is None:
            raise TrainingError(f"task {self.name}: to learn from larger sub-networks it needs OwnTask(matching=...)")
        return self._summed("matching", self.matching(output, teacher), length(target))

    def totals(self, output: Any, target: Any) -> Totals:
        """Return loss and scores, summed over samples."""
        samples = length(target)
        sums = {name: self._summed(name, score(output, target), samples) for name, score in self.scores.items()}
        return Totals(self.loss(output, target), self.count(target), sums)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Return the means of loss and scores."""
        count = int(totals.count)
        loss = float(totals.loss) / count
        scores = {name: float(value) / count for name, value in totals.sums.items()}
        return {"loss": loss, **(scores or {"negative_loss": -loss})}

    def _summed(self, what: str, values: Any, samples: int) -> Tensor:
        if isinstance(values, Tensor) and values.dim() == 0:
            return values * samples
        if isinstance(values, Tensor) and len(values) == samples:
            return values.reshape(samples, -1).mean(1, dtype=torch.promote_types(values.dtype, torch.float32)).sum()
        got = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise DataError(
            f"task {self.name}: {what} of {samples} samples is {got}; expected one number, or [{samples}, ...]"
        )


def own_task(text: str, data: Data, model: SortedModel) -> Task:
    """Make the task that `package.module:name` names.

    The name is a task, or a function that returns one (it is given `data` and `model` if it takes them), or a loss
    function of (output, target).

    Raises:
        DataError: there is no such name, or it is no task.
    """
    found = imported(text, "the name of a task, or package.module:function")
    if isinstance(found, type) or not _is_task(found):
        if not callable(found):
            raise DataError(f"{text} is a {type(found).__name__}; expected a task, or a function that returns one")
        found = OwnTask(found) if _is_criterion(found) else called_with(found, data=data, model=model)
    if not _is_task(found):
        missing = ", ".join(part for part in PARTS if not hasattr(found, part))
        raise DataError(f"{text} gave {type(found).__name__}, which lacks {missing}; expected such as sortify.OwnTask")
    try:
        inspect.signature(found.split).bind(None, 0)
    except TypeError:
        raise DataError(f"{text}: its split must take (batch, seed)") from None
    if not isinstance(found, OwnTask):
        return found  # type: ignore[no-any-return]
    call = call_shape(model) if found.call == CallShape() else found.call
    return replace(found, name=found.name or text, call=call)


def _is_task(found: Any) -> bool:
    return all(hasattr(found, part) for part in PARTS)


def _is_criterion(function: Callable[..., Any]) -> bool:
    """Say whether a function takes (output, target), not data and model."""
    taken = inspect.signature(function).parameters.values()
    needed = [each.name for each in taken if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    return len(needed) == 2 and not set(needed) <= {"data", "model"}
