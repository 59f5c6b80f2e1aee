"""What sub-networks cost on a machine: a frozen table of measurements, and what it predicts for all others.

Latency and peak memory of a sample are measured (see `profiling`); every other sub-network's are predicted as sums of
exact costs, weighted so that the sample comes out. No weight is negative and every cost grows with the sizes, so a
sub-network is never predicted to be faster or smaller than one inside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sortify.costs.cost import METRICS, CostModel, Costs
from sortify.errors import ProfileError
from sortify.plan import Plan
from sortify.space.fitting import Array, fit, held_out
from sortify.space.subnet import Subnet

FEATURES: Mapping[str, tuple[str, ...]] = {
    "latency": ("constant", "flops", "activation_bytes", "params", "operations"),
    "memory": ("constant", "params", "activation_bytes", "largest_block"),
}
"""Of which costs each prediction is made."""
LEAST = 4
"""Rows without which nothing is fitted."""


@dataclass(frozen=True)
class Measured:
    """One sub-network on the machine.

    Attributes:
        subnet: which one.
        latency: seconds of one call: the median over rounds.
        spread: between the quartiles of the rounds, relative to the median.
        memory: bytes at the peak of one call: parameters, buffers, inputs, and what the call itself holds.
    """

    subnet: Subnet
    latency: float
    spread: float
    memory: int


@dataclass(frozen=True)
class Fit:
    """How one metric is predicted.

    Attributes:
        weights: feature -> nanoseconds, or bytes, for each unit of it; not negative.
        errors: of every row when it is predicted from the others, relative.
    """

    weights: tuple[tuple[str, float], ...]
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """The median of `errors`."""
        return float(np.median(self.errors))

    @property
    def worst(self) -> float:
        """The largest of `errors`."""
        return max(self.errors)


@dataclass(frozen=True)
class Profile:
    """Latency and memory on one machine.

    Attributes:
        rows: what was measured, the largest sub-network first.
        latency: predicts nanoseconds; memory: predicts bytes.
        machine: what it was measured on: device, processor, threads, versions.
        sizes: the open sizes of the calls (batch, sequence).
        samples: of one call.
        tokens: of one call, for models that read sequences of whole numbers; else None.
        rounds: how often every sub-network was measured.
    """

    rows: tuple[Measured, ...]
    latency: Fit
    memory: Fit
    machine: tuple[tuple[str, str], ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    samples: int = 1
    tokens: int | None = None
    rounds: int = 1

    def throughput(self, seconds: float) -> tuple[float, str]:
        """How much a call of this latency does in a second, and of what: tokens, or samples."""
        count, unit = (self.samples, "samples") if self.tokens is None else (self.tokens, "tokens")
        return count / seconds, f"{unit}/s"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        rows = [[row.subnet.to_json(), row.latency, row.spread, row.memory] for row in self.rows]
        fits = {name: [dict(self.fit_of(name).weights), list(self.fit_of(name).errors)] for name in FEATURES}
        facts = {"samples": self.samples, "tokens": self.tokens, "rounds": self.rounds}
        return {"rows": rows, **fits, "machine": dict(self.machine), "sizes": dict(self.sizes), **facts}

    def fit_of(self, metric: str) -> Fit:
        """How `latency` or `memory` is predicted."""
        return self.latency if metric == "latency" else self.memory

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """Read what `to_json` gave. Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
        rows = [Measured(Subnet.from_json(s), float(t), float(spread), int(m)) for s, t, spread, m in data["rows"]]
        return cls(
            tuple(rows),
            _fit_from_json(data["latency"], "latency"),
            _fit_from_json(data["memory"], "memory"),
            tuple((str(name), str(value)) for name, value in data["machine"].items()),
            tuple((str(name), int(size)) for name, size in data["sizes"].items()),
            int(data["samples"]),
            None if data["tokens"] is None else int(data["tokens"]),
            int(data["rounds"]),
        )


def _fit_from_json(data: Any, metric: str) -> Fit:
    weights, errors = data
    found = {str(name): float(weight) for name, weight in weights.items()}
    if tuple(found) != FEATURES[metric] or not all(0 <= weight < float("inf") for weight in found.values()):
        raise ValueError(f"{metric}: weights of {', '.join(FEATURES[metric])}, none negative, were expected")
    return Fit(tuple(found.items()), tuple(map(float, errors)))


