"""Costs of many sub-networks at once: a sum of products, compiled to a few passes of numpy.

Each distinct product of sizes is computed once per sub-network, from one that it begins with; weighted sums of the
products are then one matrix product. Arithmetic is exact: float64 while every total stays below 2**53, int64 below
2**63, Python's integers beyond.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sortify.costs.presence import ALWAYS, NEVER, Needs, either
from sortify.graph.dims import Concat, Dim, Fixed, Named, Product

CHUNK = 2048
"""Sub-networks computed together: their products fit into the processor's cache."""
Factor = Dim | Needs
Step = tuple[Any, int, bool, int, int]
"""Function, a line, whether the next one is a line or a number, that one, the line to fill."""
Weighted = tuple[int, int, tuple[Dim, ...], Needs]
"""Row of the result, weight, sizes to multiply, what must be kept for it to count."""


class CostTable:
    """A compiled sum.

    Args:
        terms: the sum, term by term.
        rows: how many results each sub-network has.
        inputs: how many values each sub-network has.
        columns: axis name -> its place among the values; chain number c follows at `len(columns) + c`.
        sizes: open sizes by name.
    """

    def __init__(
        self, terms: Sequence[Weighted], rows: int, inputs: int, columns: Mapping[str, int], sizes: Mapping[str, int]
    ) -> None:
        self._columns, self._sizes = columns, sizes
        self._places: dict[tuple[Factor, ...], int] = {(): 0}
        self._steps: list[Step] = []
        self._count = 1 + inputs
        products = self._products(terms)
        lines = {self._line(key): weights for key, weights in products.items()}
        self._weights = [[lines.get(place, {}).get(row, 0) for place in range(self._count)] for row in range(rows)]
        self._inputs = inputs
        self._tables: dict[Any, NDArray[Any]] = {}

    def __call__(self, values: NDArray[np.int64], largest: int) -> NDArray[Any]:
        """The results, one column per sub-network.

        Args:
            values: sizes and depths, one row per sub-network.
            largest: a bound of every result; it decides in which numbers the sum is exact.
        """
        kind: Any = np.float64 if largest < 2**53 else np.int64 if largest < 2**63 else object
        if kind not in self._tables:
            self._tables[kind] = np.array(self._weights, dtype=kind)
        out = np.empty((len(self._weights), len(values)), dtype=object if kind is object else np.int64)
        for start in range(0, len(values), CHUNK):
            part = values[start : start + CHUNK]
            if not start or len(part) < CHUNK:
                lines, steps = self._prepared(len(part), kind)
            lines[1 : 1 + self._inputs] = part.T
            for function, one, other, place in steps:
                function(one, other, out=place)
            out[:, start : start + CHUNK] = self._tables[kind] @ lines
        return out

    def _prepared(self, length: int, kind: Any) -> tuple[NDArray[Any], list[tuple[Any, Any, Any, Any]]]:
        """Room for all lines, and the steps bound to it."""
        lines = np.zeros((self._count, length), dtype=kind)
        lines[0] = 1
        steps = [
            (function, lines[one], lines[other] if refers else other, lines[place])
            for function, one, refers, other, place in self._steps
        ]
        return lines, steps

    # -- compiling

    def _products(self, terms: Sequence[Weighted]) -> dict[tuple[Factor, ...], dict[int, int]]:
        """Every product of elastic factors, with its weight in each result."""
        found: dict[tuple[Factor, ...], dict[int, int]] = {}
        plain = [(row, *self._factors(weight, dims), either([needs])) for row, weight, dims, needs in terms]
        uses = Counter(factor for _, _, factors, _ in plain for factor in factors)
        for row, weight, factors, needs in plain:
            if needs == NEVER:
                continue
            ordered = sorted(factors, key=lambda factor: (-uses[factor], str(factor)))
            key = (*(() if needs == ALWAYS else (needs,)), *ordered)
            weights = found.setdefault(key, Counter())
            weights[row] += weight
        return {key: weights for key, weights in found.items() if any(weights.values())}

    def _factors(self, weight: int, dims: Sequence[Dim]) -> tuple[int, list[Dim]]:
        """Nested products opened, fixed and open sizes moved into the weight."""
        elastic: list[Dim] = []
        for dim in dims:
            match dim:
                case Fixed(size):
                    weight *= size
                case Named(axis, _) if axis not in self._columns:
                    weight *= self._sizes[axis]
                case Product(factors):
                    weight, inner = self._factors(weight, factors)
                    elastic += inner
                case Concat(segments) if not self._elastic(dim):
                    weight *= sum(self._factors(1, [segment])[0] for segment in segments)
                case _:
                    elastic.append(dim)
        return weight, elastic

    def _elastic(self, dim: Dim) -> bool:
        match dim:
            case Named(axis, _):
                return axis in self._columns
            case Product(parts) | Concat(parts):
                return any(map(self._elastic, parts))
            case Fixed():
                return False

    def _line(self, key: tuple[Factor, ...]) -> int:
        """The line of a product; how to fill it is noted where it is new."""
        if key not in self._places:
            self._places[key] = (
                self._factor(key[0])
                if len(key) == 1
                else self._step(np.multiply, self._line(key[:-1]), True, self._line(key[-1:]))
            )
        return self._places[key]

    def _step(self, function: Any, one: int, refers: bool, other: int) -> int:
        """Fill a new line from line `one` and line (or number) `other`."""
        place = self._count
        self._count += 1
        self._steps.append((function, one, refers, other, place))
        return place

    def _factor(self, factor: Factor) -> int:
        match factor:
            case Named(axis, _):
                return 1 + self._columns[axis]
            case Concat(segments):
                plain = [self._factors(1, [segment]) for segment in segments]
                rest = sum(weight for weight, elastic in plain if not elastic)
                place = self._step(np.multiply, 0, False, rest)
                for weight, elastic in plain:
                    if elastic:
                        part = self._line(tuple(elastic))
                        part = part if weight == 1 else self._step(np.multiply, part, False, weight)
                        place = self._step(np.add, place, True, part)
                return place
            case tuple():
                found = [reduce(self._and, (self._gate(*each) for each in blocks)) for blocks in factor]
                return reduce(lambda a, b: self._step(np.maximum, a, True, b), found)
        raise TypeError(f"{factor!r} is no factor")

    def _and(self, one: int, other: int) -> int:
        return self._step(np.multiply, one, True, other)

    def _gate(self, chain: int, number: int) -> int:
        """The line that is 1 where a chain keeps its block of this number, else 0."""
        key = ((((chain, number),),),)
        if key not in self._places:
            self._places[key] = self._step(np.greater, 1 + len(self._columns) + chain, False, number)
        return self._places[key]


def bound(dims: Sequence[Dim], weight: int, sizes: Mapping[str, int]) -> int:
    """The largest value of a term: every axis at its full size."""
    return weight * math.prod(_full(dim, sizes) for dim in dims)


def _full(dim: Dim, sizes: Mapping[str, int]) -> int:
    match dim:
        case Fixed(size):
            return size
        case Named(axis, size):
            return sizes.get(axis, size)
        case Product(factors):
            return math.prod(_full(f, sizes) for f in factors)
        case Concat(segments):
            return sum(_full(s, sizes) for s in segments)
