"""Masked language modelling: some tokens are hidden, the model tells what they were (BERT, arXiv 1810.04805).

Which ones are hidden is drawn anew for each batch, and is a function of a seed and of the row's own tokens. In training
the seed belongs to the batch's place in the run, so a resumed run hides the same tokens as an unbroken one, and several
processes the same as one. In evaluation the seed never changes: every sub-network answers the same questions.

Shapes: B samples, S positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sortify.data.batches import mix
from sortify.errors import DataError
from sortify.tasks.base import IGNORED, Totals, check_classes
from sortify.tasks.classes import TokenClassification, with_perplexity
from sortify.tasks.inputs import CallShape, Inputs, Vocabulary, main_first, split_batch

MASKED, RANDOM = 0.8, 0.1
"""Of the hidden tokens, these shares become the mask token and a random one; the rest stay as they are."""


@dataclass(frozen=True)
class MaskedLanguageModelling(TokenClassification):
    """Hidden tokens: output `[B, S, V]`, compared with the tokens `[B, S]` where they were hidden.

    A batch that was masked already (labels beside it that differ from its tokens) is taken as it is.

    Attributes:
        vocabulary: which id hides a token, and which ones are never hidden.
        share: of the tokens that are hidden; at least one of every row that has any.
    """

    name: ClassVar[str] = "masked-lm"

    vocabulary: Vocabulary = field(default_factory=lambda: Vocabulary(0))
    share: float = 0.15

    @classmethod
    def fitted(cls, call: CallShape, logits: Tensor, vocabulary: Vocabulary | None) -> Self:
        """Make the task for a model that answers its example inputs with these logits."""
        size = logits.shape[-1]
        if vocabulary is None:
            raise DataError(
                f"{cls.name}: nothing says which token id hides a token; name a saved tokenizer (--tokenizer DIR), or "
                "in Python give sortify's Data a Vocabulary"
            )
        if vocabulary.mask is None:
            raise DataError(
                f"{cls.name}: the tokenizer has no mask token; take one that has, or add it and save it again"
            )
        if vocabulary.mask >= size:
            raise DataError(
                f"{cls.name}: the mask token has id {vocabulary.mask}, but the model has only {size} outputs"
            )
        return cls(call, size, vocabulary)

    def split(self, batch: Any, seed: int = 0) -> tuple[Inputs, Tensor]:
        """Hide tokens of a batch; labels that are no tokens are left out."""
        given, target = split_batch(batch)
        name = main_first(given)[0] if isinstance(given, Mapping) else None
        tokens = given[name] if name is not None else given[0] if isinstance(given, (tuple, list)) else given
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.is_floating_point():
            got = (
                f"{tokens.dtype} of shape {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            )
            raise DataError(f"{self.name} expects token ids [batch, positions], got {got}")
        own = target if isinstance(target, Tensor) and target.shape == tokens.shape else None
        if own is not None and bool(((own != IGNORED) & (own != tokens)).any()):
            check_classes(own, self.classes, self.name)
            return self.call.inputs(given), own
        check_classes(tokens, self.classes, self.name)
        mask = given.get("attention_mask") if isinstance(given, Mapping) else None
        masked, target = self._masked(tokens, self._open(tokens, mask, own), seed)
        if name is not None:
            return self.call.inputs({**given, name: masked}), target
        return self.call.inputs((masked, *given[1:]) if isinstance(given, (tuple, list)) else masked), target

    def _open(self, tokens: Tensor, mask: Tensor | None, own: Tensor | None) -> Tensor:
        """Say which tokens `[B, S]` may be hidden."""
        allowed = torch.ones_like(tokens, dtype=torch.bool) if own is None else own != IGNORED
        if mask is not None and mask.shape == tokens.shape:
            allowed = allowed & (mask != 0)
        special = torch.tensor(self.vocabulary.special, dtype=tokens.dtype, device=tokens.device)
        return allowed & ~torch.isin(tokens, special)

    def _masked(self, tokens: Tensor, allowed: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return tokens with some hidden, and targets that are ignored elsewhere."""
        hide, kind, other = (part.to(tokens.device) for part in chances(tokens, seed).unbind(1))
        hide = hide.masked_fill(~allowed, 2.0)
        hidden = allowed & ((hide < self.share) | (hide == hide.amin(1, keepdim=True)))
        size = min(self.vocabulary.size, self.classes or self.vocabulary.size)
        random = (other * size).to(tokens.dtype).clamp_max(size - 1)
        changed = torch.where(kind < MASKED, self.vocabulary.mask or 0, random)
        changed = torch.where(kind < MASKED + RANDOM, changed, tokens)
        return torch.where(hidden, changed, tokens), tokens.masked_fill(~hidden, IGNORED)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Return loss, accuracy over the hidden tokens, and perplexity."""
        return with_perplexity(super().metrics(totals))


def chances(tokens: Tensor, seed: int) -> Tensor:
    """Return numbers from 0 to 1, `[B, 3, S]`, that depend on the seed and on the tokens `[B, S]` of their own row."""
    found = torch.empty(len(tokens), 3, tokens.shape[1])
    generator = torch.Generator()
    for row, numbers in zip(tokens.cpu().numpy(), found, strict=True):
        digest = hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest()
        numbers.uniform_(generator=generator.manual_seed(mix(seed, digest)))
    return found
