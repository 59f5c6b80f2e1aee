"""What a batch means for a model: its inputs, its targets, the loss and the score.

A task never asks what kind of model it serves. It is chosen by the data's hint and by the shape of
the model's output: `[B, C]` or `[B, S, V]` (B samples, C classes, S positions, V vocabulary).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_any

from sortify.errors import DataError, TrainingError

if TYPE_CHECKING:
    from sortify.data import Data
    from sortify.model import SortedModel

IGNORED = -100
"""Targets with this value count for nothing, as in `torch.nn.functional.cross_entropy`."""

TARGET_NAMES = ("labels", "label", "targets", "target")
MAIN_INPUTS = ("input_ids", "pixel_values", "inputs_embeds", "input_values", "input_features")


@dataclass(frozen=True)
class Inputs:
    """One call of the model: `model(*args, **kwargs)`; `names` are those of the positional arguments, where known."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def to_model(self) -> Any:
        """Return one value that stands for the call: a tensor, a tuple of arguments, or a dict of them."""
        if self.kwargs:
            return {**dict(zip(self.names, self.args, strict=True)), **self.kwargs}
        return self.args[0] if len(self.args) == 1 else self.args


@dataclass(frozen=True)
class CallShape:
    """How the model is called. Without names: as the data says.

    Attributes:
        names: of all arguments, the positional ones first.
        positional: how many of them are given by position.
        fixed: arguments that are no tensors, with the value that they had when the model was captured.
    """

    names: tuple[str, ...] = ()
    positional: int = 0
    fixed: tuple[tuple[str, Any], ...] = ()

    def inputs(self, given: Any) -> Inputs:
        """Turn what the data gives (a tensor, a tuple, a dict) into one call.

        The data's main input goes to the first argument if none has its name. A missing attention mask is all
        ones and missing token types are all zeros, as their models define them.

        Raises:
            DataError: the model takes an input that the data does not have, or fewer than it gives.
        """
        if not self.names and isinstance(given, Mapping):
            return Inputs(kwargs=given)
        parts = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if not self.names:
            return Inputs(parts)
        fixed = dict(self.fixed)
        free = [name for name in self.names if name not in fixed]
        if isinstance(given, Mapping):
            known = dict(given)
            known.setdefault(free[0], given[_main_first(given)[0]])
        elif len(parts) > len(free):
            raise DataError(f"the data gives {len(parts)} inputs; the model was captured with {', '.join(free)}")
        else:
            known = dict(zip(free, parts, strict=False))
        values = {name: fixed[name] if name in fixed else _named(known, name, free[0]) for name in self.names}
        first, rest = self.names[: self.positional], self.names[self.positional :]
        return Inputs(tuple(values[name] for name in first), {name: values[name] for name in rest}, first)


def _main_first(given: Mapping[str, Any]) -> list[str]:
    """Return the names of a batch, the main input first."""
    main = next((name for name in MAIN_INPUTS if name in given), next(iter(given)))
    return [main, *(name for name in given if name != main)]


def _named(known: Mapping[str, Any], name: str, main: str) -> Any:
    """Return an input by name, or what stands for it when the data has none."""
    if name in known:
        return known[name]
    if name == "attention_mask":
        return torch.ones_like(known[main])
    if name == "token_type_ids":
        return torch.zeros_like(known[main])
    raise DataError(f"the model was captured with an input '{name}'; the data has only {', '.join(known)}")


@dataclass(frozen=True)
class Totals:
    """Sums over targets, so that parts of a batch, or batches, add up exactly.

    Attributes:
        loss: sum of the losses.
        hits: right answers.
        count: targets that count.
    """

    loss: Tensor
    hits: Tensor
    count: Tensor

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.loss + other.loss, self.hits + other.hits, self.count + other.count)


