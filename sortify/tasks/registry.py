"""Tasks by name, and which one fits: inputs, targets, the loss and the score.

A task never asks what kind of model it serves. It is chosen by name, by the data's hint, or by rules on the shapes of
the model's output and of the targets: `CHOICES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sortify.data.batches import preserved_chance
from sortify.errors import DataError
from sortify.tasks.base import Task
from sortify.tasks.classes import Classification, LanguageModelling, MultiLabel, TokenClassification
from sortify.tasks.inputs import call_shape, example_logits, split_batch
from sortify.tasks.masked import MaskedLanguageModelling
from sortify.tasks.own import own_task
from sortify.tasks.regression import Regression
from sortify.tasks.segmentation import Segmentation

if TYPE_CHECKING:
    from sortify.data.load import Data
    from sortify.models.sorted_model import SortedModel

Named = type[Classification] | type[MultiLabel] | type[Segmentation] | type[Regression]
KINDS: tuple[Named, ...] = (
    Classification,
    TokenClassification,
    LanguageModelling,
    MaskedLanguageModelling,
    MultiLabel,
    Segmentation,
    Regression,
)
TASKS: dict[str, Named] = {kind.name: kind for kind in KINDS}
"""Tasks by the name that `--task` takes and that data gives as a hint."""

# Rank of the output, rank of the targets, whether they are floats: the task. A rank of None stands for no targets.
CHOICES: dict[tuple[int, int | None, bool], str] = {
    (1, 1, True): "regression",
    (2, 1, True): "regression",
    (2, 2, True): "regression",
    (4, 4, True): "regression",
    (2, 1, False): "classification",
    (2, 2, False): "multi-label",
    (3, None, False): "language-modelling",
    (3, 2, False): "language-modelling",
    (4, 3, False): "segmentation",
    (4, 4, False): "segmentation",
}
BY_OUTPUT = {1: "regression", 2: "classification", 3: "language-modelling", 4: "segmentation"}
"""Where there is no batch to look at."""


def task_for(data: Data, model: SortedModel, name: str | None = None) -> Task:
    """Choose the task: by name, else by the data's hint, else from the shapes of the model's output and of the targets.

    Args:
        data: its `hint` is a key of `TASKS`, or None. Without hint and name one test batch is looked at.
        model: a sorted model; run once on its example inputs.
        name: a key of `TASKS`, or `package.module:function` for a task of your own; see `sortify.tasks.own.own_task`.

    Raises:
        DataError: the name is unknown, or the model's output does not fit the task, or no task fits.
    """
    if name is not None and ":" in name:
        return own_task(name, data, model)
    logits = example_logits(model)
    shape, own = list(logits.shape), "package.module:function for one of your own"
    name = name or data.hint or _fitting(data, logits)
    if name not in TASKS:
        known = ", ".join(sorted(TASKS))
        raise DataError(f"no task '{name}' for a model output of shape {shape}; there are {known}, and {own}")
    kind = TASKS[name]
    if kind.ranks and logits.dim() not in kind.ranks:
        raise DataError(f"{name} expects a model output {kind.expects}, got shape {shape}; say --task NAME or {own}")
    return kind.fitted(call_shape(model), logits, data.vocabulary)


def _fitting(data: Data, logits: Tensor) -> str:
    """Choose by `CHOICES`."""
    found, target = _first_target(data)
    if not found:
        return BY_OUTPUT.get(logits.dim(), "")
    rank = None if target is None else target.dim()
    floating = target is not None and target.is_floating_point()
    name = CHOICES.get((logits.dim(), rank, floating))
    if name is None:
        kind = "none" if target is None else f"{str(target.dtype).removeprefix('torch.')} {list(target.shape)}"
        raise DataError(
            f"no task fits a model output of shape {list(logits.shape)} and targets {kind}; say which one (--task): "
            f"{', '.join(sorted(TASKS))}, or package.module:function for one of your own"
        )
    return name


def _first_target(data: Data) -> tuple[bool, Any]:
    """Return whether there is a test batch to look at, and its targets."""
    given: object = data.test
    with preserved_chance():
        batches: Iterator[Any] = iter(data.test)
        batch = None if batches is given else next(batches, None)  # looking would use up an iterator
    if batch is None:
        return False, None
    target = split_batch(batch)[1]
    return True, target if isinstance(target, Tensor) else None
