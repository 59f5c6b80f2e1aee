"""What the caller wants otherwise than found: patterns that fix, free, or close axes, blocks and modules."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sortify.errors import AxesError


@dataclass(frozen=True)
class Control:
    """Shell patterns.

    Attributes:
        fix: axes (by their names, or by parameters that carry them), blocks and chains that are to stay as they are.
        free: axes that are left full by default (head_dim, groups of a norm) and are to be elastic; and outputs that
            may become smaller with the dimensions that they show, such as hidden states.
        opaque: modules, by path, that are not to be looked into: what reaches them is fixed.
    """

    fix: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()


def matching(patterns: Iterable[str], names: Sequence[str]) -> str | None:
    """The first pattern that one of the names matches."""
    return next((p for p in patterns if any(fnmatchcase(name, p) for name in names)), None)


def inside(patterns: Sequence[str], path: str) -> str | None:
    """The first pattern that the module at `path`, or one that holds it, matches."""
    if not patterns:
        return None
    return matching(patterns, paths_to(path))


def paths_to(path: str) -> list[str]:
    """The paths of all modules that hold the one at `path`, and its own."""
    parts = path.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def check_used(option: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Refuse patterns that match none of the names.

    Raises:
        AxesError: it names the nearest.
    """
    known = list(dict.fromkeys(names))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise AxesError(
                f"{option}='{pattern}' matches nothing in this model; "
                + (f"there is {', '.join(near)}" if near else f"it has nothing for {option}")
            )
