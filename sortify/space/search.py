"""The largest member of a product of knobs within limits: all of them looked at while they are few, else climbed to.

A choice is one level per knob. Up to `EXHAUSTIVE` choices the best is found by costing all, some tens of thousands at a
time. Beyond, the search begins with the largest even choice, raises knobs while any fits, and then trades one knob
against another until no trade helps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sortify.costs.cost import Costs
from sortify.space.levels import Knob

EXHAUSTIVE = 1 << 20
BLOCK = 1 << 16
CLOSE, TINY = 5e-3, 1e-4
"""Shares of the limit: what a search is content with, and what is not worth a trade."""
DRAWS, STARTS = 1 << 15, 8
"""Random choices that are costed where climbing alone does not come close, and those from which it is tried again."""
ROUNDS, MOST = 400, 20_000
"""Rounds of climbing, and trades that are looked at in one."""
Choice = tuple[int, ...]
Matrix = NDArray[np.int64]


class Table(Protocol):
    """What knows the costs of many sub-networks."""

    def table(self, values: Matrix, **sizes: int) -> Costs:
        """One row of sizes and depths per sub-network."""
        ...


@dataclass(frozen=True, eq=False)
class Choices:
    """All choices of some knobs, and what they cost.

    Attributes:
        knobs: what is chosen.
        full: sizes and depths of the full network, which hold where no knob does.
        costs: of any sub-network.
        sizes: open sizes to cost at.
    """

    knobs: tuple[Knob, ...]
    full: tuple[int, ...]
    costs: Table
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many there are."""
        return math.prod(len(knob.distinct) for knob in self.knobs)

    def values(self, choices: Sequence[Choice] | Matrix) -> Matrix:
        """Sizes and depths, one row per choice."""
        chosen = np.asarray(choices, dtype=np.int64).reshape(len(choices), len(self.knobs))
        lines = np.empty((len(self.full), len(chosen)), dtype=np.int64)
        lines[:] = np.array(self.full, dtype=np.int64)[:, None]
        for number, knob in enumerate(self.knobs):
            table = np.array([level.sizes for level in knob.distinct], dtype=np.int64)
            lines[list(knob.columns)] = table.T[:, chosen[:, number]]
        return lines.T

    def table(self, choices: Sequence[Choice] | Matrix) -> Costs:
        """What each choice costs."""
        return self.costs.table(self.values(choices), **self.sizes)

    def blocks(self) -> Iterator[tuple[int, Matrix]]:
        """All choices in order, the last knob moving fastest: the number of the first of each block, and its values."""
        inner, size = len(self.knobs), 1
        while inner and size * len(self.knobs[inner - 1].distinct) <= BLOCK:
            inner -= 1
            size *= len(self.knobs[inner].distinct)
        grids = np.indices([len(knob.distinct) for knob in self.knobs[inner:]]).reshape(len(self.knobs) - inner, size)
        chosen = np.zeros((size, len(self.knobs)), dtype=np.int64)
        chosen[:, inner:] = grids.T
        lines = np.ascontiguousarray(self.values(chosen).T)
        outer = [len(knob.distinct) for knob in self.knobs[:inner]]
        for number, choice in enumerate(np.ndindex(*outer)):
            for knob, level in zip(self.knobs, choice, strict=False):
                lines[list(knob.columns)] = np.array(knob.distinct[level].sizes)[:, None]
            yield number * size, lines.T

    def numbered(self, number: int) -> Choice:
        """The choice of this number."""
        return tuple(map(int, np.unravel_index(number, [len(knob.distinct) for knob in self.knobs])))


Bounds = Mapping[str, int]
"""Metric -> the most that it may cost; the first is the one to use up."""


def within(costs: Costs, bounds: Bounds) -> NDArray[np.bool_]:
    """Which costs keep to all bounds."""
    fitting = np.ones(len(costs), dtype=np.bool_)
    for metric, limit in bounds.items():
        fitting &= np.asarray(getattr(costs, metric) <= limit, dtype=np.bool_)
    return fitting


def largest(costs: Costs, fitting: NDArray[np.bool_], bounds: Bounds) -> int:
    """The last of the most expensive ones that fit, metric by metric in the order of the bounds."""
    left = np.flatnonzero(fitting)
    for metric in bounds:
        own = getattr(costs, metric)[left]
        left = left[own == own.max()]
    return int(left[-1])


