"""Samplers that look at what sub-networks cost, how high their losses are, or how far the training is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from sortify.errors import TrainingError
from sortify.training.sampling import CountingSampler, Levels, choices_of, member_of, weighted

if TYPE_CHECKING:
    from sortify.space.space import Space, Subnet


class CostSampler(CountingSampler):
    """`count` independent draws in which a group's level comes up as often as the network costs with it (FLOPs).

    Larger ones have more to learn, and get more steps.
    """

    name: ClassVar[str] = "by-cost"

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """Draw `count` sub-networks."""
        weights = [list(row) for row in _costs(self.space, self.levels)]
        return [weighted(self.space, self.levels, weights, generator) for _ in range(self.count)]


@dataclass(frozen=True)
class LossSampler(CountingSampler):
    """`count` independent draws in which a group's level comes up as often as its recent losses are high.

    A level without a loss yet counts as the worst. The recent losses are all that it learns; they are kept with the
    training's state.
    """

    name: ClassVar[str] = "by-loss"

    recent: dict[str, float] = field(default_factory=dict, compare=False)
    """`width=0.5` -> running mean of the losses of the sub-networks that were drawn with it."""

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """Draw `count` sub-networks."""
        worst = max(self.recent.values(), default=1.0) or 1.0
        ladder = self.space.ladder(**dict(self.levels)) if self.levels else {}
        weights = [[self.recent.get(f"{name}={f:g}", worst) for f in fractions] for name, fractions in ladder.items()]
        return [weighted(self.space, self.levels, weights, generator) for _ in range(self.count)]

    def observe(self, losses: Sequence[tuple[Subnet, float]]) -> None:
        """Take the losses of a step."""
        for subnet, loss in losses:
            for name, fraction in subnet.fractions:
                key = f"{name}={fraction:g}"
                self.recent[key] = PAST * self.recent.get(key, loss) + (1 - PAST) * loss

    def state_dict(self) -> dict[str, Any]:
        """The recent losses."""
        return dict(self.recent)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from these."""
        self.recent.update(state)


PAST = 0.95
"""Weight of the past in a recent loss."""


@dataclass(frozen=True)
class ProgressiveSampler(CountingSampler):
    """Progressive shrinking: the full network first, then smaller and smaller levels join (Once-for-all, 1908.09791).

    Over the first half of the training the levels of every group open one after the other, the largest first; then all
    are drawn uniformly. Needs to know the steps of the whole training.
    """

    name: ClassVar[str] = "progressive"

    steps: int | None = None

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """Draw `count` sub-networks from the levels that are open."""
        if self.steps is None:
            raise TrainingError("the progressive sampler needs the number of steps: make_sampler(..., steps=1000)")
        done = min(1.0, step / max(1.0, OPENING * self.steps))
        sizes = choices_of(self.space, self.levels)
        weights = [[float(size - place <= 1 + int(done * (size - 1))) for place in range(size)] for size in sizes]
        return [weighted(self.space, self.levels, weights, generator) for _ in range(self.count)]


OPENING = 0.5
"""Share of the training after which the progressive sampler draws from all levels."""


class BoundedSampler(CountingSampler):
    """Draws whose cost changes little from one step to the next (complexity-aware sampling, ElasticViT, 2303.09730).

    All combinations of levels stand in the order of their FLOPs. A window over a tenth of them goes from the largest to
    the smallest and back, every 100 steps, and each step draws from it: every combination comes up about equally often.
    """

    name: ClassVar[str] = "bounded"

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """Draw `count` sub-networks from the window of this step."""
        order = _by_cost(self.space, self.levels)
        low, high = self.window(step, len(order))
        places = torch.randint(low, high, (self.count,), generator=generator).tolist()
        return [member_of(self.space, self.levels, order[place]) for place in places]

    @staticmethod
    def window(step: int, count: int) -> tuple[int, int]:
        """Between which places of `count` a step draws, the second one not among them."""
        wide = max(1, round(WINDOW * count))
        way = abs(2 * (step % PERIOD) / PERIOD - 1)  # 1 at the largest, 0 at the smallest
        low = round(way * (count - wide))
        return low, low + wide


PERIOD = 100
"""Steps in which the window of the bounded sampler goes to the smallest and back."""
WINDOW = 0.1
"""Share of all combinations that it looks at."""


@lru_cache(maxsize=8)
def _costs(space: Space, levels: Levels) -> tuple[tuple[float, ...], ...]:
    """For every level of every group the FLOPs of the network that is full but for it, as a share."""
    sizes = choices_of(space, levels)
    found = []
    for place, size in enumerate(sizes):
        rows = [[level if own == place else -1 for own in range(len(sizes))] for level in range(size)]
        flops = space.costs([member_of(space, levels, row) for row in rows]).flops
        found.append(tuple(float(each) / max(1, int(flops[-1])) for each in flops))
    return tuple(found)


@lru_cache(maxsize=8)
def _by_cost(space: Space, levels: Levels) -> list[tuple[int, ...]]:
    """All combinations of levels, in the order of their FLOPs."""
    sizes = choices_of(space, levels)
    if math.prod(sizes) > ORDERED:
        raise TrainingError(
            f"the bounded sampler orders {ORDERED:,} combinations of levels at most, here are {math.prod(sizes):,}: "
            "give fewer levels or dimensions, or draw at random"
        )
    rows = list(product(*(range(size) for size in sizes)))
    flops = space.costs([member_of(space, levels, row) for row in rows]).flops
    return [rows[place] for place in sorted(range(len(rows)), key=lambda place: (int(flops[place]), rows[place]))]


ORDERED = 1 << 14