# -- features ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Features:
    """The exact costs of which predictions are made.

    Attributes:
        costs: of any sub-network.
        plan: its chains; an operation counts where its block is kept.
    """

    costs: CostModel
    plan: Plan

    def table(
        self, values: NDArray[np.int64], names: Collection[str], sizes: Mapping[str, int], exact: Costs | None = None
    ) -> dict[str, Array]:
        """Some features of many sub-networks.

        Args:
            values: sizes and depths, one row per sub-network.
            names: which features.
            sizes: open sizes.
            exact: the exact costs at these sizes, where they are known already.
        """
        found: dict[str, Array] = {}
        if not set(METRICS).isdisjoint(names):
            known = exact or self.costs.table(values, **sizes)
            found |= {name: np.asarray(getattr(known, name), dtype=np.float64) for name in METRICS if name in names}
        if "constant" in names:
            found["constant"] = np.ones(len(values))
        if "operations" in names:
            found["operations"] = self._operations(values)
        if "largest_block" in names:
            found["largest_block"] = self.costs.largest_block(values, **sizes)
        return found

    def _operations(self, values: NDArray[np.int64]) -> Array:
        """How many operations the kept blocks have."""
        total = np.zeros(len(values))
        for place, counts in enumerate(self._counts, start=len(self.plan.axes)):
            total += counts[values[:, place]]
        return total

    @cached_property
    def _counts(self) -> list[Array]:
        """Of every chain the operations of its first 0, 1, 2... blocks."""
        sizes = [[len(block.regions["eval"].nodes) for block in chain.blocks] for chain in self.plan.chains]
        return [np.cumsum([0, *own]).astype(np.float64) for own in sizes]


def fit_rows(rows: Sequence[Measured], features: Features, sizes: Mapping[str, int]) -> tuple[Fit, Fit]:
    """Fit latency (in nanoseconds) and memory (in bytes) to what was measured.

    Raises:
        ProfileError: there are too few rows, or one of them cannot be.
    """
    if len(rows) < LEAST:
        raise ProfileError(f"profile: {len(rows)} sub-networks are too few to predict others, expected {LEAST} or more")
    for row in rows:
        if not 0 < row.latency < float("inf") or row.memory <= 0:
            raise ProfileError(f"profile: {row.subnet} took {row.latency} s and {row.memory} bytes: no measurement")
    names = {name for own in FEATURES.values() for name in own}
    table = features.table(np.array([row.subnet.values for row in rows], dtype=np.int64), names, sizes)
    latency = np.array([1e9 * row.latency for row in rows])
    return _fitted("latency", table, latency), _fitted("memory", table, np.array([float(row.memory) for row in rows]))


def _fitted(metric: str, table: Mapping[str, Array], measured: Array) -> Fit:
    matrix = np.stack([table[name] for name in FEATURES[metric]], axis=1)
    weights = zip(FEATURES[metric], map(float, fit(matrix, measured)), strict=True)
    return Fit(tuple(weights), tuple(map(float, held_out(matrix, measured))))


# -- predictions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasuredCost:
    """What one call of a sub-network costs on the machine of the profile, as predicted.

    Attributes:
        latency: seconds.
        memory: bytes at the peak.
    """

    latency: float
    memory: int


@dataclass(frozen=True, eq=False)
class PricedCosts(Costs):
    """Exact costs, and predicted ones: nanoseconds of latency and bytes of memory, whole numbers."""

    latency: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    memory: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Prices:
    """Exact and predicted costs of the sub-networks of one plan.

    Attributes:
        features: of any sub-network.
        profile: what predicts.
        metrics: which predictions are made, latency and memory; others are left empty.
        exact: which exact costs are counted; others are zero.
    """

    features: Features
    profile: Profile
    metrics: tuple[str, ...] = tuple(FEATURES)
    exact: tuple[str, ...] = METRICS

    def table(self, values: NDArray[np.int64], **sizes: int) -> PricedCosts:
        """The costs of many sub-networks; predicted ones always at the sizes of the profile.

        Args:
            values: sizes and depths, one row per sub-network.
            sizes: open sizes for the exact costs.
        """
        fits = {metric: self.profile.fit_of(metric).weights for metric in self.metrics}
        weights = {metric: {name: weight for name, weight in fit if weight} for metric, fit in fits.items()}
        needed = {name for own in weights.values() for name in own if name in METRICS}
        costs, own = self.features.costs, dict(self.profile.sizes)
        same = {**costs.open_sizes, **sizes} == {**costs.open_sizes, **own}
        exact = costs.only({*self.exact, *(needed if same else ())}).table(values, **sizes)
        features = replace(self.features, costs=costs.only({*needed, "activation_bytes"}))  # blocks are told by these
        told = {}
        for metric, each in weights.items():
            told[metric] = _sum(each, features.table(values, each, own, exact if same else None), len(values))
        return PricedCosts(*(getattr(exact, metric) for metric in METRICS), **told)


def _sum(weights: Mapping[str, float], known: Mapping[str, Array], count: int) -> NDArray[np.int64]:
    total = np.zeros(count)
    for name, weight in weights.items():
        total += weight * known[name]
    return np.asarray(np.ceil(total), dtype=np.int64)
