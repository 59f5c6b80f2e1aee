"""Which settings make a model of given shapes.

Nothing is known of what a setting means. A model is built with changed settings, on the meta device, and its shapes are
compared with those that are wanted: changes that bring it nearer are kept. Settings that no shape shows (a number of
heads beside a width) are found by comparing outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations
from math import gcd
from typing import Any

from sortify.native.numbering import left
from sortify.native.settings import Changes, Path, Settings, changed, counts, lists

Shapes = Mapping[str, tuple[int, ...]]
Build = Callable[[Settings], Shapes]
MISSING = 100
"""What a tensor that is not there counts for, in wrong dimensions."""
TRIES = 400
"""Models that are built to find the settings, at most."""


@dataclass(frozen=True)
class Wanted:
    """What is looked for.

    Attributes:
        full: shapes of the full model, by its names.
        kept: the names of the full model that the sub-network keeps.
        shapes: those of the sub-network, by the names that they have in a model of its own.
        axes: sizes of axes, and numbers of blocks, that are smaller in the sub-network: full -> its own.
        units: numbers of units in the sub-network that may be no dimension of a weight, such as heads.
        idle: tensors that no op uses, by the names that they have in a model of its own: their sizes are free.
    """

    full: Shapes
    kept: tuple[str, ...]
    shapes: Shapes
    axes: Mapping[int, int]
    units: tuple[int, ...] = ()
    idle: frozenset[str] = frozenset()

    @property
    def ratios(self) -> list[tuple[int, int]]:
        """Between full sizes and sizes, each once."""
        return list(dict.fromkeys((a // gcd(a, b), b // gcd(a, b)) for a, b in self.axes.items()))


def solve(build: Build, settings: Settings, wanted: Wanted) -> Iterator[dict[Path, Any]]:
    """Changes to the settings with which the model has the wanted shapes, the likeliest first.

    Several may have the same shapes, and only one of them the same outputs.

    Args:
        build: the shapes of a model with some settings; raises where they do not go together.
        settings: of the full model.
        wanted: the shapes to reach.
    """
    search, seen = _Search(build, settings, wanted), list[dict[Path, Any]]()
    for start in (_as_the_axes(search, settings, wanted), {}):
        found = _reached(search, settings, wanted, start)
        for changes in _and_silent_ones(search, settings, wanted, found):
            if changes not in seen:
                seen.append(changes)
                yield changes


def _as_the_axes(search: _Search, settings: Settings, wanted: Wanted) -> dict[Path, Any]:
    """Every count that equals the size of an axis, as the sub-network has it; without those that do harm."""
    changes = {path: wanted.axes[value] for path, value in counts(settings).items() if value in wanted.axes}
    changes |= dict(_shorter(settings, wanted))
    return _needed(search, changes)


def _needed(search: _Search, changes: Changes) -> dict[Path, Any]:
    """The changes without those that bring the shapes no nearer."""
    needed, error = dict(changes), search.error(changes)
    for path in changes:
        without = {other: value for other, value in needed.items() if other != path}
        if search.error(without) <= error:
            needed, error = without, search.error(without)
    return needed


def _and_silent_ones(
    search: _Search, settings: Settings, wanted: Wanted, changes: Changes | None
) -> Iterator[dict[Path, Any]]:
    """Changes as they are, then with one or two more that no shape shows."""
    if changes is None:
        return
    changes = _needed(search, changes)
    yield changes
    options = [
        {path: value * b // a}
        for path, value in counts(settings).items()
        for a, b in wanted.ratios
        if path not in changes and value * b % a == 0 and value * b >= a
    ]
    cuts = [{path: value} for path, value in _shorter(settings, wanted) if path not in changes]
    several = [{**a, **b} for a, b in combinations([*cuts, *options], 2) if a.keys() != b.keys()]
    units = [{path: unit} for path in counts(settings) for unit in wanted.units if path not in changes]
    every = [*cuts, *options, *several, *units]
    yield from (found for option in every if not search.error(found := {**changes, **option}))


def _reached(search: _Search, settings: Settings, wanted: Wanted, start: Changes) -> dict[Path, Any] | None:
    """Changes with the wanted shapes, from a start; None where none are found."""
    changes = dict(start)
    error = search.error(changes)
    while error:
        options = list(_options(search.shapes(changes), settings, wanted, changes))
        step = search.best(changes, error, [{path: value} for path, value in options])
        if step is None:
            pairs = [{a: x, b: y} for (a, x), (b, y) in combinations(options, 2) if a != b]
            step = search.best(changes, error, pairs)
        if step is None:
            return None
        changes |= step
        error = search.error(changes)
    return changes


class _Search:
    """Builds models and compares them; each once."""

    def __init__(self, build: Build, settings: Settings, wanted: Wanted) -> None:
        self._build, self._settings, self._wanted = build, settings, wanted
        self._known: dict[tuple[tuple[str, str], ...], Shapes | None] = {}

    def shapes(self, changes: Changes) -> Shapes | None:
        key = tuple(sorted((repr(path), repr(value)) for path, value in changes.items()))
        if key not in self._known:
            if len(self._known) >= TRIES:
                return None
            try:
                self._known[key] = self._build(changed(self._settings, changes))
            except Exception:  # whatever a model says of settings that do not go together
                self._known[key] = None
        return self._known[key]

    def error(self, changes: Changes) -> float:
        found = self.shapes(changes)
        return float("inf") if found is None else wrong(found, self._wanted.shapes, self._wanted.idle)

    def best(self, changes: Changes, error: float, steps: Iterable[Changes]) -> Changes | None:
        """The step that helps most; None where none does."""
        found: Changes | None = None
        for step in steps:
            reached = self.error({**changes, **step})
            if reached < error:
                found, error = step, reached
            if not reached:
                break
        return found


def wrong(found: Shapes, wanted: Shapes, idle: Set[str] = frozenset()) -> int:
    """How many dimensions are not what they should be, without those of idle tensors."""
    missing = len(found.keys() ^ wanted.keys())
    common = (found.keys() & wanted.keys()) - idle
    return MISSING * missing + sum(_apart(found[name], wanted[name]) for name in common)


def _apart(one: Sequence[int], other: Sequence[int]) -> int:
    if len(one) != len(other):
        return max(len(one), len(other))
    return sum(a != b for a, b in zip(one, other, strict=True))


def _options(found: Shapes | None, settings: Settings, wanted: Wanted, done: Changes) -> Iterator[tuple[Path, Any]]:
    """Changes that may help, the likeliest first."""
    if found is None:
        return
    now = changed(settings, done)
    if found.keys() != wanted.shapes.keys():
        yield from _shorter(now, wanted)
    pairs = dict.fromkeys(
        (a, b)
        for name in found.keys() & wanted.shapes.keys()
        for a, b in zip(found[name], wanted.shapes[name], strict=False)
        if a != b
    )
    sizes = counts(now)
    same = [(path, b) for path, value in sizes.items() for a, b in pairs if value == a]
    ratio = [(path, value * b // a) for path, value in sizes.items() for a, b in pairs if value * b % a == 0]
    yield from dict.fromkeys((path, value) for path, value in [*same, *ratio] if value >= 1)


def _shorter(settings: Settings, wanted: Wanted) -> Iterator[tuple[Path, Any]]:
    """Counts of blocks, and lists with an entry for each, cut to the blocks that are kept."""
    for count, places in dict.fromkeys((n, tuple(kept)) for n, kept in left(wanted.full, wanted.kept).values()):
        for path, value in counts(settings).items():
            if value == count:
                yield path, len(places)
        for path, values in lists(settings):
            if len(values) == count:
                yield path, [values[place] for place in places]
