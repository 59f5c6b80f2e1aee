"""One sub-network: the size of every axis and the length of every chain that are in use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sortify.space.levels import GROUPS

FEW = 3
"""Axes with a fraction of their own that are told one by one."""


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
        """Fractions of groups one by one; those of many single axes in short."""
        if not self.fractions:
            return f"{sum(n for _, n in self.sizes)} units, {sum(n for _, n in self.depths)} blocks"
        single = {*(name for name, _ in self.sizes), *(name for name, _ in self.depths)} - set(GROUPS)
        own: dict[str, list[tuple[str, float]]] = {}
        told = []
        for name, fraction in self.fractions:
            if name in single:
                own.setdefault(name.rpartition(".")[2].rstrip("_0123456789") or name, []).append((name, fraction))
            else:
                told.append(f"{name}={fraction:g}")
        return " ".join([*told, *(_short(kind, found) for kind, found in own.items())])

    def contains(self, other: Subnet) -> bool:
        """Whether `other` is nested in this one: no axis larger, no chain longer."""
        mine, theirs = self.values, other.values
        return len(mine) == len(theirs) and all(a >= b for a, b in zip(mine, theirs, strict=True))

    @property
    def values(self) -> tuple[int, ...]:
        """Sizes, then depths: what the rewritten graph takes."""
        return tuple(n for _, n in (*self.sizes, *self.depths))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"sizes": dict(self.sizes), "depths": dict(self.depths), "fractions": dict(self.fractions)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Subnet:
        """Read what `to_json` gave."""
        return cls(*(tuple(data[key].items()) for key in ("sizes", "depths", "fractions")))


def _short(kind: str, found: list[tuple[str, float]]) -> str:
    """`layers.0.inner=0.5`, or of many `inner=0.25..1 (12 axes, mean 0.6)`."""
    if len(found) <= FEW:
        return " ".join(f"{name}={fraction:g}" for name, fraction in found)
    values = [fraction for _, fraction in found]
    low, high = f"{min(values):g}", f"{max(values):g}"
    spread = low if low == high else f"{low}..{high}"
    return f"{kind}={spread} ({len(values)} axes, mean {sum(values) / len(values):.2g})"
