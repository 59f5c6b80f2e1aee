"""The history of a training as curves: few enough points to draw, whatever the number of steps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sortify.training.state import StateFolder

POINTS = 150
"""Points of a curve."""
LEVEL_POINTS = 30
"""Points of each of several curves in one picture."""
WINDOW = 40
"""A smoothed curve looks over one in so many of the steps to either side."""

Series = Sequence[tuple[int, float]]
"""Pairs of a step and a value, in the order of the steps."""


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        loss: the mean over its draws; rate: of learning.
        draws: the drawn sub-networks, in words, with their losses.
        flops: the mean share of the full network's FLOPs that they cost; NaN where that was not written down.
    """

    step: int
    loss: float
    rate: float
    draws: tuple[tuple[str, float], ...]
    flops: float = math.nan


@dataclass(frozen=True)
class History:
    """What a training wrote down.

    Attributes:
        steps: in order; those whose loss is not finite are left out.
        config: the settings of a training that came to its end; data: what it was trained on, if that is known.
        unfinished: whether it was interrupted and can be resumed.
    """

    steps: tuple[Step, ...] = ()
    config: Mapping[str, Any] | None = None
    unfinished: bool = False
    data: str = ""

    @property
    def flops(self) -> float | None:
        """The mean share of the full network's FLOPs that all draws cost, where that is known."""
        known = [(step.flops, len(step.draws)) for step in self.steps if math.isfinite(step.flops) and step.draws]
        count = sum(own for _, own in known)
        return math.fsum(share * own for share, own in known) / count if count else None


@dataclass(frozen=True)
class Bucket:
    """Steps `first` to `last` in one point: the least, mean and largest value, and the smoothed one at its end."""

    first: int
    last: int
    low: float
    mean: float
    high: float
    smooth: float


def read_history(directory: str | Path) -> History:
    """Read DIR/training/; what is damaged is left out."""
    folder = StateFolder(Path(directory))
    try:
        lines = folder.history()
    except (OSError, ValueError):
        lines = []
    steps = [step for step in map(_step, lines) if step is not None]
    status = folder.finished or {}
    config, data = status.get("config"), str(status.get("data", ""))
    return History(tuple(steps), config if isinstance(config, Mapping) else None, folder.unfinished, data)


def _step(line: Any) -> Step | None:
    try:
        draws = tuple((str(name), float(loss)) for name, loss in line.get("draws", ()))
        rate, flops = (float(line.get(name, math.nan)) for name in ("lr", "flops"))
        found = Step(int(line["step"]), float(line["loss"]), rate, draws, flops)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return found if math.isfinite(found.loss) else None


def buckets(series: Series, points: int = POINTS) -> list[Bucket]:
    """Gather a series into at most so many points of equally many values."""
    size = max(1, -(-len(series) // points))
    smooth = smoothed([value for _, value in series])
    found = []
    for start in range(0, len(series), size):
        part = series[start : start + size]
        values = [value for _, value in part]
        mean = math.fsum(values) / len(values)
        end = smooth[start + len(part) - 1]
        found.append(Bucket(part[0][0], part[-1][0], min(values), mean, max(values), end))
    return found


def smoothed(values: Sequence[float]) -> list[float]:
    """A mean of each value and those around it, the farther the less; it does not lag behind."""
    after = _trailing(values[::-1])[::-1]
    return [(one + other) / 2 for one, other in zip(_trailing(values), after, strict=True)]


def _trailing(values: Sequence[float]) -> list[float]:
    """A mean of each value and those before it, the earlier the less."""
    keep = 1 - 1 / max(1.0, len(values) / WINDOW)
    total = weight = 0.0
    found = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        found.append(total / weight)
    return found


def by_subnet(history: History) -> dict[str, list[tuple[int, float]]]:
    """The losses of every sub-network, in the order in which they were drawn first."""
    found: dict[str, list[tuple[int, float]]] = {}
    for step in history.steps:
        for name, loss in step.draws:
            if math.isfinite(loss):
                found.setdefault(name, []).append((step.step, loss))
    return found


def by_level(history: History) -> dict[str, dict[float, list[tuple[int, float]]]]:
    """The losses at each level of every group, whatever the other groups were: group -> level -> losses.

    Groups that were drawn at one level only are left out, and sub-networks whose words are not `group=level`.
    """
    found: dict[str, dict[float, list[tuple[int, float]]]] = {}
    for step in history.steps:
        for name, loss in step.draws:
            for group, level in levels_of(name).items():
                if math.isfinite(loss):
                    found.setdefault(group, {}).setdefault(level, []).append((step.step, loss))
    return {group: dict(sorted(levels.items())) for group, levels in found.items() if len(levels) > 1}


@lru_cache(maxsize=4096)
def levels_of(name: str) -> Mapping[str, float]:
    """`width=0.5 depth=1` as numbers; nothing where something else stands in it."""
    words = [re.fullmatch(r"([^\s=]+)=(\d+(?:\.\d+)?(?:e-?\d+)?)", word) for word in name.split()]
    return {word[1]: float(word[2]) for word in words if word} if all(words) else {}


def spread(levels: Sequence[float], most: int) -> list[float]:
    """At most so many of some levels, the ends among them, evenly between."""
    if len(levels) <= most:
        return list(levels)
    return [levels[round(i * (len(levels) - 1) / (most - 1))] for i in range(most)]


def gathered(levels: Mapping[float, Series], chosen: Sequence[float]) -> dict[float, Series]:
    """The losses of all levels, each with the nearest of some, in the order of the steps."""
    found: dict[float, list[tuple[int, float]]] = {level: [] for level in chosen}
    for level, losses in levels.items():
        found[min(chosen, key=lambda own: abs(own - level))].extend(losses)
    return {level: sorted(losses) for level, losses in found.items()}