class Task(Protocol):
    """What training and evaluation ask of a task. Implementations are frozen and hold no tensors."""

    name: ClassVar[str]
    metric: ClassVar[str]
    """Name of the score; a larger score is better."""

    def split(self, batch: Any) -> tuple[Inputs, Tensor]:
        """Return the model's inputs and the targets of a batch."""
        ...

    def count(self, target: Tensor) -> Tensor:
        """Return how many targets count."""
        ...

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Return the loss of one call's output, summed over the targets that count."""
        ...

    def match(self, output: Any, teacher: Any, target: Tensor) -> Tensor:
        """Return how far an output is from that of a larger sub-network, summed over the targets that count."""
        ...

    def totals(self, output: Any, target: Tensor) -> Totals:
        """Return summed loss, hits and count of one call's output."""
        ...

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Return the means by name: "loss", the score under `metric`, and whatever else is usual."""
        ...


@dataclass(frozen=True)
class Classification:
    """One label per sample: output `[B, C]`, targets `[B]`; cross entropy and accuracy."""

    name: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"

    call: CallShape = field(default_factory=CallShape)

    def split(self, batch: Any) -> tuple[Inputs, Tensor]:
        """Take `(inputs, labels)` or a dict with labels apart."""
        given, target = split_batch(batch)
        if target is None:
            raise DataError("a batch has no labels; expected (inputs, labels) or a dict with 'labels'")
        return self.call.inputs(given), target

    def count(self, target: Tensor) -> Tensor:
        """Return the number of labels."""
        return _counted(target)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Compare `[B, C]` with `[B]`."""
        return cross_entropy(*_flat(logits_of(output), target))

    def match(self, output: Any, teacher: Any, target: Tensor) -> Tensor:
        """Compare the probabilities of two outputs `[B, C]`."""
        return _matched(logits_of(output), logits_of(teacher), target)

    def totals(self, output: Any, target: Tensor) -> Totals:
        """Compare `[B, C]` with `[B]`."""
        return _totals(logits_of(output), target)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Return loss and accuracy."""
        return _means(totals, "accuracy")


@dataclass(frozen=True)
class TokenClassification(Classification):
    """One label per position, such as masked language modelling: output `[B, S, V]`, targets `[B, S]`."""

    name: ClassVar[str] = "token-classification"
    metric: ClassVar[str] = "token_accuracy"

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Return loss and token accuracy."""
        return _means(totals, "token_accuracy")


@dataclass(frozen=True)
class LanguageModelling:
    """The next token at each position: output `[B, S, V]`, targets `[B, S]`, compared one step apart."""

    name: ClassVar[str] = "language-modelling"
    metric: ClassVar[str] = "token_accuracy"

    call: CallShape = field(default_factory=CallShape)

    def split(self, batch: Any) -> tuple[Inputs, Tensor]:
        """Take a batch apart; without labels the tokens themselves are the targets, padding left out."""
        given, target = split_batch(batch)
        tokens = given[_main_first(given)[0]] if isinstance(given, Mapping) else given
        if target is None and isinstance(tokens, Tensor):
            mask = given.get("attention_mask") if isinstance(given, Mapping) else None
            target = tokens if mask is None else tokens.masked_fill(mask == 0, IGNORED)
        if not isinstance(target, Tensor):
            raise DataError("a batch for language modelling must hold token ids, as a tensor or under 'input_ids'")
        return self.call.inputs(given), target

    def count(self, target: Tensor) -> Tensor:
        """Return the number of tokens that are predicted: all but the first of each row."""
        return _counted(target[:, 1:])

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Compare position s of `[B, S, V]` with target s + 1."""
        return cross_entropy(*_flat(logits_of(output)[:, :-1], target[:, 1:]))

    def match(self, output: Any, teacher: Any, target: Tensor) -> Tensor:
        """Compare the probabilities of two outputs `[B, S, V]` at the positions that predict a target."""
        return _matched(logits_of(output)[:, :-1], logits_of(teacher)[:, :-1], target[:, 1:])

    def totals(self, output: Any, target: Tensor) -> Totals:
        """Compare position s of `[B, S, V]` with target s + 1."""
        return _totals(logits_of(output)[:, :-1], target[:, 1:])

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Return loss, token accuracy and perplexity."""
        means = _means(totals, "token_accuracy")
        return {**means, "perplexity": math.exp(min(means["loss"], 700.0))}


