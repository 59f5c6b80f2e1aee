"""Small sorted models for the tests of data, training and evaluation, converted once per process."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sortify import SortedModel, sortify

LENGTH = 16


class Block(nn.Module):
    """A residual block; rows of a picture are one vector, positions of a text are averaged causally first."""

    def __init__(self, width: int, batch_norm: bool, text: bool, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.text = text
        if text:
            causal = torch.ones(LENGTH, LENGTH).tril()
            self.register_buffer("causal", causal / causal.sum(1, keepdim=True))

    def forward(self, h: Tensor) -> Tensor:
        mixed = self.causal @ h if self.text else h
        return h + self.dropout(self.outer(self.inner(self.norm(mixed)).relu()))


class Pictures(nn.Module):
    """[B, 1, 8, 8] to [B, classes]."""

    def __init__(self, width: int, depth: int, classes: int, batch_norm: bool, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.Sequential(*(Block(width, batch_norm, False, dropout) for _ in range(depth)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x.flatten(1))))
        return out


class Texts(nn.Module):
    """[B, 16] tokens of 256 to logits, as a dict: [B, 16, 256] for each next token, or [B, classes] for each text."""

    def __init__(self, width: int, depth: int, classes: int | None, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.Sequential(*(Block(width, False, True, dropout) for _ in range(depth)))
        self.head = nn.Linear(width, classes or 256)
        self.pooled = classes is not None

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        h = self.blocks(self.embedding(input_ids))
        return {"logits": self.head(h.mean(1) if self.pooled else h)}


def plain_model(kind: str, seed: int = 0, classes: int = 10, width: int = 32, depth: int = 4) -> nn.Module:
    """The module before conversion: "mlp", "bn" (batch-norm), "lm" or "text"; "-still" at the end: no dropout."""
    torch.manual_seed(seed)
    kind, _, still = kind.partition("-")
    dropout = 0.0 if still else 0.1
    if kind in ("mlp", "bn"):
        return Pictures(width, depth, classes, kind == "bn", dropout).eval()
    return Texts(width, depth, classes if kind == "text" else None, dropout).eval()


def example(kind: str) -> Any:
    """Example inputs of a kind."""
    if kind.startswith(("mlp", "bn")):
        return (torch.randn(2, 1, 8, 8),)
    return {"input_ids": torch.randint(256, (2, LENGTH))}


@cache
def _converted(kind: str, seed: int, classes: int, width: int, depth: int) -> SortedModel:
    return sortify(plain_model(kind, seed, classes, width, depth), example(kind))


def make_model(kind: str = "mlp", seed: int = 0, classes: int = 10, width: int = 32, depth: int = 4) -> SortedModel:
    """A sorted model of a kind, each call its own copy."""
    return copy.deepcopy(_converted(kind, seed, classes, width, depth))
