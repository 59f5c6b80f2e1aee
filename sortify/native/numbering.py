"""Names of what is left when blocks are left out: `layers.0, layers.2` become `layers.0, layers.1`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

Kept = Mapping[str, tuple[int, int]]


def numbers(names: Iterable[str]) -> dict[str, list[int]]:
    """The numbers that follow each prefix, ascending: {"layers": [0, 1, 2]}."""
    found: defaultdict[str, set[int]] = defaultdict(set)
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isdigit():
                found[".".join(parts[:place])].add(int(part))
    return {prefix: sorted(values) for prefix, values in found.items()}


def renumbered(full: Collection[str], kept: Collection[str]) -> dict[str, str]:
    """New names for those that are kept: the numbers that are left move up, in their order.

    Args:
        full: all names of the full model.
        kept: those of the sub-network.
    """
    before, after = numbers(full), numbers(kept)
    return {name: _renamed(name, before, after) for name in kept}


def _renamed(name: str, before: Mapping[str, list[int]], after: Mapping[str, list[int]]) -> str:
    parts = name.split(".")
    new = list(parts)
    for place, part in enumerate(parts):
        if part.isdigit():
            prefix = ".".join(parts[:place])
            new[place] = str(before[prefix][after[prefix].index(int(part))])
    return ".".join(new)


def left(full: Collection[str], kept: Collection[str]) -> dict[str, tuple[int, list[int]]]:
    """For every prefix that lost numbers: how many there were, and the places of those that are left."""
    before, after = numbers(full), numbers(kept)
    return {
        prefix: (len(found), [found.index(number) for number in after.get(prefix, [])])
        for prefix, found in before.items()
        if len(after.get(prefix, [])) < len(found)
    }