def split_batch(batch: Any) -> tuple[Any, Tensor | None]:
    """Return a batch's inputs and targets: `(inputs, targets)`, a dict with labels, or inputs alone."""
    if isinstance(batch, Mapping):
        name = next((name for name in TARGET_NAMES if name in batch), None)
        inputs = {key: value for key, value in batch.items() if key != name}
        if not inputs:
            raise DataError(f"a batch holds nothing but '{name}'; expected the model's inputs beside it")
        return inputs, None if name is None else batch[name]
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if len(batch) == 2:
        return batch[0], batch[1]
    if len(batch) == 1:
        return batch[0], None
    raise DataError(f"a batch has {len(batch)} parts; expected (inputs, targets) or a dict")


def logits_of(output: Any) -> Tensor:
    """Return the logits in a model's output: a tensor, `.logits`, `["logits"]`, or the first of a tuple.

    Raises:
        TrainingError: there are none.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, (tuple, list)) and output:
        return logits_of(output[0])
    kind = type(output).__name__
    raise TrainingError(f"the model returns {kind}; expected a tensor, a tuple, or an output with 'logits'")


def call_shape(model: SortedModel) -> CallShape:
    """Return how a sorted model was called when it was captured."""
    args, kwargs = model.examples
    named = [argument.name for argument in model.signature.arguments]
    if len(named) != len(args) + len(kwargs):  # *args has one name for many
        named = [*(f"input {index}" for index in range(len(args))), *kwargs]
    values = zip(named, [*args, *kwargs.values()], strict=True)
    fixed = tuple((name, value) for name, value in values if not tree_any(lambda leaf: isinstance(leaf, Tensor), value))
    return CallShape(tuple(named), len(args), fixed)


def example_logits(model: SortedModel) -> Tensor:
    """Run a sorted model on its own example inputs, in eval mode, and return the logits."""
    args, kwargs = model.examples
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return logits_of(model(*args, **kwargs))
    finally:
        model.train(was_training)


TASKS: dict[str, type[Classification] | type[LanguageModelling]] = {
    task.name: task for task in (Classification, TokenClassification, LanguageModelling)
}
"""Tasks by the hint that data gives."""

RANKS = {"classification": 2, "token-classification": 3, "language-modelling": 3}


def task_for(data: Data, model: SortedModel) -> Task:
    """Choose the task from the data's hint and from the rank of the model's output.

    Args:
        data: its `hint` is a key of `TASKS`, or None where only the model can tell.
        model: a sorted model; run once on its example inputs.

    Raises:
        DataError: the model's output does not fit the data's task, or the hint is unknown.
    """
    logits = example_logits(model)
    name = data.hint or {2: "classification", 3: "language-modelling"}.get(logits.dim())
    if name not in TASKS:
        known = ", ".join(sorted(TASKS))
        raise DataError(f"no task '{name}' for a model output of shape {list(logits.shape)}; there are {known}")
    if logits.dim() != RANKS[name]:
        expected = "[batch, classes]" if RANKS[name] == 2 else "[batch, positions, vocabulary]"
        raise DataError(f"{name} expects a model output {expected}, got shape {list(logits.shape)}")
    return TASKS[name](call_shape(model))


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


def _matched(logits: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    apart = divergence(logits.flatten(0, -2), teacher.flatten(0, -2))
    return (apart * (target.flatten() != IGNORED)).sum()


def _flat(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return `[N, C]` logits in float32 at least, and `[N]` targets."""
    if logits.shape[:-1] != target.shape:
        raise DataError(f"model outputs of shape {list(logits.shape)} do not fit targets of shape {list(target.shape)}")
    flat = logits.flatten(0, -2)
    return flat if flat.dtype == torch.float64 else flat.float(), target.flatten().long()


def _totals(logits: Tensor, target: Tensor) -> Totals:
    flat, target = _flat(logits, target)
    return Totals(cross_entropy(flat, target), (flat.argmax(-1) == target).sum(), _counted(target))


def _counted(target: Tensor) -> Tensor:
    return (target != IGNORED).sum()


def _means(totals: Totals, metric: str) -> dict[str, float]:
    count = int(totals.count)
    return {"loss": float(totals.loss) / count, metric: float(totals.hits) / count}
