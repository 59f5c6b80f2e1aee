"""Tasks whose targets are class numbers: one or several per sample, one per position, the next token.

Shapes: B samples, C classes, S positions, V vocabulary, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from sortify.errors import DataError
from sortify.tasks.base import IGNORED, Totals, aligned, check_classes, counted, cross_entropy, divergence, wide_rows
from sortify.tasks.inputs import CallShape, Inputs, Vocabulary, logits_of, main_first, split_batch


@dataclass(frozen=True)
class Classification:
    """One label per sample: output `[B, C]`, targets `[B]`; cross entropy and accuracy.

    Attributes:
        call: how the model is called.
        classes: C, where known.
    """

    name: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"
    expects: ClassVar[str] = "[batch, classes]"
    ranks: ClassVar[tuple[int, ...]] = (2,)

    call: CallShape = field(default_factory=CallShape)
    classes: int | None = None

    @classmethod
    def fitted(cls, call: CallShape, logits: Tensor, vocabulary: Vocabulary | None) -> Self:
        """Make the task for a model that answers its example inputs with these logits."""
        if logits.shape[-1] < 2:
            shape = list(logits.shape)
            raise DataError(
                f"{cls.name} expects two classes or more, got a model output of shape {shape}; one number per sample is"
                " regression (float targets), one yes or no is multi-label"
            )
        return cls(call, logits.shape[-1])

    def split(self, batch: Any, seed: int = 0) -> tuple[Inputs, Tensor]:
        """Take `(inputs, labels)` or a dict with labels apart."""
        given, target = split_batch(batch)
        if target is None:
            raise DataError("a batch has no labels; expected (inputs, labels) or a dict with 'labels'")
        check_classes(target, self.classes, self.name)
        return self.call.inputs(given), target

    def predictions(self, output: Any) -> Tensor:
        """Return the logits that have a target, `[..., C]`."""
        return logits_of(output)

    def truth(self, target: Tensor) -> Tensor:
        """Return the targets of these logits, `[...]`."""
        return target

    def count(self, target: Tensor) -> Tensor:
        """Return the number of targets that count."""
        return counted(self.truth(target))

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Sum the cross entropy."""
        return cross_entropy(*wide_rows(self.predictions(output), self.truth(target)))

    def match(self, output: Any, teacher: Any, target: Tensor) -> Tensor:
        """Sum the divergence of the probabilities of two outputs over the targets that count."""
        logits, taught = (self.predictions(each).flatten(0, -2) for each in (output, teacher))
        return (divergence(logits, taught) * (self.truth(target).flatten() != IGNORED)).sum()

    def totals(self, output: Any, target: Tensor) -> Totals:
        """Sum the cross entropy and the right answers."""
        logits, truth = wide_rows(self.predictions(output), self.truth(target))
        return Totals(cross_entropy(logits, truth), counted(truth), {"hits": (logits.argmax(-1) == truth).sum()})

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Return the means of the loss and of right answers."""
        count = int(totals.count)
        return {"loss": float(totals.loss) / count, self.metric: float(totals.sums["hits"]) / count}


class TokenClassification(Classification):
    """One label per position: output `[B, S, C]`, targets `[B, S]`; cross entropy and accuracy."""

    name: ClassVar[str] = "token-classification"
    metric: ClassVar[str] = "token_accuracy"
    expects: ClassVar[str] = "[batch, positions, vocabulary]"
    ranks: ClassVar[tuple[int, ...]] = (3,)

    @classmethod
    def fitted(cls, call: CallShape, logits: Tensor, vocabulary: Vocabulary | None) -> Self:
        """Make the task for a model that answers its example inputs with these logits."""
        return cls(call, logits.shape[-1])


class LanguageModelling(TokenClassification):
    """The next token at each position: output `[B, S, V]`, targets `[B, S]`, compared one step apart."""

    name: ClassVar[str] = "language-modelling"

    def split(self, batch: Any, seed: int = 0) -> tuple[Inputs, Tensor]:
        """Take a batch apart; without labels the tokens themselves are the targets, padding left out."""
        given, target = split_batch(batch)
        tokens = given[main_first(given)[0]] if isinstance(given, Mapping) else given
        if target is None and isinstance(tokens, Tensor):
            mask = given.get("attention_mask") if isinstance(given, Mapping) else None
            target = tokens if mask is None else tokens.masked_fill(mask == 0, IGNORED)
        if not isinstance(target, Tensor) or target.is_floating_point():
            raise DataError("a batch for language modelling must hold token ids, as a tensor or under 'input_ids'")
        check_classes(target, self.classes, self.name)
        return self.call.inputs(given), target

    def predictions(self, output: Any) -> Tensor:
        """Return the logits of all positions but the last, whose next token nobody knows."""
        return logits_of(output)[:, :-1]

    def truth(self, target: Tensor) -> Tensor:
        """Return the tokens that are predicted: all but the first of each row."""
        return target[:, 1:]

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Return loss, token accuracy and perplexity."""
        return with_perplexity(super().metrics(totals))