def best_choice(choices: Choices, bounds: Bounds, exhaustive: int = EXHAUSTIVE) -> Choice | None:
    """The largest choice within the bounds; None where not even the smallest is."""
    return _looked_up(choices, bounds) if choices.count <= exhaustive else _climbed(choices, bounds)


def _looked_up(choices: Choices, bounds: Bounds) -> Choice | None:
    best: tuple[tuple[int, ...], int] | None = None
    for start, values in choices.blocks():
        costs = choices.costs.table(values, **choices.sizes)
        fitting = within(costs, bounds)
        if fitting.any():
            place = largest(costs, fitting, bounds)
            own = tuple(int(getattr(costs, metric)[place]) for metric in bounds), start + place
            best = own if best is None else max(best, own)
    return None if best is None else choices.numbered(best[1])


def _climbed(choices: Choices, bounds: Bounds) -> Choice | None:
    """From the largest even choice; where that does not come close, from the best of many drawn ones too."""
    metric, limit = next(iter(bounds.items()))
    tops = [len(knob.distinct) - 1 for knob in choices.knobs]
    steps = max(tops)
    diagonal = [tuple(top * step // steps for top in tops) for step in range(steps + 1)]
    start = _best_of(choices, diagonal, bounds)
    if start is None:
        return None
    found = [_traded_up(choices, start, tops, bounds)]
    if _of(choices, found[0], metric) < (1 - CLOSE) * limit and found[0] != tuple(tops):
        found += [_traded_up(choices, each, tops, bounds) for each in _drawn(choices, tops, bounds)]
    return max(found, key=lambda choice: tuple(_of(choices, choice, each) for each in bounds))


def _traded_up(choices: Choices, now: Choice, tops: Sequence[int], bounds: Bounds) -> Choice:
    """Raise knobs while any fits, then trade one against another while it helps."""
    metric, limit = next(iter(bounds.items()))
    for _ in range(ROUNDS):
        cost = _of(choices, now, metric)
        found = _best_of(choices, _raised(now, tops), bounds)
        if found is None and cost < (1 - TINY) * limit:
            found = _best_of(choices, _traded(now, tops), bounds)
        if found is None or _of(choices, found, metric) <= cost:
            break
        now = found
    return now


def _drawn(choices: Choices, tops: Sequence[int], bounds: Bounds) -> list[Choice]:
    """The largest of many random choices that fit, large and small ones alike; the same ones each time."""
    chance = np.random.default_rng(0)
    shares = chance.random((DRAWS, 1))
    drawn = chance.binomial(np.array(tops)[None, :], np.broadcast_to(shares, (DRAWS, len(tops))))
    costs = choices.table(drawn)
    left = np.flatnonzero(within(costs, bounds))
    order = np.argsort(getattr(costs, next(iter(bounds)))[left], kind="stable")
    return [tuple(map(int, drawn[left[place]])) for place in order[-STARTS:]]


def _of(choices: Choices, choice: Choice, metric: str) -> int:
    return int(getattr(choices.table([choice]), metric)[0])


def _best_of(choices: Choices, candidates: Sequence[Choice], bounds: Bounds) -> Choice | None:
    if not candidates:
        return None
    costs = choices.table(candidates)
    fitting = within(costs, bounds)
    return candidates[largest(costs, fitting, bounds)] if fitting.any() else None


def _raised(now: Choice, tops: Sequence[int]) -> list[Choice]:
    """One knob one level up."""
    return [(*now[:i], level + 1, *now[i + 1 :]) for i, level in enumerate(now) if level < tops[i]]


def _traded(now: Choice, tops: Sequence[int]) -> list[Choice]:
    """One knob up, by any number of levels, and another down, by any number."""
    found = []
    for i, up in enumerate(now):
        for j, down in enumerate(now):
            if i != j:
                for higher in range(up + 1, tops[i] + 1):
                    for lower in range(down):
                        traded = list(now)
                        traded[i], traded[j] = higher, lower
                        found.append(tuple(traded))
    return found[:: len(found) // MOST + 1]
