"""How a batch becomes one call of the model, and where the logits are in what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_any

from sortify.errors import DataError, TrainingError

if TYPE_CHECKING:
    from sortify.models.sorted_model import SortedModel

TARGET_NAMES = ("labels", "label", "targets", "target")
MAIN_INPUTS = ("input_ids", "pixel_values", "inputs_embeds", "input_values", "input_features")
LOGITS_NAMES = ("logits", "out")
"""Of outputs with names: those of transformers, and those of torchvision's segmentation models."""


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
class Vocabulary:
    """What a task has to know of token ids.

    Attributes:
        size: ids are below it.
        mask: id that stands for a hidden token; None where there is none.
        special: ids that are never hidden, such as padding and marks of beginning and end.
    """

    size: int
    mask: int | None = None
    special: tuple[int, ...] = ()


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
            known.setdefault(free[0], given[main_first(given)[0]])
        elif len(parts) > len(free):
            raise DataError(f"the data gives {len(parts)} inputs; the model was captured with {', '.join(free)}")
        else:
            known = dict(zip(free, parts, strict=False))
        values = {name: fixed[name] if name in fixed else _named(known, name, free[0]) for name in self.names}
        first, rest = self.names[: self.positional], self.names[self.positional :]
        return Inputs(tuple(values[name] for name in first), {name: values[name] for name in rest}, first)


def main_first(given: Mapping[str, Any]) -> list[str]:
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
    """Return the logits in a model's output: a tensor, `.logits`, `["logits"]`, `["out"]`, or the first of a tuple.

    Raises:
        TrainingError: there are none.
    """
    if isinstance(output, Tensor):
        return output
    for name in LOGITS_NAMES:
        logits = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
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
