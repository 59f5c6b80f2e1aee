"""Which sub-networks one optimiser step trains: small objects with `draw(generator, step)`.

All chance comes from the generator that a sampler is given, so a run can be repeated and resumed, and all processes
of a run that seed their generators alike draw alike. What a sampler learns it hands out to be kept (`state_dict`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch

from sortify.errors import TrainingError
from sortify.training.kinds import Kinds
from sortify.training.samplers_guided import BoundedSampler, CostSampler, LossSampler, ProgressiveSampler
from sortify.training.sampling import CountingSampler, Levels, Sampler, choices_of, corner, member_of, uniform, weighted

if TYPE_CHECKING:
    from sortify.space.space import Space, Subnet

DEFAULT_LEVELS = 4


class RandomSampler(CountingSampler):
    """`count` independent uniform draws per step: SortedNet, arXiv 2309.00255, Algorithm 1.

    Each group's level is drawn by itself; groups that are not trained stay full.
    """

    name: ClassVar[str] = "random"

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """Draw `count` sub-networks."""
        return [uniform(self.space, self.levels, generator) for _ in range(self.count)]


class SandwichSampler(CountingSampler):
    """The largest, the smallest and `count - 2` random ones: US-Nets, arXiv 1903.05134, section 3.2.

    With `count` 1 there is only the largest, with 2 the two ends.
    """

    name: ClassVar[str] = "sandwich"
    shares_batch: ClassVar[bool] = True
    usual_count: ClassVar[int] = 4

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """Return the two ends, then the random ones."""
        ends = [corner(self.space, self.levels, -1), corner(self.space, self.levels, 0)][: self.count]
        return ends + [uniform(self.space, self.levels, generator) for _ in range(self.count - len(ends))]


class RoundRobinSampler(CountingSampler):
    """Every combination of levels in turn: in each round all of them once, in an order of its own.

    The order hangs on the round alone, not on the seed: after any number of steps no sub-network was trained two times
    more often than another.
    """

    name: ClassVar[str] = "round-robin"

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """Return the next `count` of the round; a step may end one round and begin the next."""
        return [self._at(step * self.count + number) for number in range(self.count)]

    def _at(self, place: int) -> Subnet:
        sizes = choices_of(self.space, self.levels)
        turn, left = divmod(place, math.prod(sizes))
        left, chosen = _shuffled(math.prod(sizes), turn)[left], []
        for size in sizes:
            left, level = divmod(left, size)
            chosen.append(level)
        return member_of(self.space, self.levels, chosen)


@lru_cache(maxsize=8)
def _shuffled(count: int, turn: int) -> list[int]:
    """The order of one round."""
    if count > LISTED:
        raise TrainingError(
            f"round-robin goes through {LISTED:,} combinations of levels at most, here are {count:,}: "
            "give fewer levels or dimensions, or draw at random"
        )
    return torch.randperm(count, generator=torch.Generator().manual_seed(turn)).tolist()


class StratifiedSampler(CountingSampler):
    """`count` draws per step that are spread over each group's levels: small, middle and large ones in every step.

    The levels of a group are cut into `count` equal ranges and one is drawn from each, in an order of its own per group
    (Latin hypercube sampling, McKay et al. 1979). Every level is drawn as often as by `RandomSampler`. For slices of
    transformers Scala reports gains from such spread ("stable sampling", arXiv 2412.04786).
    """

    name: ClassVar[str] = "stratified"
    usual_count: ClassVar[int] = 4

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """Draw `count` sub-networks."""
        columns = []
        for size in choices_of(self.space, self.levels):
            ranges = torch.randperm(self.count, generator=generator)
            places = (ranges + torch.rand(self.count, generator=generator, dtype=torch.float64)) / self.count
            columns.append([min(int(place * size), size - 1) for place in places.tolist()])
        return [
            member_of(self.space, self.levels, [column[number] for column in columns]) for number in range(self.count)
        ]


LISTED = 1 << 20
LARGEST = 1.5
"""How many times as often as each other level the weighted sampler draws a group's largest one."""


class WeightedSampler(CountingSampler):
    """`count` independent draws in which each group's largest level comes up 1.5 times as often as each other.

    MatFormer (arXiv 2310.07707) reports better large models for a little loss in small ones with such weights
    (.20 .22 .24 .34 for four sizes).
    """

    name: ClassVar[str] = "weighted"

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """Draw `count` sub-networks."""
        weights = [[1.0] * (size - 1) + [LARGEST] for size in choices_of(self.space, self.levels)]
        return [weighted(self.space, self.levels, weights, generator) for _ in range(self.count)]


class SamplerKind(Protocol):
    """What makes a sampler: a class, as a rule."""

    name: ClassVar[str]
    shares_batch: ClassVar[bool]
    usual_count: ClassVar[int]

    def __call__(self, space: Space, levels: Levels, count: int) -> Sampler:
        """Make one for a space, the levels to train, and a number of draws per step."""
        ...


SAMPLERS = Kinds[SamplerKind]("a sampler", "shares_batch", "usual_count", "draw")
"""Samplers by the name that `--sampler` takes."""

Kind = TypeVar("Kind", bound="type[Any]")


def register_sampler(sampler: Kind) -> Kind:
    """Add a sampler class to the table under its own name, so that `--sampler` and `TrainConfig` know it.

    Args:
        sampler: takes the space, the levels and the number of draws, and has `name`, `shares_batch`, `usual_count` and
            `draw(generator, step)`; all chance should come from the generator.

    Raises:
        ValueError: the name is taken, or the class cannot draw.
    """
    SAMPLERS.add(sampler)
    return sampler


for _kind in (
    RandomSampler,
    SandwichSampler,
    RoundRobinSampler,
    StratifiedSampler,
    WeightedSampler,
    CostSampler,
    LossSampler,
    ProgressiveSampler,
    BoundedSampler,
):
    register_sampler(_kind)


def make_sampler(
    name: str, space: Space, levels: Levels, count: int | None = None, steps: int | None = None
) -> Sampler:
    """Make a sampler from the table.

    Args:
        name: a key of `SAMPLERS`.
        space: the model's sub-networks.
        levels: the groups and fractions to train, see `levels_for`.
        count: sub-networks per optimiser step (g_acc of the paper); None takes the sampler's own.
        steps: of the whole training, for samplers that are dataclasses with a field of this name.

    Raises:
        TrainingError: no sampler has this name, or `count` is below 1.
    """
    kind = SAMPLERS.find(name)
    if count is not None and count < 1:
        raise TrainingError(f"sub-networks per step must be 1 or more, got {count}")
    made = kind(space, levels, kind.usual_count if count is None else count)
    return _with(made, steps=steps) if steps is not None and _has(made, "steps") else made


def counted(sampler: Sampler, count: int) -> Sampler:
    """The same sampler with another number of draws per step.

    Raises:
        TrainingError: it has no such field.
    """
    if getattr(sampler, "count", None) == count:
        return sampler
    if not _has(sampler, "count"):
        raise TrainingError(
            f"the number of draws of '{sampler.name}' cannot change: make it a dataclass with a 'count'"
        )
    return _with(sampler, count=count)


def _has(sampler: Any, name: str) -> bool:
    return is_dataclass(sampler) and name in {each.name for each in fields(sampler)}


def _with(sampler: Any, **changed: int) -> Sampler:
    made: Sampler = replace(sampler, **changed)
    return made


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
