"""Which sub-networks one optimiser step trains: small objects with `draw(generator, step)`.

A sampler holds no state. All chance comes from the generator that it is given, so a run can be
repeated and resumed, and all processes of a run that seed their generators alike draw alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import torch

from sortify.errors import TrainingError

if TYPE_CHECKING:
    from sortify.space import Space, Subnet

Levels = tuple[tuple[str, tuple[float, ...]], ...]
"""Group, kind or pattern -> fractions, ascending: `(("width", (0.25, 0.5, 0.75, 1.0)), ("depth", (0.5, 1.0)))`."""

DEFAULT_LEVELS = 4


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
class RandomSampler:
    """`count` independent uniform draws per step: SortedNet, arXiv 2309.00255, Algorithm 1.

    Each group's level is drawn by itself; groups that are not trained stay full.
    """

    name: ClassVar[str] = "random"
    shares_batch: ClassVar[bool] = False
    usual_count: ClassVar[int] = 1

    space: Space
    levels: Levels
    count: int

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """Draw `count` sub-networks."""
        return [_uniform(self.space, self.levels, generator) for _ in range(self.count)]


@dataclass(frozen=True)
class SandwichSampler:
    """The largest, the smallest and `count - 2` random ones: US-Nets, arXiv 1903.05134, section 3.2.

    With `count` 1 there is only the largest, with 2 the two ends.
    """

    name: ClassVar[str] = "sandwich"
    shares_batch: ClassVar[bool] = True
    usual_count: ClassVar[int] = 4

    space: Space
    levels: Levels
    count: int

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """Return the two ends, then the random ones."""
        ends = [corner(self.space, self.levels, -1), corner(self.space, self.levels, 0)][: self.count]
        return ends + [_uniform(self.space, self.levels, generator) for _ in range(self.count - len(ends))]


def corner(space: Space, levels: Levels, index: int) -> Subnet:
    """Return the sub-network with every trained group at its level `index` (0: smallest, -1: largest)."""
    return space.subnet(**{group: fractions[index] for group, fractions in levels})


def _uniform(space: Space, levels: Levels, generator: torch.Generator) -> Subnet:
    """Draw one level of each group (of each axis where the space unties it), uniformly and independently."""
    return space.sample(generator, **dict(levels)) if levels else space.full


SAMPLERS: dict[str, type[RandomSampler] | type[SandwichSampler]] = {}
"""Samplers by the name that `--sampler` takes."""

SamplerClass = TypeVar("SamplerClass", bound="type[RandomSampler] | type[SandwichSampler]")


def register(sampler: SamplerClass) -> SamplerClass:
    """Add a sampler class to the table under its own name.

    Raises:
        ValueError: the name is taken, or the class cannot draw.
    """
    if not callable(getattr(sampler, "draw", None)):
        raise ValueError(f"a sampler needs a method 'draw'; {sampler.__name__} has none")
    if sampler.name in SAMPLERS:
        raise ValueError(f"a sampler named '{sampler.name}' exists already: {SAMPLERS[sampler.name].__name__}")
    SAMPLERS[sampler.name] = sampler
    return sampler


register(RandomSampler)
register(SandwichSampler)


def make_sampler(name: str, space: Space, levels: Levels, count: int | None = None) -> Sampler:
    """Make a sampler from the table.

    Args:
        name: a key of `SAMPLERS`.
        space: the model's sub-networks.
        levels: the groups and fractions to train, see `levels_for`.
        count: sub-networks per optimiser step (g_acc of the paper); None takes the sampler's own.

    Raises:
        TrainingError: no sampler has this name, or `count` is below 1.
    """
    if name not in SAMPLERS:
        raise TrainingError(f"unknown sampler '{name}'; there are {', '.join(sorted(SAMPLERS))}")
    if count is not None and count < 1:
        raise TrainingError(f"sub-networks per step must be 1 or more, got {count}")
    kind = SAMPLERS[name]
    return kind(space, levels, kind.usual_count if count is None else count)


def levels_for(
    space: Space, dims: Sequence[str], levels: int | Mapping[str, int | Sequence[float]] | None = None
) -> Levels:
    """Work out the fractions to train for each group.

    Args:
        space: the model's sub-networks; `dims` must be among its groups.
        dims: groups to train, such as `("width", "depth")`; none at all trains the full model only.
        levels: how many evenly spaced levels up to 1 (4 gives .25 .5 .75 1; the default), for all
            groups or per group; or the fractions themselves, in (0, 1]. Kinds, patterns and names of axes and chains
            (`layers.*.inner`) get levels of their own, if their group is trained.

    Raises:
        TrainingError: a group that the model does not have or that is named twice, or levels that are not fractions.
        AxesError: a pattern that matches nothing.
    """
    if len(set(dims)) < len(dims):
        raise TrainingError(f"a dimension to train is named twice: {', '.join(dims)}")
    for group in dims:
        if group not in space.groups:
            raise TrainingError(f"the model has no elastic '{group}'; it has {', '.join(space.groups) or 'none'}")
    if isinstance(levels, Mapping):
        for name in levels:
            if not set(space.groups_of(name)) <= set(dims):
                raise TrainingError(f"levels are given for '{name}', which is not trained ({', '.join(dims)} is)")
        own = [name for name in levels if name not in dims]
        return tuple((name, _fractions(name, levels.get(name, DEFAULT_LEVELS))) for name in (*dims, *own))
    return tuple((group, _fractions(group, DEFAULT_LEVELS if levels is None else levels)) for group in dims)


def _fractions(group: str, levels: int | Sequence[float]) -> tuple[float, ...]:
    """Return ascending distinct fractions, from a number of levels or from a list."""
    if isinstance(levels, int):
        if levels < 1:
            raise TrainingError(f"the number of {group} levels must be 1 or more, got {levels}")
        return tuple((index + 1) / levels for index in range(levels))
    fractions = tuple(sorted({float(value) for value in levels}))
    if not fractions or not all(0 < value <= 1 for value in fractions):
        raise TrainingError(f"{group} levels must be fractions above 0 and up to 1, got {list(levels)}")
    return fractions
