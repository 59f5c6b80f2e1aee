"""The space of sub-networks: nested choices of sizes and depths.

Every axis keeps a prefix of its positions, every chain its first blocks; A is contained in B when that holds
for each of them. People move in fractions of groups: `width`, `heads`, `depth`.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np
import torch

from sortify.costs.cost import METRICS, Cost, CostModel, Costs
from sortify.errors import AxesError, BudgetError
from sortify.plan import Plan
from sortify.space.budget import MEASURED, Budget, Limit, figure, not_kept, not_measured, read_budget
from sortify.space.levels import Columns, Fractions, Knob, Trained, check_fractions, default_levels
from sortify.space.profile import Features, MeasuredCost, Prices, Profile
from sortify.space.search import Bounds, Choice, Choices, Matrix, Table, best_choice, largest, within
from sortify.space.subnet import Subnet

__all__ = ["Space", "Subnet", "Trained"]
LISTED = 100_000
"""Members that are still made one by one."""
STEPS = 1024
"""Places on the way from the smallest to the full network among which a chain chooses."""
LevelsOf = int | Sequence[float]


class Space:
    """All sub-networks of a plan, with their exact costs.

    Args:
        plan: the axes and chains.
        costs: the cost of any sub-network.
        trained: what was trained, if anything.
        settings: levels to choose from, where these are not the trained ones.
        profile: what sub-networks cost on a machine, if that was measured.
    """

    def __init__(
        self,
        plan: Plan,
        costs: CostModel,
        trained: Trained | None = None,
        settings: Trained | None = None,
        profile: Profile | None = None,
    ) -> None:
        self._plan = plan
        self._costs = costs
        self._prices = None if profile is None else Prices(Features(costs, plan), profile)
        self._columns = Columns(plan)
        self.trained = trained
        self.groups = self._columns.groups
        self.settings = settings or trained or default_levels(self.groups)
        self._knobs_of = lru_cache(maxsize=64)(
            lambda levels: self._columns.knobs(replace(self.settings, levels=levels))
        )
        self._table = lru_cache(maxsize=8)(self._costed)

    # -- what there is to choose from

    @cached_property
    def knobs(self) -> tuple[Knob, ...]:
        """What is chosen at once, with its levels: a group, or a single axis that is untied."""
        return self._columns.knobs(self.settings)

    @property
    def count(self) -> int:
        """How many members there are."""
        return math.prod(len(knob.distinct) for knob in self.knobs)

    def untied(self, *names: str) -> Space:
        """This space with axes that move on their own: kinds (`inner`), groups, patterns or names of axes and chains.

        Raises:
            AxesError: a name means nothing here.
        """
        return self.using(untied=(*self.settings.untied, *names))

    @property
    def tied(self) -> Space:
        """This space with all axes of a group moving together."""
        return self.using(untied=())

    def using(
        self,
        levels: Mapping[str, LevelsOf] | None = None,
        untied: Sequence[str] | None = None,
        multiple: int | None = None,
        every: Sequence[str] | None = None,
    ) -> Space:
        """This space with other settings.

        Args:
            levels: group, kind, pattern or name -> how many levels, or the fractions; what is not named stays full.
            untied: what moves on its own.
            multiple: widths are rounded to multiples of this number.
            every: what has every size from its lowest level to its highest, not the levels alone.

        Raises:
            AxesError: a name means nothing here, or a level is no fraction.
        """
        now = self.settings
        multiple = now.multiple if multiple is None else multiple
        untied = now.untied if untied is None else tuple(untied)
        settings = Trained(now.levels, untied, multiple, now.every if every is None else tuple(every))
        if levels is not None:
            settings = replace(settings, levels=self._levels(levels, multiple))
        self._columns.knobs(settings)
        return Space(self._plan, self._costs, self.trained, settings, self.profile)

    def groups_of(self, name: str) -> tuple[str, ...]:
        """The groups of the axes and chains that a name or pattern means.

        Raises:
            AxesError: it means nothing here.
        """
        return tuple(dict.fromkeys(self._columns.all[place].group for place in self._columns.named(name)[1]))

    def _levels(self, levels: Mapping[str, LevelsOf], multiple: int) -> tuple[tuple[str, Fractions], ...]:
        found = []
        for key, value in levels.items():
            own = self._columns.even(key, value, multiple) if isinstance(value, int) else tuple(map(float, value))
            check_fractions(key, own)
            found.append((key, own))
        return tuple(found)

    # -- single sub-networks

    @cached_property
    def full(self) -> Subnet:
        """The full network."""
        return self.subnet()

    @property
    def smallest(self) -> Subnet:
        """Every knob at its lowest level."""
        return self._member(self.knobs, (0,) * len(self.knobs))

    def subnet(self, **fractions: float) -> Subnet:
        """The sub-network with the given fractions (1 where nothing is given).

        Args:
            fractions: of groups, kinds, axes or chains; patterns of names are accepted too.

        Raises:
            AxesError: a name means nothing here, or a fraction is not in (0, 1].
        """
        for name, fraction in fractions.items():
            self._columns.named(name)
            check_fractions(name, (fraction,))
        multiple = self.settings.multiple
        owners = self._columns.owners(list(fractions))
        values = [
            column.size(fractions[owner] if owner is not None else 1.0, multiple)
            for column, owner in zip(self._columns.all, owners, strict=True)
        ]
        return self._subnet(values, fractions)

    def _subnet(self, values: Sequence[int], fractions: Mapping[str, float]) -> Subnet:
        """A sub-network from its values; groups of which anything is full and not named are told as such."""
        owners = self._columns.owners(list(fractions))
        left = {c.group for c, owner in zip(self._columns.all, owners, strict=True) if owner is None}
        told = {group: 1.0 for group in self.groups if group in left or group in fractions} | dict(fractions)
        named = [(column.name, int(n)) for column, n in zip(self._columns.all, values, strict=True)]
        axes = len(self._plan.axes)
        return Subnet(tuple(named[:axes]), tuple(named[axes:]), tuple(told.items()))

    def _member(self, knobs: Sequence[Knob], choice: Choice) -> Subnet:
        values = [column.full for column in self._columns.all]
        for knob, level in zip(knobs, choice, strict=True):
            for place, size in zip(knob.columns, knob.distinct[level].sizes, strict=True):
                values[place] = size
        fractions = {knob.name: knob.distinct[level].fraction for knob, level in zip(knobs, choice, strict=True)}
        return self._subnet(values, fractions)

    def sample(self, generator: torch.Generator, **levels: LevelsOf) -> Subnet:
        """One uniform level of each knob, independently (SortedNet, arXiv 2309.00255)."""
        return self.chosen(
            [int(torch.randint(count, (1,), generator=generator)) for count in self.choices(**levels)], **levels
        )

    def choices(self, **levels: LevelsOf) -> list[int]:
        """How many levels each knob has, in order: a group, or a single axis where the space unties it.

        Args:
            levels: per group, kind, pattern or name, as for `grid`; none at all means those of the space.
        """
        return [len(knob.levels) for knob in self._knobs_for(levels)]

    def ladder(self, **levels: LevelsOf) -> dict[str, tuple[float, ...]]:
        """The fractions of each knob, ascending, by the name of the knob; see `choices`."""
        return {knob.name: tuple(level.fraction for level in knob.levels) for knob in self._knobs_for(levels)}

    def chosen(self, places: Sequence[int], **levels: LevelsOf) -> Subnet:
        """The sub-network with each knob at the level of this number (0: smallest, -1: largest).

        Args:
            places: one number per knob, see `choices`; levels: the same as there.
        """
        values, drawn = [column.full for column in self._columns.all], {}
        for knob, place in zip(self._knobs_for(levels), places, strict=True):
            level = knob.levels[place]
            drawn[knob.name] = level.fraction
            for column, size in zip(knob.columns, level.sizes, strict=True):
                values[column] = size
        return self._subnet(values, drawn)

    def _knobs_for(self, levels: Mapping[str, LevelsOf]) -> tuple[Knob, ...]:
        own = {name: value if isinstance(value, int) else tuple(value) for name, value in levels.items()}
        return self._knobs_of(self._levels(own, self.settings.multiple)) if levels else self.knobs

    # -- many

    def members(self) -> list[Subnet]:
        """The sub-networks that were trained; before training, the grid of the default levels.

        Raises:
            AxesError: there are too many to list.
        """
        if self.count > LISTED:
            raise AxesError(
                f"this space has {self.count:,} members, too many to list: draw with sample(), choose with at(), "
                f"or list those whose axes move together, space.tied.members()"
            )
        return [self._member(self.knobs, choice) for choice in self._all(self.knobs)]

    def landmarks(self) -> list[Subnet]:
        """The sub-networks to measure: all members, or, of untied axes and of every size, those at the levels alone."""
        now = self.settings
        return (self.using(untied=(), every=()) if now.untied or now.every else self).members()

    @staticmethod
    def _all(knobs: Sequence[Knob]) -> list[Choice]:
        return list(itertools.product(*(range(len(knob.distinct)) for knob in knobs)))

    def grid(self, **levels: LevelsOf) -> list[Subnet]:
        """Every combination of levels, each distinct sub-network once, smallest fractions first.

        Args:
            levels: per group (kind, pattern, name), a number of levels (4: .25 .5 .75 1) or the fractions themselves;
                others are full. Where sizes are too small for so many levels there are fewer, and a warning says so.
        """
        own = self._levels(levels, self.settings.multiple)
        knobs = self._columns.knobs(Trained(own, (), self.settings.multiple))
        made = {knob.name: len(knob.distinct) for knob in knobs}
        for key, value in levels.items():
            if isinstance(value, int) and made.get(key, value) < value:
                warnings.warn(f"grid: {key} has {made[key]} different levels, not {value}", stacklevel=2)
        return [self._member(knobs, choice) for choice in self._all(knobs)]

    def chain(self, n: int, metric: str = "flops") -> list[Subnet]:
        """At most `n` sub-networks from the smallest to the full one, each inside the next, in even steps of cost.

        Before training all fractions grow together; after it only trained levels are used, one raised at a time.

        Args:
            n: how many; fewer where there are not so many on the way.
            metric: the cost of which the steps are about equal.
        """
        way = self._trained_way() if self.trained else self._even_way()
        way = list(dict.fromkeys(way))
        costs = [int(value) for value in getattr(self.costs(way), metric)]
        if n < 2:
            return way[-1:]
        low, high = costs[0], costs[-1]
        chosen = {0, len(way) - 1}
        for step in range(1, n - 1):
            wanted = low + (high - low) * step / (n - 1)
            chosen.add(min(range(len(way)), key=lambda place: abs(costs[place] - wanted)))
        return [way[place] for place in sorted(chosen)]

    def _even_way(self) -> list[Subnet]:
        low = {knob.name: knob.distinct[0].fraction for knob in self.knobs}
        steps = [step / STEPS for step in range(1, STEPS + 1)]
        return [
            self.smallest,
            *(self.subnet(**{k: round(f + (1 - f) * step, 3) for k, f in low.items()}) for step in steps),
        ]

    def _trained_way(self) -> list[Subnet]:
        """From the smallest, raise the knob that stands lowest, level by level."""
        now = [0] * len(self.knobs)
        way = [self.smallest]
        while True:
            left = [i for i, knob in enumerate(self.knobs) if now[i] + 1 < len(knob.distinct)]
            if not left:
                return [*way, self.full]
            lowest = min(left, key=lambda i: self.knobs[i].distinct[now[i]].fraction)
            now[lowest] += 1
            way.append(self._member(self.knobs, tuple(now)))

    # -- costs and budgets

    @property
    def exact(self) -> CostModel:
        """The exact cost of any sub-network by its values."""
        return self._costs

    @property
    def profile(self) -> Profile | None:
        """What sub-networks cost on a machine, if that was measured."""
        return None if self._prices is None else self._prices.profile

    def _known(self, metrics: Collection[str]) -> Table:
        """What knows these metrics: the exact costs, or the profile too."""
        measured = tuple(metric for metric in MEASURED if metric in metrics)
        exact = tuple(metric for metric in metrics if metric not in MEASURED)
        if self._prices is not None and measured:
            return replace(self._prices, metrics=measured, exact=exact)
        return self._costs.only(exact)

    def measured_cost(self, subnet: Subnet) -> MeasuredCost:
        """The latency and the peak memory of a sub-network, as the profile predicts them.

        Raises:
            BudgetError: there is no profile.
        """
        if self._prices is None:
            raise BudgetError(not_measured(Limit("latency", Fraction(1), relative=True)))
        found = self._prices.table(np.array([subnet.values], dtype=np.int64))
        return MeasuredCost(int(found.latency[0]) / 1e9, int(found.memory[0]))

    @property
    def open_sizes(self) -> dict[str, int]:
        """The sizes that a call decides (`batch`, `sequence`, ...), as they are at the example inputs."""
        return self._costs.open_sizes

    def cost(self, subnet: Subnet, **sizes: int) -> Cost:
        """The exact cost of one call of a sub-network; see `SortedModel.cost`."""
        return self._costs(subnet.values, **sizes)

    def costs(self, subnets: Sequence[Subnet] | Matrix, **sizes: int) -> Costs:
        """The exact costs of many sub-networks at once.

        Args:
            subnets: sub-networks, or their `values` as rows of a matrix (int64), which is a hundred times as fast.
            sizes: open sizes, such as `batch=1`; else those of the example inputs.

        Raises:
            AxesError: a matrix has not one column per axis and chain, or a size is not among those of the model.
        """
        if not isinstance(subnets, np.ndarray):
            values = np.array([subnet.values for subnet in subnets], dtype=np.int64)
            return self._costs.table(values.reshape(len(subnets), len(self._columns.all)), **sizes)
        full = np.array(self.full.values, dtype=np.int64)
        if subnets.ndim != 2 or subnets.shape[1] != len(full):
            raise AxesError(f"costs: expected a matrix of {len(full)} columns, axes then chains, got {subnets.shape}")
        if subnets.size and ((subnets.max(axis=0) > full).any() or subnets.min() < 0):
            raise AxesError("costs: a size is negative or larger than the full network's")
        return self._costs.table(subnets, **sizes)

    def at(
        self,
        budget: Budget,
        metric: str = "flops",
        *,
        scores: Mapping[Subnet, float] | None = None,
        **sizes: int,
    ) -> Subnet:
        """The largest member within a budget, without a search of architectures.

        Args:
            budget: a share of the full network's cost (0.5, "50%"), a cost ("300 MFLOPs", "2.5M params"), or several.
            metric: what a budget without a unit is about: flops, params, activation_bytes, cache_bytes, or, with a
                profile, latency or memory. Of several budgets the first is the one that is used up.
            scores: measured sub-networks, higher is better: the best one within the budget is chosen among these, where
                there is one.
            sizes: open sizes to cost at, such as `batch=1`; else those of the example inputs.

        Raises:
            BudgetError: no member is that small (the message names the smallest), or the budget cannot be read.
        """
        limits = read_budget(budget, metric)
        bounds = self._bounds(limits, sizes)
        found = self._best_scored(scores, bounds, sizes) if scores else None
        return found or self._largest(bounds, limits, sizes)

    def fitting(
        self, subnets: Sequence[Subnet], budget: Budget, metric: str = "flops", **sizes: int
    ) -> dict[Subnet, int]:
        """Those of some sub-networks that keep to a budget, with what each uses up of it, the most first.

        Args:
            subnets: to choose from; budget, metric, sizes: as for `at`.

        Raises:
            BudgetError: the budget cannot be read.
        """
        bounds = self._bounds(read_budget(budget, metric), sizes)
        if not subnets:
            return {}
        costs = self._known(bounds).table(np.array([subnet.values for subnet in subnets], dtype=np.int64), **sizes)
        used = getattr(costs, next(iter(bounds)))
        places = sorted(map(int, np.flatnonzero(within(costs, bounds))), key=lambda place: -used[place])
        return {subnets[place]: int(used[place]) for place in places}

    def _bounds(self, limits: Sequence[Limit], sizes: Mapping[str, int]) -> dict[str, int]:
        """Metric -> the most that it may cost."""
        self._check_measured(limits, sizes)
        bounds: dict[str, int] = {}
        for limit in limits:
            whole = self._of(self.full, limit.metric, sizes)
            if limit.metric == "cache_bytes" and not whole:
                raise BudgetError(not_kept(limit))
            own = limit.bound(whole)
            bounds[limit.metric] = min(own, bounds.get(limit.metric, own))
        return bounds

    def _check_measured(self, limits: Sequence[Limit], sizes: Mapping[str, int]) -> None:
        """Refuse limits of what is measured where no profile is, or none of calls of these sizes."""
        for limit in limits:
            if limit.metric in MEASURED and self.profile is None:
                raise BudgetError(not_measured(limit))
            if limit.metric in MEASURED and self.profile is not None:
                own = dict(self.profile.sizes)
                wrong = [f"{name}={size}" for name, size in sizes.items() if own.get(name, size) != size]
                if wrong:
                    told = ", ".join(f"{name}={size}" for name, size in own.items())
                    raise BudgetError(
                        f"budget {limit}: the profile was measured at {told}, not at {', '.join(wrong)}: "
                        f"run `sortify profile --sizes {','.join(wrong)}`, or leave the sizes out"
                    )

    def _of(self, subnet: Subnet, metric: str, sizes: Mapping[str, int]) -> int:
        values = np.array([subnet.values], dtype=np.int64)
        return int(getattr(self._known([metric]).table(values, **sizes), metric)[0])

    def _best_scored(self, scores: Mapping[Subnet, float], bounds: Bounds, sizes: Mapping[str, int]) -> Subnet | None:
        known = list(scores)
        costs = self._known(bounds).table(np.array([subnet.values for subnet in known], dtype=np.int64), **sizes)
        fitting = [int(place) for place in np.flatnonzero(within(costs, bounds))]
        metric = next(iter(bounds))
        best = max(fitting, key=lambda p: (scores[known[p]], -getattr(costs, metric)[p]), default=None)
        return None if best is None else known[best]

    def _largest(self, bounds: Bounds, limits: Sequence[Limit], sizes: Mapping[str, int]) -> Subnet:
        choices = Choices(self.knobs, self.full.values, self._known(bounds), sizes)
        if self.count <= LISTED:
            measured = tuple(metric for metric in MEASURED if metric in bounds)
            matrix, costs = self._table(tuple(sorted(sizes.items())), measured)
            fitting = within(costs, bounds)
            found = tuple(map(int, matrix[largest(costs, fitting, bounds)])) if fitting.any() else None
        else:
            found = best_choice(choices, bounds)
        if found is None:
            raise BudgetError(self._too_small(bounds, limits, sizes))
        return self._member(self.knobs, found)

    def _costed(self, sizes: tuple[tuple[str, int], ...], metrics: tuple[str, ...]) -> tuple[Matrix, Costs]:
        """All choices and their costs; members that cost the same stand in the order of their sizes."""
        known = self._known((*METRICS, *metrics))
        choices = Choices(self.knobs, self.full.values, known, dict(sizes))
        matrix = np.array(self._all(self.knobs), dtype=np.int64).reshape(choices.count, len(self.knobs))
        values = choices.values(matrix)
        order = np.lexsort(values.T[::-1])
        return matrix[order], known.table(values[order], **dict(sizes))

    def _too_small(self, bounds: Bounds, limits: Sequence[Limit], sizes: Mapping[str, int]) -> str:
        """What to say where nothing fits: costs grow with sizes, so the smallest member has the least of each."""
        told = []
        for limit in limits:
            least, full = (self._of(each, limit.metric, sizes) for each in (self.smallest, self.full))
            if least > limit.bound(full):
                share, own, whole = least / max(1, full), figure(limit.metric, least), figure(limit.metric, full)
                told.append(
                    f"{limit} ({whole}) is too small: the smallest reachable is {share:.4f} ({own})"
                    if limit.relative
                    else f"{limit} is too small: the smallest reachable is {own} ({share:.4f} of the full network)"
                )
        return f"budget {'; '.join(told)} with {self.smallest}"

    def is_member(self, subnet: Subnet) -> bool:
        """Whether a sub-network is one of those to choose from (after training: of those that were trained)."""
        values, left = subnet.values, [column.full for column in self._columns.all]
        if len(values) != len(left):
            return False
        for knob in self.knobs:
            own = tuple(values[place] for place in knob.columns)
            if own not in {level.sizes for level in knob.distinct}:
                return False
            for place in knob.columns:
                left[place] = values[place]
        return tuple(left) == values

    def __contains__(self, subnet: object) -> bool:
        """Whether a sub-network belongs to this model, whatever its sizes."""
        return (
            isinstance(subnet, Subnet)
            and [n for n, _ in subnet.sizes] == [a.name for a in self._plan.axes]
            and (self.full.contains(subnet) and min(subnet.values, default=0) >= 0)
        )
