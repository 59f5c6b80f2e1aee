"""Levels: which sizes a space has to choose from, and what moves together.

A *knob* is what is chosen at once: all axes of a group at one fraction, or, where they are untied, a single axis.
Levels are given for groups (`width`), kinds (`inner`), patterns (`layers.*.inner`) or single axes and chains; for
each axis the most particular one counts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from sortify.errors import AxesError
from sortify.graph.dims import Concat, Dim, Fixed, Named, Product, full
from sortify.plan import LEVELS, Plan, scaled

GROUPS = ("width", "heads", "head_dim", "norm_groups", "repeat", "factor", "depth")
Fractions = tuple[float, ...]


@dataclass(frozen=True)
class Trained:
    """Which sub-networks were trained: budgets choose among these.

    Attributes:
        levels: groups, kinds, patterns or names -> fractions; what is not named stayed full.
        untied: kinds, groups or patterns of axes that were drawn one by one.
        multiple: widths were rounded to multiples of this number of units.
        every: kinds, groups or patterns of which every size from the lowest level to the highest was drawn.
    """

    levels: tuple[tuple[str, Fractions], ...]
    untied: tuple[str, ...] = ()
    multiple: int = 1
    every: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        levels = {name: list(fractions) for name, fractions in self.levels}
        return {
            "levels": levels,
            "untied": list(self.untied),
            "multiple": self.multiple,
            "every": list(self.every),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trained:
        """Read what `to_json` gave. Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
        levels = tuple((str(name), tuple(map(float, fractions))) for name, fractions in data["levels"].items())
        untied, every = (tuple(map(str, names)) for names in (data["untied"], data.get("every", ())))
        return cls(levels, untied, int(data["multiple"]), every)


@dataclass(frozen=True)
class Column:
    """One axis or chain, at its place among `Subnet.values`.

    Attributes:
        name, kind, group: as people call it.
        full: its size in the full network.
        unit: every dimension that it is part of is a multiple of its size times this.
    """

    name: str
    kind: str
    group: str
    full: int
    unit: int = 1

    @property
    def is_chain(self) -> bool:
        """Whether it counts blocks."""
        return self.group == "depth"

    def size(self, fraction: float, multiple: int = 1) -> int:
        """A fraction of the full size: rounded half up; an axis keeps 1 unit at least, a chain may vanish.

        Widths are rounded to the nearest multiple, at least one of it, where the full size allows.
        """
        if self.is_chain:
            return int(self.full * fraction + 0.5)
        step = multiple // math.gcd(multiple, self.unit) if self.group == "width" else 1
        if step == 1 or fraction == 1:
            return scaled(self.full, fraction)
        return min(self.full, max(step, int(self.full * fraction / step + 0.5) * step))


def columns_of(plan: Plan) -> tuple[Column, ...]:
    """The axes, then the chains."""
    units: dict[str, int] = {}
    for dims in plan.shapes.values():
        for dim in dims:
            for axis, unit in _units(dim, 1):
                units[axis] = math.gcd(unit, units.get(axis, 0))
    axes = [Column(a.name, a.kind, a.group, a.size, units.get(a.name, 1)) for a in plan.axes]
    return (*axes, *(Column(c.name, "depth", "depth", len(c.blocks)) for c in plan.chains))


def _units(dim: Dim, unit: int) -> Iterator[tuple[str, int]]:
    """Every axis of a dimension, with what its size is multiplied by there."""
    match dim:
        case Named(axis, _):
            yield axis, unit
        case Product(factors):
            for factor in factors:
                rest = math.prod(full(f) for f in factors if f is not factor and isinstance(f, Fixed))
                yield from _units(factor, unit * rest)
        case Concat(segments):
            for segment in segments:
                yield from _units(segment, unit)