@dataclass(frozen=True)
class MultiLabel:
    """Yes or no for each of K labels: output `[B, K]`, targets `[B, K]` of 0 and 1; binary cross entropy and F1.

    The F1 score counts all labels of all samples together (micro average). With one label, targets may be `[B]`.
    """

    name: ClassVar[str] = "multi-label"
    metric: ClassVar[str] = "f1"
    expects: ClassVar[str] = "[batch, labels]"
    ranks: ClassVar[tuple[int, ...]] = (2,)

    call: CallShape = field(default_factory=CallShape)

    @classmethod
    def fitted(cls, call: CallShape, logits: Tensor, vocabulary: Vocabulary | None) -> Self:
        """Make the task for a model that answers its example inputs with these logits."""
        return cls(call)

    def split(self, batch: Any, seed: int = 0) -> tuple[Inputs, Tensor]:
        """Take `(inputs, labels)` or a dict with labels apart."""
        given, target = split_batch(batch)
        if target is None:
            raise DataError("a batch has no labels; expected (inputs, labels [B, K] of 0 and 1)")
        if target.device.type == "cpu" and not ((target == 0) | (target == 1) | (target == IGNORED)).all():
            raise DataError(f"multi-label targets must be 0 or 1 for each label, got others in {list(target.shape)}")
        return self.call.inputs(given), target

    def count(self, target: Tensor) -> Tensor:
        """Return the number of labels over all samples."""
        return counted(target)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Compare `[B, K]` with `[B, K]`."""
        return self.totals(output, target).loss

    def match(self, output: Any, teacher: Any, target: Tensor) -> Tensor:
        """Compare the probabilities of two outputs, label by label."""
        pair = [aligned(logits_of(each), target).flatten() for each in (output, teacher)]
        own, taught = (torch.stack([logits, torch.zeros_like(logits)], -1) for logits in pair)  # of yes and of no
        return (divergence(own, taught) * (target.flatten() != IGNORED)).sum()

    def totals(self, output: Any, target: Tensor) -> Totals:
        """Compare `[B, K]` with `[B, K]`."""
        logits = aligned(logits_of(output), target)
        counts = target != IGNORED
        truth = (target == 1) & counts
        apart = functional.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none")
        said = (logits > 0) & counts
        hits, right = (said & truth).sum(), ((said == truth) & counts).sum()
        sums = {"hits": hits, "said": said.sum(), "truth": truth.sum(), "right": right}
        return Totals((apart * counts).sum(), counts.sum(), sums)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Return loss, F1 score and the share of labels that are right."""
        hits, said, truth, right = (int(totals.sums[name]) for name in ("hits", "said", "truth", "right"))
        count = int(totals.count)
        f1 = 2 * hits / (said + truth) if said + truth else 1.0
        return {"loss": float(totals.loss) / count, "f1": f1, "accuracy": right / count}


def with_perplexity(found: dict[str, float]) -> dict[str, float]:
    """Add the perplexity, the exponential of the loss."""
    return {**found, "perplexity": math.exp(min(found["loss"], 700.0))}
