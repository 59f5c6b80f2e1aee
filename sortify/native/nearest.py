"""The largest sub-network within a budget that is a model of the original's own class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sortify.errors import NativeError
from sortify.models.sorted_model import SortedModel
from sortify.native.native import Native, to_native
from sortify.space.budget import Budget
from sortify.space.space import Subnet

FRACTIONS = 64
"""Fractions of a group that are looked at, at most."""
TRIALS = 8
"""Sub-networks within the budget for which settings are looked for, at most."""
CLOSE = 0.95
"""Of those within this share of the largest cost, the one with the most even fractions counts as the largest."""
DEPTH = "depth"


def nearest_native(model: SortedModel, budget: Budget, metric: str = "flops", **sizes: int) -> Native:
    """The largest sub-network within a budget that the original's class can be.

    Not every sub-network is one: many classes tie the size of a head to the width. Which groups have to shrink together
    is found by trying; of a trained model only sub-networks that were trained are taken.

    Args:
        model, budget, metric, sizes: as for `SortedModel.choose`.

    Raises:
        NativeError: none within the budget is, or the model is of no known library.
        BudgetError: nothing fits, or the budget cannot be read.
    """
    chosen = model.choose(budget, metric, **sizes).subnet
    try:
        return to_native(model, chosen)
    except NativeError as error:
        why = error
    trials = 0
    for subnet in _candidates(model, budget, metric, **sizes):
        if subnet != chosen:
            try:
                return to_native(model, subnet)
            except NativeError:
                trials += 1
        if trials == TRIALS:
            break
    raise NativeError(f"{why}; and none of {trials} others within the budget is a model of the class either") from why


def _candidates(model: SortedModel, budget: Budget, metric: str, **sizes: int) -> list[Subnet]:
    """Sub-networks within the budget whose groups move as the class allows, the largest first."""
    space = model.space
    free, tied = _moving(model)
    if space.trained is not None:
        known = space.landmarks()
    elif not (free or tied):
        return []
    else:
        levels = {group: _whole(model, (group,)) for group in free} | dict.fromkeys(tied, _whole(model, tied))
        known = space.grid(**levels)
    fixed = set(space.groups) - {*free, *tied}
    known = [subnet for subnet in known if _moves(subnet, tied, fixed)]
    fitting = space.fitting(known, budget, metric, **sizes)
    most = max(fitting.values(), default=0)
    return sorted(fitting, key=lambda subnet: (fitting[subnet] < CLOSE * most, _spread(subnet), -fitting[subnet]))


def _moves(subnet: Subnet, tied: Sequence[str], fixed: set[str]) -> bool:
    fractions = dict(subnet.fractions)
    together = {fractions.get(group, 1.0) for group in tied}
    return len(together) <= 1 and all(fractions.get(group, 1.0) == 1.0 for group in fixed)


def _spread(subnet: Subnet) -> float:
    fractions = [fraction for _, fraction in subnet.fractions]
    return max(fractions, default=1.0) - min(fractions, default=1.0)


def _moving(model: SortedModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Groups that the class can make smaller one by one, and those that have to shrink together."""
    groups = tuple(model.space.groups)
    free = tuple(group for group in groups if _works(model, (group,)))
    rest = tuple(group for group in groups if group not in free and group != DEPTH)
    return free, rest if len(rest) > 1 and _works(model, rest) else ()


def _works(model: SortedModel, groups: Sequence[str]) -> bool:
    """Whether the class can be a sub-network in which these groups are about half as large."""
    halves = sorted(_whole(model, groups)[:-1], key=lambda fraction: abs(fraction - 0.5))
    for fraction in halves[:1]:
        try:
            to_native(model, model.space.subnet(**dict.fromkeys(groups, fraction)))
        except NativeError:
            return False
    return bool(halves)


def _whole(model: SortedModel, groups: Sequence[str]) -> tuple[float, ...]:
    """The fractions at which all sizes of some groups are whole numbers, ascending; the last is 1.

    Blocks of the longest chain count for depth: shorter ones round.
    """
    if DEPTH in groups:
        parts = max((len(chain.blocks) for chain in model.chains.values()), default=0)
    else:
        parts = math.gcd(*(axis.size for axis in model.axes.values() if axis.group in groups and axis.size > 1))
    if not parts:
        return (1.0,)
    step = next(_divisors(parts, math.ceil(parts / FRACTIONS)), parts)
    return tuple(part / parts for part in range(step, parts + 1, step))


def _divisors(number: int, least: int) -> Iterator[int]:
    return (each for each in range(max(1, least), number + 1) if number % each == 0)