@dataclass(frozen=True)
class Level:
    """One position of a knob: the fraction, and the sizes of its axes and chains there."""

    fraction: float
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Knob:
    """Axes and chains that move together.

    Attributes:
        name: the key of its levels, or the axis.
        columns: places among `Subnet.values`.
        levels: ascending.
        distinct: the levels of different sizes; of equal ones that with the largest fraction.
    """

    name: str
    columns: tuple[int, ...]
    levels: tuple[Level, ...]
    distinct: tuple[Level, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = {level.sizes: level for level in self.levels}
        object.__setattr__(self, "distinct", tuple(sorted(found.values(), key=lambda level: level.sizes)))


class Columns:
    """All axes and chains of a plan, found by what people call them."""

    def __init__(self, plan: Plan) -> None:
        self.all = columns_of(plan)
        present = {column.group for column in self.all}
        self.groups = tuple(group for group in GROUPS if group in present)
        self._known: dict[str, tuple[int, list[int]]] = {}

    def named(self, key: str) -> tuple[int, list[int]]:
        """How particular a key is (3: one name, 2: a pattern, 1: a kind, 0: a group), and the places that it means.

        Raises:
            AxesError: it means nothing here.
        """
        if key not in self._known:
            self._known[key] = self._found(key)
        return self._known[key]

    def _found(self, key: str) -> tuple[int, list[int]]:
        columns = list(enumerate(self.all))
        ways = (
            (0, [place for place, column in columns if column.group == key]),
            (3, [place for place, column in columns if column.name == key]),
            (1, [place for place, column in columns if column.kind == key]),
            (2, [place for place, column in columns if fnmatchcase(column.name, key)]),
        )
        for rank, found in ways:
            if found:
                return rank, found
        groups = ", ".join(self.groups)
        raise AxesError(f"{key!r} is no group, axis or chain of this model; groups: {groups}")

    def owners(self, keys: Sequence[str]) -> list[str | None]:
        """For every place the most particular key that means it; of equally particular ones the last."""
        best: list[tuple[int, str | None]] = [(-1, None)] * len(self.all)
        for key in keys:
            rank, places = self.named(key)
            for place in places:
                if rank >= best[place][0]:
                    best[place] = rank, key
        return [key for _, key in best]

    def knobs(self, settings: Trained) -> tuple[Knob, ...]:
        """What is chosen, each knob with its levels.

        Raises:
            AxesError: a name means nothing here, levels are no fractions, or what is to be untied is not chosen at all.
        """
        if settings.multiple < 1:
            raise AxesError(f"multiple={settings.multiple}: expected a whole number from 1")
        owners = self.owners([key for key, _ in settings.levels])
        free = self._with_levels("untie", settings.untied, owners)
        every = self._with_levels("every", settings.every, owners)
        knobs = []
        for key, fractions in settings.levels:
            check_fractions(key, fractions)
            places = [place for place, owner in enumerate(owners) if owner == key]
            tied = tuple(place for place in places if place not in free)
            alone = [(self.all[place].name, (place,)) for place in places if place in free]
            for name, own in [(key, tied), *alone] if tied else alone:
                wanted = fractions
                if every & set(own):
                    wanted = self._between(name, own, fractions, settings.multiple, every)
                knobs.append(self._knob(name, own, wanted, settings.multiple))
        return tuple(knobs)

    def _with_levels(self, what: str, keys: Sequence[str], owners: Sequence[str | None]) -> set[int]:
        """The places that some names mean, all of which have levels."""
        for key in keys:
            if not any(owners[place] for place in self.named(key)[1]):
                raise AxesError(f"{what}={key!r}: these axes stay full, give them levels")
        return {place for key in keys for place in self.named(key)[1]}

    def _between(
        self, name: str, places: tuple[int, ...], fractions: Fractions, multiple: int, every: set[int]
    ) -> Fractions:
        """A fraction for each of the different sizes from the lowest level to the highest."""
        if not every.issuperset(places):
            raise AxesError(f"every: only some of the axes of {name!r}, which move at once: give them levels too")
        alike = {(self.all[p].full, self.all[p].unit, self.all[p].group): p for p in places}
        low, high = min(fractions), max(fractions)
        steps = [f for f in _steps({self.all[p].full for p in places}) if low <= f <= high]
        found = self._knob(name, tuple(alike.values()), (*steps, *fractions), multiple)
        given = {level.sizes: level.fraction for level in found.levels if level.fraction in fractions}
        return tuple(given.get(level.sizes, level.fraction) for level in found.distinct)

    def _knob(self, name: str, places: tuple[int, ...], fractions: Fractions, multiple: int) -> Knob:
        levels = [Level(f, tuple(self.all[p].size(f, multiple) for p in places)) for f in sorted(fractions)]
        return Knob(name, places, tuple(levels))

    def even(self, key: str, count: int, multiple: int) -> Fractions:
        """`count` levels of a key, evenly spaced up to 1; others between them where sizes of two would be equal.

        Where there are fewer different sizes than `count`, all of them.
        """
        if count < 1:
            raise AxesError(f"{key}={count}: expected at least one level")
        places = tuple(self.named(key)[1])
        even = [(i + 1) / count for i in range(count)]
        if len(self._knob(key, places, tuple(even), multiple).distinct) == count:
            return tuple(even)
        steps = _steps({self.all[p].full for p in places})
        between = sorted({*even, *(f for f in steps if f >= even[0])})
        found = [level.fraction for level in self._knob(key, places, tuple(between), multiple).distinct]
        if len(found) <= count:
            return tuple(found)
        chosen: list[int] = []
        for number, wanted in enumerate(even):
            first = chosen[-1] + 1 if chosen else 0
            last = len(found) - (count - number - 1)
            chosen.append(min(range(first, last), key=lambda place: abs(found[place] - wanted)))
        return tuple(found[place] for place in chosen)


def _steps(sizes: Collection[int]) -> set[float]:
    """The fractions at which any of these sizes is cut to another one, and those that give each size exactly."""
    return {n / (2 * size) for size in sizes for n in range(1, 2 * size + 1)}


def check_fractions(name: str, fractions: Sequence[float]) -> None:
    """Refuse levels that are none.

    Raises:
        AxesError: there is none, or one is not in (0, 1].
    """
    if not fractions:
        raise AxesError(f"{name}: expected at least one level")
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise AxesError(f"{name}={fraction}: expected a fraction above 0 and at most 1")


def default_levels(groups: Sequence[str]) -> Trained:
    """Four even levels of every group."""
    return Trained(tuple((group, LEVELS) for group in groups))
