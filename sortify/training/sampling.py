"""What a sampler is, and how levels are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    from sortify.space.space import Space, Subnet

Levels = tuple[tuple[str, tuple[float, ...]], ...]
"""Group, kind or pattern -> fractions, ascending: `(("width", (0.25, 0.5, 0.75, 1.0)), ("depth", (0.5, 1.0)))`."""


class Sampler(Protocol):
    """What the update asks: the sub-networks of one optimiser step, in the order in which they run."""

    name: ClassVar[str]
    shares_batch: ClassVar[bool]
    """Whether all draws of a step see one mini-batch by default, or each the next one."""
    usual_count: ClassVar[int]
    """Draws per step where the user names none."""

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """Return the sub-networks of optimiser step `step` (from 0)."""
        ...


@dataclass(frozen=True)
class CountingSampler:
    """What the samplers of this library have in common: a number of draws per step.

    Attributes:
        space: the model's sub-networks.
        levels: to draw from.
        count: draws per step.
    """

    shares_batch: ClassVar[bool] = False
    usual_count: ClassVar[int] = 1

    space: Space
    levels: Levels
    count: int


@runtime_checkable
class Watches(Protocol):
    """A sampler that wants to know how its draws went."""

    def observe(self, losses: Sequence[tuple[Subnet, float]]) -> None:
        """Take the losses of a step, alike on all processes."""
        ...


@runtime_checkable
class Learns(Protocol):
    """What has a state that is to be kept, as JSON values."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        ...


def choices_of(space: Space, levels: Levels) -> list[int]:
    """How many levels each thing that moves on its own has; nothing moves where nothing is trained."""
    return space.choices(**dict(levels)) if levels else []


def member_of(space: Space, levels: Levels, places: Sequence[int]) -> Subnet:
    """The sub-network with everything that moves at the level of this number."""
    return space.chosen(places, **dict(levels)) if levels else space.full


def corner(space: Space, levels: Levels, index: int) -> Subnet:
    """Return the sub-network with every trained group at its level `index` (0: smallest, -1: largest)."""
    return space.subnet(**{group: fractions[index] for group, fractions in levels})


def uniform(space: Space, levels: Levels, generator: torch.Generator) -> Subnet:
    """Draw one level of each group (of each axis where the space unties it), uniformly and independently."""
    return space.sample(generator, **dict(levels)) if levels else space.full


def weighted(space: Space, levels: Levels, weights: Sequence[Sequence[float]], generator: torch.Generator) -> Subnet:
    """One level of each group, with the given weights."""
    places = [int(torch.multinomial(torch.tensor(row), 1, generator=generator)) for row in weights]
    return member_of(space, levels, places)
