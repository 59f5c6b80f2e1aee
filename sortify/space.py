"""The space of sub-networks: nested choices of sizes and depths.

Every axis keeps a prefix of its positions, every chain its first blocks; A is contained in B when that holds
for each of them. People move in fractions of groups: `width`, `heads`, `depth`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sortify.cost import Cost, CostModel, Costs
from sortify.errors import AxesError, BudgetError
from sortify.plan import LEVELS, Plan, scaled

GROUPS = ("width", "heads", "head_dim", "norm_groups", "repeat", "factor", "depth")
METRICS = ("flops", "params", "activation_bytes")


@dataclass(frozen=True)
class Subnet:
    """One sub-network.

    Attributes:
        sizes: the active size of every axis, in the plan's order.
        depths: the number of blocks kept of every chain.
        fractions: what it was made from, for people; two sub-networks of equal sizes are equal.
    """

    sizes: tuple[tuple[str, int], ...]
    depths: tuple[tuple[str, int], ...]
    fractions: tuple[tuple[str, float], ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return " ".join(f"{group}={fraction:g}" for group, fraction in self.fractions) or (
            f"{sum(n for _, n in self.sizes)} units, {sum(n for _, n in self.depths)} blocks"
        )

    def contains(self, other: Subnet) -> bool:
        """Whether `other` is nested in this one: no axis larger, no chain longer."""
        mine, theirs = self.values, other.values
        return len(mine) == len(theirs) and all(a >= b for a, b in zip(mine, theirs, strict=True))

    @property
    def values(self) -> tuple[int, ...]:
        """Sizes, then depths: what the rewritten graph takes."""
        return tuple(n for _, n in (*self.sizes, *self.depths))

    def to_json(self) -> dict[str, Any]:
        return {"sizes": dict(self.sizes), "depths": dict(self.depths), "fractions": dict(self.fractions)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Subnet:
        return cls(*(tuple(data[key].items()) for key in ("sizes", "depths", "fractions")))


@dataclass(frozen=True)
class Trained:
    """Which groups and fractions were trained: budgets choose among these."""

    levels: tuple[tuple[str, tuple[float, ...]], ...]

    def to_json(self) -> dict[str, Any]:
        return {group: list(levels) for group, levels in self.levels}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trained:
        return cls(tuple((group, tuple(levels)) for group, levels in data.items()))


class Space:
    """All sub-networks of a plan, with their exact costs.

    Args:
        plan: the axes and chains.
        costs: the cost of any sub-network.
        trained: the groups and levels that were trained, if any.
    """

    def __init__(self, plan: Plan, costs: CostModel, trained: Trained | None = None) -> None:
        self._plan = plan
        self._costs = costs
        self.trained = trained
        present = {axis.group for axis in plan.axes} | ({"depth"} if plan.chains else set())
        self.groups = tuple(group for group in GROUPS if group in present)

    @property
    def full(self) -> Subnet:
        return self.subnet()

    @property
    def smallest(self) -> Subnet:
        """Every group at its lowest level."""
        return self.subnet(**{group: min(self._levels(group)) for group in self.groups})

    def _levels(self, group: str) -> tuple[float, ...]:
        known = dict(self.trained.levels) if self.trained else dict.fromkeys(self.groups, LEVELS)
        return known.get(group, (1.0,))

    def subnet(self, **fractions: float) -> Subnet:
        """The sub-network with the given fractions of groups, axes or chains (1 where nothing is given).

        Raises:
            AxesError: a name is no group, axis or chain, or a fraction is not in (0, 1].
        """
        names = {*self.groups, *(a.name for a in self._plan.axes), *(c.name for c in self._plan.chains)}
        for name, fraction in fractions.items():
            if name not in names:
                raise AxesError(f"{name!r} is no group, axis or chain of this model; groups: {', '.join(self.groups)}")
            if not 0 < fraction <= 1:
                raise AxesError(f"{name}={fraction}: expected a fraction above 0 and at most 1")
        sizes = tuple(
            (a.name, scaled(a.size, fractions.get(a.name, fractions.get(a.group, 1.0)))) for a in self._plan.axes
        )
        depths = tuple(
            (c.name, int(len(c.blocks) * fractions.get(c.name, fractions.get("depth", 1.0)) + 0.5))
            for c in self._plan.chains
        )
        return Subnet(sizes, depths, tuple({**dict.fromkeys(self.groups, 1.0), **fractions}.items()))

    def grid(self, **levels: int | Sequence[float]) -> list[Subnet]:
        """Every combination of levels, each distinct sub-network once, smallest fractions first.

        Args:
            levels: per group, a number of levels (4: .25 .5 .75 1) or the fractions themselves; other groups are full.
        """
        names = list(levels)
        choices = [self._fractions(group, value) for group, value in levels.items()]
        members = [self.subnet(**dict(zip(names, combo, strict=True))) for combo in itertools.product(*choices)]
        return list(dict.fromkeys(reversed(members)))[::-1]

    @staticmethod
    def _fractions(group: str, levels: int | Sequence[float]) -> tuple[float, ...]:
        if isinstance(levels, int):
            if levels < 1:
                raise AxesError(f"{group}={levels}: expected at least one level")
            return tuple((i + 1) / levels for i in range(levels))
        return tuple(levels)

    def members(self) -> list[Subnet]:
        """The sub-networks that were trained; before training, the grid of the default levels."""
        if not self.groups:
            return [self.full]
        return self.grid(**{group: self._levels(group) for group in self.groups})

    def chain(self, n: int) -> list[Subnet]:
        """`n` nested sub-networks from the smallest to the full one, each contained in the next."""
        low = {group: min(self._levels(group)) for group in self.groups}
        steps = [1.0] if n < 2 else [i / (n - 1) for i in range(n)]
        members = [self.subnet(**{g: low[g] + (1 - low[g]) * step for g in self.groups}) for step in steps]
        return list(dict.fromkeys(members))

    def sample(self, generator: torch.Generator, **levels: int | Sequence[float]) -> Subnet:
        """One uniform level of each group, independently (SortedNet, arXiv 2309.00255)."""
        wanted = levels or {group: self._levels(group) for group in self.groups}
        drawn = {}
        for group, value in wanted.items():
            options = self._fractions(group, value)
            drawn[group] = options[int(torch.randint(len(options), (1,), generator=generator))]
        return self.subnet(**drawn)

    def at(self, budget: float, metric: str = "flops") -> Subnet:
        """The largest member within `budget` times the full network's cost, without a search.

        Args:
            budget: a fraction of the full cost, e.g. 0.5.
            metric: flops, params or activation_bytes.

        Raises:
            BudgetError: no member is that small (the message names the smallest), or the metric is unknown.
        """
        if metric not in METRICS:
            raise BudgetError(f"metric {metric!r}: expected one of {', '.join(METRICS)}")
        if not budget > 0:
            raise BudgetError(f"budget {budget}: expected a fraction of the full network above 0, such as 0.5")
        cost: Callable[[Subnet], int] = lambda member: int(getattr(self._costs(member.values), metric))  # noqa: E731
        whole = cost(self.full)
        costs = {member: cost(member) for member in self.members()}
        within = [member for member, value in costs.items() if value <= budget * whole]
        if not within:
            least = min(costs, key=costs.__getitem__)
            raise BudgetError(
                f"budget {budget:g} of the full network's {metric} ({whole:,}) is too small: the smallest reachable is "
                f"{costs[least] / whole:.4f} ({costs[least]:,}) with {least}"
            )
        return max(within, key=lambda member: (costs[member], member.values))

    @property
    def open_sizes(self) -> dict[str, int]:
        """The sizes that a call decides (`batch`, `sequence`, ...), as they are at the example inputs."""
        return self._costs.open_sizes

    def cost(self, subnet: Subnet, **sizes: int) -> Cost:
        """The exact cost of one call of a sub-network; see `SortedModel.cost`."""
        return self._costs(subnet.values, **sizes)

    def costs(self, subnets: Sequence[Subnet], **sizes: int) -> Costs:
        """The exact costs of many sub-networks at once."""
        width = len(self._plan.axes) + len(self._plan.chains)
        values = np.array([subnet.values for subnet in subnets], dtype=np.int64).reshape(len(subnets), width)
        return self._costs.table(values, **sizes)

    def __contains__(self, subnet: object) -> bool:
        return (
            isinstance(subnet, Subnet)
            and [n for n, _ in subnet.sizes] == [a.name for a in self._plan.axes]
            and (self.full.contains(subnet) and min(subnet.values, default=0) >= 0)
        )
