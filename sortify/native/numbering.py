"""Names of what is left when blocks are left out: `layers.0, layers.2` become `layers.0, layers.1`.

A number is a part of a name by itself or ends one, as in `layer_0`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

Kept = Mapping[str, tuple[int, int]]


def numbers(names: Iterable[str]) -> dict[str, list[int]]:
    """The numbers that follow each prefix, ascending: {"layers": [0, 1, 2]}."""
    found: defaultdict[str, set[int]] = defaultdict(set)
    for name in names:
        for _, prefix, _, number in _numbered(name):
            found[prefix].add(number)
    return {prefix: sorted(values) for prefix, values in found.items()}


def _numbered(name: str) -> Iterator[tuple[int, str, str, int]]:
    """Of each part of a name that ends in a number: its place, all before the number, its text, the number."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        text, number = re.fullmatch(r"(.*?)(\d*)", part).groups()  # type: ignore[union-attr]
        if number and str(int(number)) == number:
            yield place, ".".join([*parts[:place], *([text] if text else [])]), text, int(number)


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
    for place, prefix, text, number in _numbered(name):
        parts[place] = f"{text}{before[prefix][after[prefix].index(number)]}"
    return ".".join(parts)


def left(full: Collection[str], kept: Collection[str]) -> dict[str, tuple[int, list[int]]]:
    """For every prefix that lost numbers: how many there were, and the places of those that are left.

    Prefixes inside of what is gone itself are none of them.
    """
    before, after = numbers(full), numbers(kept)

    def is_gone(prefix: str) -> bool:
        return any(number not in after.get(outer, ()) for _, outer, _, number in _numbered(prefix))

    return {
        prefix: (len(found), [found.index(number) for number in after.get(prefix, [])])
        for prefix, found in before.items()
        if len(after.get(prefix, [])) < len(found) and not is_gone(prefix)
    }
