"""Exact cost of any sub-network, and of many at once: sums of products of dimension sizes.

Every op that contracts costs two FLOPs per multiply-add, as `torch.utils.flop_counter.FlopCounterMode` counts them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sortify.costs.open_sizes import Opens, chosen_by_caller, opens_from_json, opens_to_json, sizes_at
from sortify.costs.presence import ALWAYS, Needs
from sortify.costs.table import CostTable, bound
from sortify.graph.dims import (
    Concat,
    Dim,
    Fixed,
    Named,
    Product,
    active,
    axes_of,
    concat,
    full,
    parse_shape,
    product,
    shape_text,
)

METRICS = ("params", "flops", "activation_bytes", "cache_bytes")


@dataclass(frozen=True)
class Cost:
    """What one call costs.

    Attributes:
        params: parameters that the sub-network holds.
        flops: floating-point operations (two per multiply-add) of the ops that contract.
        activation_bytes: bytes of all tensors that the ops of one call newly make, in the captured dtypes.
        cache_bytes: bytes of keys and values that a language model keeps of each token while it writes one after
            another, for one sequence; 0 where that is not known to be all that it keeps.
    """

    params: int
    flops: int
    activation_bytes: int
    cache_bytes: int = 0


@dataclass(frozen=True, eq=False)
class Costs:
    """What many sub-networks cost: one array per metric, one entry per sub-network.

    The arrays hold int64; Python integers (dtype object) where a cost could reach 2**63.
    """

    params: NDArray[Any]
    flops: NDArray[Any]
    activation_bytes: NDArray[Any]
    cache_bytes: NDArray[Any]

    def __len__(self) -> int:
        return len(self.params)

    def __getitem__(self, index: int) -> Cost:
        return Cost(*(int(getattr(self, metric)[index]) for metric in METRICS))

    def __iter__(self) -> Iterator[Cost]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Term:
    """`weight` times the sizes of `dims`, counted for the metric where `needs` are met.

    Attributes:
        metric: one of `METRICS`.
        weight: whole number.
        dims: sizes to multiply: of axes, and open sizes by their names.
        needs: alternatives; each names blocks that must all be kept, as (chain index, block number).
    """

    metric: str
    weight: int
    dims: tuple[Dim, ...]
    needs: Needs = ALWAYS


class CostModel:
    """Costs of the sub-networks of one plan.

    Args:
        terms: the sum, term by term.
        axes: axis names, in the order in which sizes come.
        opens: sizes that a call decides.
    """

    def __init__(self, terms: Sequence[Term], axes: Sequence[str], opens: Opens = ()) -> None:
        self.terms = tuple(terms)
        self.opens = opens
        self._axes = tuple(axes)
        self._cost = lru_cache(maxsize=65536)(self._count)
        self._sizes_at = lru_cache(maxsize=256)(lambda given: sizes_at(opens, dict(given)))
        self._compiled = lru_cache(maxsize=16)(self._compile)
        self._grouped = lru_cache(maxsize=16)(self._group)
        self._parts = dict[frozenset[str], CostModel]()

    @property
    def open_sizes(self) -> dict[str, int]:
        """The sizes that a call decides, as they are at the example inputs."""
        return chosen_by_caller(self.opens)

    def __call__(self, values: tuple[int, ...], **sizes: int) -> Cost:
        """The cost of the sub-network with these sizes and depths (`Subnet.values`).

        Args:
            values: sizes, then depths.
            sizes: open sizes, such as `batch=8`; those that are not named are the example inputs'.

        Raises:
            InputError: a name is no open size, or the costs are not known at this one.
        """
        return self._cost(values, tuple(sorted(sizes.items())))

    def only(self, metrics: Collection[str]) -> CostModel:
        """The same, counting these metrics alone: the others are zero, and take no time."""
        own = frozenset(metrics)
        if own.issuperset(METRICS):
            return self
        if own not in self._parts:
            self._parts[own] = CostModel([t for t in self.terms if t.metric in own], self._axes, self.opens)
        return self._parts[own]

    def table(self, values: NDArray[np.int64], **sizes: int) -> Costs:
        """The costs of many sub-networks.

        Args:
            values: one row per sub-network: sizes, then depths; int64, shape (sub-networks, axes + chains).
            sizes: as for a single one.
        """
        compiled, largest = self._compiled(values.shape[1], tuple(sorted(sizes.items())))
        return Costs(*compiled(values, largest))

    def largest_block(self, values: NDArray[np.int64], **sizes: int) -> NDArray[np.float64]:
        """The activation bytes of the most expensive block of every sub-network, or of all that is in no block.

        Args:
            values: one row per sub-network: sizes, then depths.
            sizes: open sizes.
        """
        compiled, rows = self._grouped(values.shape[1], tuple(sorted(sizes.items())))
        found = compiled(values, 0) if rows else np.zeros((1, len(values)))
        return np.asarray(found.max(axis=0), dtype=np.float64)

    def _group(self, inputs: int, given: tuple[tuple[str, int], ...]) -> tuple[CostTable, int]:
        sizes = self._sizes_at(given)
        own = [term for term in self.terms if term.metric == "activation_bytes"]
        places = {needs: row for row, needs in enumerate(dict.fromkeys(term.needs for term in own))}
        terms = [(places[term.needs], term.weight, term.dims, term.needs) for term in own]
        columns = {axis: place for place, axis in enumerate(self._axes)}
        return CostTable(terms, len(places), inputs, columns, sizes), len(places)

    def shares(self, metric: str = "flops") -> dict[str, float]:
        """For every axis the share of the full network's cost that its size multiplies; they overlap.

        Under the name '' stands the share that any axis multiplies.
        """
        found = dict.fromkeys(("", *self._axes), 0)
        whole = 0
        for term in self.at_examples():
            if term.metric == metric:
                value = term.weight * math.prod(map(full, term.dims))
                whole += value
                names = {axis.axis for dim in term.dims for axis in axes_of(dim)}
                for name in names | ({""} if names else set()):
                    found[name] += value
        return {name: value / max(1, whole) for name, value in found.items()}

    def share(self, axes: Collection[str], metric: str = "flops") -> float:
        """The share of the full network's cost that the size of any of these axes multiplies."""
        values = [0, 0]
        for term in self.at_examples():
            if term.metric == metric:
                reached = any(axis.axis in axes for dim in term.dims for axis in axes_of(dim))
                values[reached] += term.weight * math.prod(map(full, term.dims))
        return values[True] / max(1, sum(values))

    def at_examples(self) -> tuple[Term, ...]:
        """The terms with every open size as it is at the example inputs."""
        sizes = self._sizes_at(())
        return tuple(replace(term, dims=tuple(_closed(dim, sizes) for dim in term.dims)) for term in self.terms)

    def _compile(self, inputs: int, given: tuple[tuple[str, int], ...]) -> tuple[CostTable, int]:
        sizes = self._sizes_at(given)
        columns = {axis: place for place, axis in enumerate(self._axes)}
        terms = [(METRICS.index(t.metric), t.weight, t.dims, t.needs) for t in self.terms]
        totals = [
            sum(bound(dims, weight, sizes) for row, weight, dims, _ in terms if row == own)
            for own in range(len(METRICS))
        ]
        return CostTable(terms, len(METRICS), inputs, columns, sizes), max(totals)

    def _count(self, values: tuple[int, ...], given: tuple[tuple[str, int], ...]) -> Cost:
        sizes = {**self._sizes_at(given), **dict(zip(self._axes, values, strict=False))}
        depths = values[len(self._axes) :]
        totals = dict.fromkeys(METRICS, 0)
        known: dict[tuple[Dim, ...], int] = {}
        for term in self.terms:
            if not _met(term.needs, depths):
                continue
            if term.dims not in known:
                known[term.dims] = math.prod(active(dim, sizes) for dim in term.dims)
            totals[term.metric] += term.weight * known[term.dims]
        return Cost(**totals)

    def to_json(self) -> dict[str, Any]:
        """The sum as JSON values."""
        terms = [[t.metric, t.weight, shape_text(t.dims), [[list(b) for b in n] for n in t.needs]] for t in self.terms]
        return {"terms": terms, "open": opens_to_json(self.opens)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], axes: Sequence[str]) -> CostModel:
        """Read what `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        terms = [
            Term(METRICS[METRICS.index(metric)], int(weight), parse_shape(dims), _needs(needs))
            for metric, weight, dims, needs in data["terms"]
        ]
        return cls(terms, axes, opens_from_json(data["open"]))


def _needs(data: Sequence[Any]) -> Needs:
    return tuple(tuple((int(chain), int(number)) for chain, number in blocks) for blocks in data)


def _met(needs: Needs, depths: Sequence[int]) -> bool:
    return any(all(depths[chain] > number for chain, number in blocks) for blocks in needs)


def _closed(dim: Dim, sizes: Mapping[str, int]) -> Dim:
    """A dimension with known open sizes."""
    match dim:
        case Named(name, _) if name in sizes:
            return Fixed(sizes[name])
        case Product(factors):
            return product([_closed(f, sizes) for f in factors])
        case Concat(segments):
            return concat([_closed(s, sizes) for s in segments])
        case _:
            return dim
