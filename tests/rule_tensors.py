"""Small tensors for the samples of the law of rules: the same at each run, all numbers different."""

from __future__ import annotations

from typing import Any

import torch
from rule_law import Sample
from torch import Tensor

_GENERATOR = torch.Generator().manual_seed(1)


def numbers(*shape: int) -> Tensor:
    """Numbers between 0.1 and 0.9, in float64."""
    return torch.rand(shape, generator=_GENERATOR, dtype=torch.float64) * 0.8 + 0.1


def whole(*shape: int, below: int) -> Tensor:
    """Whole numbers from 0 to `below` - 1."""
    return torch.randint(below, shape, generator=_GENERATOR)


def flags(*shape: int) -> Tensor:
    """True and False in turns, shuffled."""
    count = torch.Size(shape).numel()
    return (torch.randperm(count, generator=_GENERATOR) % 2 == 0).reshape(shape)


def case(op: str, *args: Any, opens: int | None, values: str = "equal", least: int = 1, **kwargs: Any) -> Sample:
    """A hand-written sample; `opens` is the number of atoms that stay open, None where the rule refuses this use."""
    return Sample(f"aten.{op}", args, kwargs, opens, values, least=least, refused=opens is None)


def noisy(op: str, *args: Any, opens: int) -> Sample:
    """A hand-written sample of an op that draws random numbers."""
    return Sample(f"aten.{op}", args, opens=opens, noisy=True)
