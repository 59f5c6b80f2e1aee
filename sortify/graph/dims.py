"""Dimension expressions: what one dimension of a tensor is made of.

The language (DESIGN: the dimension algebra) has four frozen values:

- `Fixed(3)`, written `3`: never changes;
- `Named("ffn", 768)`, written `ffn:768`: an elastic axis and its full size;
- `Product`, written `(heads:12 * 64)`: factors in row-major order;
- `Concat`, written `(q:64 + k:64)`: segments one after the other.

They hold no tensors, print as text and parse back, so plans and graphs carry them as strings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Fixed:
    """A size that no sub-network changes."""

    size: int

    def __str__(self) -> str:
        return str(self.size)


@dataclass(frozen=True, slots=True)
class Named:
    """A whole elastic axis with its full size."""

    axis: str
    size: int

    def __str__(self) -> str:
        return f"{self.axis}:{self.size}"


@dataclass(frozen=True, slots=True)
class Product:
    """Factors in row-major order: the first one is the outermost."""

    factors: tuple[Dim, ...]

    def __str__(self) -> str:
        return "(" + " * ".join(map(str, self.factors)) + ")"


@dataclass(frozen=True, slots=True)
class Concat:
    """Segments that follow each other."""

    segments: tuple[Dim, ...]

    def __str__(self) -> str:
        return "(" + " + ".join(map(str, self.segments)) + ")"


Dim = Fixed | Named | Product | Concat


def product(factors: list[Dim]) -> Dim:
    """The canonical product: nested products opened, fixed neighbours multiplied, ones dropped."""
    flat: list[Dim] = []
    for factor in factors:
        for part in factor.factors if isinstance(factor, Product) else (factor,):
            if part == Fixed(1):
                continue
            if isinstance(part, Fixed) and flat and isinstance(flat[-1], Fixed):
                flat[-1] = Fixed(flat[-1].size * part.size)
            else:
                flat.append(part)
    if len(flat) == 1:
        return flat[0]
    return Product(tuple(flat)) if flat else Fixed(1)


def concat(segments: list[Dim]) -> Dim:
    """The canonical concatenation: nested ones opened, fixed neighbours added, empty ones dropped."""
    flat: list[Dim] = []
    for segment in segments:
        for part in segment.segments if isinstance(segment, Concat) else (segment,):
            if part == Fixed(0):
                continue
            if isinstance(part, Fixed) and flat and isinstance(flat[-1], Fixed):
                flat[-1] = Fixed(flat[-1].size + part.size)
            else:
                flat.append(part)
    if len(flat) == 1:
        return flat[0]
    return Concat(tuple(flat)) if flat else Fixed(0)


def full(dim: Dim) -> int:
    """The size of `dim` in the full network."""
    match dim:
        case Fixed(size) | Named(_, size):
            return size
        case Product(factors):
            return math.prod(map(full, factors))
        case Concat(segments):
            return sum(map(full, segments))


def active(dim: Dim, sizes: Sizes) -> int:
    """The size of `dim` when the axes have the given `sizes`."""
    match dim:
        case Fixed(size):
            return size
        case Named(axis, _):
            return sizes[axis]
        case Product(factors):
            return math.prod(active(f, sizes) for f in factors)
        case Concat(segments):
            return sum(active(s, sizes) for s in segments)


def axes_of(dim: Dim) -> Iterator[Named]:
    """Every elastic axis that `dim` mentions, in order of appearance."""
    match dim:
        case Named():
            yield dim
        case Product(parts) | Concat(parts):
            for part in parts:
                yield from axes_of(part)
        case Fixed():
            return


def positions(dim: Dim, kept: Mapping[str, list[int]]) -> list[int]:
    """Which positions of the full dimension stay, and in which order, when each axis keeps `kept[axis]`.

    A prefix gives the positions of a nested sub-network; a permutation of `range(size)` gives
    the reordering that a permuted axis causes in a tensor that carries it.
    """
    match dim:
        case Fixed(size):
            return list(range(size))
        case Named(axis, size):
            return kept.get(axis, list(range(size)))
        case Product(factors):
            result = [0]
            for factor in factors:
                size, inner = full(factor), positions(factor, kept)
                result = [base * size + i for base in result for i in inner]
            return result
        case Concat(segments):
            result, start = [], 0
            for segment in segments:
                result += [start + i for i in positions(segment, kept)]
                start += full(segment)
            return result


def parse(text: str) -> Dim:
    """Read what `str(dim)` wrote.

    Raises:
        ValueError: `text` is not a dimension expression.
    """
    tokens = _tokens(text)
    dim, rest = _parse(tokens, 0)
    if rest != len(tokens):
        raise ValueError(f"dimension {text!r}: expected the end, found {tokens[rest]!r}")
    return dim


def parse_shape(text: str) -> tuple[Dim, ...]:
    """Read the dimensions of a tensor, written one after the other with `, ` between them."""
    return _parse_shape(text)


@lru_cache(maxsize=65536)
def _parse_shape(text: str) -> tuple[Dim, ...]:
    return tuple(parse(part) for part in text.split(", ")) if text else ()


def shape_text(dims: tuple[Dim, ...]) -> str:
    """The text that `parse_shape` reads."""
    return ", ".join(map(str, dims))


_TOKEN = re.compile(r"\s*([()*+]|[\w.]+:\d+|\d+)")


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            raise ValueError(f"dimension {text!r}: unexpected {text[at:]!r}")
        tokens.append(found[1])
        at = found.end()
    return tokens


def _parse(tokens: list[str], at: int) -> tuple[Dim, int]:
    if at >= len(tokens):
        raise ValueError("dimension ends too early")
    token = tokens[at]
    if token.isdigit():
        return Fixed(int(token)), at + 1
    if ":" in token:
        axis, size = token.rsplit(":", 1)
        return Named(axis, int(size)), at + 1
    if token != "(":
        raise ValueError(f"dimension: expected a size, an axis or '(', found {token!r}")
    parts, operators = [], set()
    while True:
        part, at = _parse(tokens, at + 1)
        parts.append(part)
        if at >= len(tokens):
            raise ValueError("dimension: ')' is missing")
        if tokens[at] == ")":
            break
        operators.add(tokens[at])
    if operators not in ({"*"}, {"+"}):
        raise ValueError(f"dimension: one kind of operator between brackets, found {sorted(operators)}")
    return (Product if operators == {"*"} else Concat)(tuple(parts)), at + 1
