"""The dimension algebra: union-find over expressions of atoms.

During analysis every dimension of every tensor is an `Expr`: an `Atom`, a `Product` of factors in
row-major order, or a `Concat` of segments. An atom is in one of three states, which exclude each
other: *open* (elastic as far as known), *fixed* (with the reason), *bound* (it turned out to be
the same as another expression, which is then used in its place everywhere).

Operations only ever unify two expressions, split one, or build one (DESIGN, section 3). What cannot
be matched is fixed with the reason: sound before broad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import groupby
from typing import NamedTuple

from sortify.axes.reasons import Place, Reason


class Size(NamedTuple):
    """A positive size: `count` times symbols (unknown sizes such as the batch), sorted by name."""

    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody calls
    symbols: tuple[str, ...] = ()

    def times(self, other: Size) -> Size:
        return Size(self.count * other.count, tuple(sorted(self.symbols + other.symbols)))

    def over(self, other: Size) -> Size | None:
        """This size divided by `other`, or None when it does not divide."""
        if other.count == 0 or self.count % other.count:
            return None
        left = list(self.symbols)
        for symbol in other.symbols:
            if symbol not in left:
                return None
            left.remove(symbol)
        return Size(self.count // other.count, tuple(left))


ONE = Size(1)


class Mismatch(Exception):
    """Two expressions cannot be the same dimension."""


@dataclass(eq=False, slots=True)
class Atom:
    """One indivisible quantity (so far). Identity is equality."""

    size: Size
    fixed: Reason | None = None
    link: Expr | None = None
    roles: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True, eq=False)
class ProductExpr:
    """Factors in row-major order, the outermost first."""

    factors: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ConcatExpr:
    """Segments one after the other."""

    segments: tuple[Expr, ...]


Expr = Atom | ProductExpr | ConcatExpr
UNIT = Atom(ONE, fixed=Reason("size 1"))


def fixed_atom(size: Size | int, why: Reason | str) -> Atom:
    """A new atom that no sub-network changes."""
    size = Size(size) if isinstance(size, int) else size
    return UNIT if size == ONE else Atom(size, fixed=_reason(why))


def _reason(why: Reason | str) -> Reason:
    return why if isinstance(why, Reason) else Reason(why)


def open_atom(size: Size | int, *roles: str) -> Atom:
    """A new elastic atom; symbolic sizes, size 1 and size 0 are never elastic."""
    size = Size(size) if isinstance(size, int) else size
    if size.symbols:
        return fixed_atom(size, "its size is only known when the model runs")
    if size.count == 0:
        return fixed_atom(size, "it is empty")
    return UNIT if size == ONE else Atom(size, roles=set(roles))


def resolve(expr: Expr) -> Expr:
    """`expr` with every bound atom replaced, nested products and concatenations opened."""
    match expr:
        case Atom(link=None):
            return expr
        case Atom():
            return _follow(expr)
        case ProductExpr(factors):
            parts = [resolve(f) for f in factors]
            return expr if all(map(_same_kind, parts, factors)) else product(parts)
        case ConcatExpr(segments):
            parts = [resolve(s) for s in segments]
            return expr if all(map(_same_kind, parts, segments)) else concat(parts)


def _follow(atom: Atom) -> Expr:
    """What a bound atom stands for; every atom on the way then points there directly."""
    path, end = [atom], atom.link
    while isinstance(end, Atom) and end.link is not None:
        path.append(end)
        end = end.link
    assert end is not None
    end = resolve(end)
    for passed in path:
        passed.link = end
    return end


def _same_kind(new: Expr, old: Expr) -> bool:
    return new is old


def product(factors: Iterable[Expr]) -> Expr:
    """The canonical product: nested products opened, factors of size 1 dropped."""
    flat: list[Expr] = []
    for factor in map(resolve, factors):
        flat += factor.factors if isinstance(factor, ProductExpr) else [factor]
    flat = [f for f in flat if f is not UNIT]
    if len(flat) == 1:
        return flat[0]
    return ProductExpr(tuple(flat)) if flat else UNIT


def concat(segments: Iterable[Expr]) -> Expr:
    """The canonical concatenation: nested ones opened, empty ones dropped."""
    flat: list[Expr] = []
    for segment in map(resolve, segments):
        flat += segment.segments if isinstance(segment, ConcatExpr) else [segment]
    flat = [s for s in flat if size_of(s).count] or flat[:1] or [fixed_atom(0, "it is empty")]
    return flat[0] if len(flat) == 1 else ConcatExpr(tuple(flat))


def size_of(expr: Expr) -> Size:
    """The size of an expression."""
    match expr:
        case Atom():
            return expr.size
        case ProductExpr(factors):
            return reduce(Size.times, map(size_of, factors), ONE)
        case ConcatExpr(segments):
            return reduce(_plus, map(size_of, segments))


def _plus(a: Size, b: Size) -> Size:
    if a.symbols == b.symbols:
        return Size(a.count + b.count, a.symbols)
    return Size(1, (f"({a}+{b})",))


def atoms(expr: Expr) -> Iterator[Atom]:
    """The unbound atoms of `expr`, in order."""
    expr = resolve(expr)
    match expr:
        case Atom():
            yield expr
        case ProductExpr(parts) | ConcatExpr(parts):
            for part in parts:
                yield from atoms(part)


def is_fixed(expr: Expr) -> bool:
    """Whether no atom of `expr` is open."""
    return all(atom.fixed is not None for atom in atoms(expr))


def fix(expr: Expr, why: Reason | str) -> None:
    """Fix every atom of `expr` that is still open."""
    for atom in atoms(expr):
        if atom.fixed is None:
            atom.fixed = _reason(why)


def mark(expr: Expr, role: str) -> None:
    """Note on every atom of `expr` what it was seen doing."""
    for atom in atoms(expr):
        atom.roles.add(role)


def same(a: Expr, b: Expr) -> bool:
    """Whether two expressions are known to be the same dimension; of what is fixed, only the size counts."""
    a, b = resolve(a), resolve(b)
    if a is b:
        return True
    if is_fixed(a) and is_fixed(b):
        return size_of(a) == size_of(b)
    match a, b:
        case ProductExpr(x), ProductExpr(y):
            return _same_parts(_fixed_together(x, ProductExpr), _fixed_together(y, ProductExpr))
        case ConcatExpr(x), ConcatExpr(y):
            return _same_parts(_fixed_together(x, ConcatExpr), _fixed_together(y, ConcatExpr))
    return False


def _same_parts(x: Sequence[Expr], y: Sequence[Expr]) -> bool:
    return len(x) == len(y) and all(map(same, x, y))


def _fixed_together(parts: Sequence[Expr], join: Callable[[tuple[Expr, ...]], Expr]) -> list[Expr]:
    """The parts, with fixed neighbours joined into one."""
    found: list[Expr] = []
    for fixed, run in groupby(parts, is_fixed):
        members = tuple(run)
        found += [join(members)] if fixed else members
    return found


def unify(a: Expr, b: Expr, place: Place | str) -> None:
    """Make two expressions one and the same; when they cannot be, fix both with the reason."""
    try:
        _unify(a, b)
    except Mismatch as mismatch:
        why = Reason(str(mismatch), _place(place))
        fix(a, why)
        fix(b, why)


def _place(place: Place | str) -> Place:
    return place if isinstance(place, Place) else Place(place)


def _unify(a: Expr, b: Expr) -> None:
    a, b = resolve(a), resolve(b)
    if a is b:
        return
    if size_of(a) != size_of(b):
        raise Mismatch(f"sizes {_show(a)} and {_show(b)} differ")
    if is_fixed(a) and is_fixed(b):
        return
    match a, b:
        case Atom(), _:
            _bind(a, b)
        case _, Atom():
            _bind(b, a)
        case ProductExpr(), ProductExpr():
            _unify_products(list(a.factors), list(b.factors))
        case ConcatExpr(), ConcatExpr():
            _unify_concats(list(a.segments), list(b.segments))
        case ProductExpr(), ConcatExpr():
            _unify_mixed(a, b)
        case ConcatExpr(), ProductExpr():
            _unify_mixed(b, a)


def _bind(atom: Atom, expr: Expr) -> None:
    if atom.fixed is not None:
        fix(expr, atom.fixed)
    if isinstance(expr, Atom):
        expr.roles |= atom.roles
    atom.link = expr


def _unify_products(left: list[Expr], right: list[Expr]) -> None:
    while left and right:
        a, b = left.pop(0), right.pop(0)
        if size_of(a) == size_of(b):
            _unify(a, b)
        elif size_of(a).over(size_of(b)):
            outer, inner = split_product(a, size_of(b))
            _unify(outer, b)
            left.insert(0, inner)
        elif size_of(b).over(size_of(a)):
            outer, inner = split_product(b, size_of(a))
            _unify(outer, a)
            right.insert(0, inner)
        else:
            raise Mismatch(f"factors {_show(a)} and {_show(b)} do not divide each other")
        left, right = _open(left), _open(right)


def _open(factors: list[Expr]) -> list[Expr]:
    opened = resolve(product(factors))
    return [] if opened is UNIT else list(opened.factors) if isinstance(opened, ProductExpr) else [opened]


def _unify_concats(left: list[Expr], right: list[Expr]) -> None:
    while left and right:
        a, b = resolve(left.pop(0)), resolve(right.pop(0))
        size_a, size_b = size_of(a), size_of(b)
        if size_a == size_b:
            _unify(a, b)
        elif size_a.symbols or size_b.symbols:
            raise Mismatch(f"segments {_show(a)} and {_show(b)} differ")
        elif size_a.count > size_b.count:
            first, second = split_concat(a, size_b.count)
            _unify(first, b)
            left.insert(0, second)
        else:
            first, second = split_concat(b, size_a.count)
            _unify(first, a)
            right.insert(0, second)


def _unify_mixed(whole: ProductExpr, parts: ConcatExpr) -> None:
    """A product equals a concatenation: give each segment whole rows of the product.

    Where the segments are no whole rows, each row holds the same pieces of the concatenation.
    """
    outer, inner = whole.factors[0], product(whole.factors[1:])
    rows = [size_of(segment).over(size_of(inner)) for segment in parts.segments]
    if all(row is not None for row in rows):
        counts = [row for row in rows if row is not None]
        if all(count == ONE for count in counts):
            fix(outer, "it counts the segments of a concatenation")
            heads: list[Expr] = [UNIT for _ in counts]
        else:
            heads = [open_atom(count) for count in counts]
            _unify(outer, ConcatExpr(tuple(heads)))
        for head, segment in zip(heads, parts.segments, strict=True):
            _unify(segment, product([head, inner]))
        return
    size, rest = size_of(inner), list(parts.segments)
    if size.symbols or any(size_of(s).symbols for s in rest):
        raise Mismatch(f"{_show(whole)} does not cut {_show(parts)} into whole rows")
    fix(outer, "it counts the rows of a concatenation")
    while rest:
        row, rest = cut(rest, size.count)
        _unify(concat(row), inner)


def cut(segments: Sequence[Expr], length: int) -> tuple[list[Expr], list[Expr]]:
    """Cut a list of segments after `length` positions, splitting the segment that crosses.

    Raises:
        Mismatch: the segment that crosses cannot be split there.
    """
    head: list[Expr] = []
    rest = [resolve(s) for s in segments]
    while length and rest:
        first = rest.pop(0)
        size = size_of(first)
        if size.symbols:
            raise Mismatch(f"{_show(first)} is only known when the model runs")
        if size.count > length:
            first, second = split_concat(first, length)
            rest.insert(0, second)
        head.append(first)
        length -= size_of(first).count
    return head, rest


def split_product(expr: Expr, outer: Size) -> tuple[Expr, Expr]:
    """Split `expr` into an outer factor of the given size and the inner rest, everywhere at once."""
    expr = resolve(expr)
    inner = size_of(expr).over(outer)
    if inner is None:
        raise Mismatch(f"{_show(expr)} is no multiple of {outer.count}")
    if isinstance(expr, ProductExpr):
        return _split_factors(expr, outer)
    parts = _new(expr, outer), _new(expr, inner)
    _unify(expr, product(parts))
    return resolve(parts[0]), resolve(parts[1])


def _split_factors(expr: ProductExpr, outer: Size) -> tuple[Expr, Expr]:
    head, rest, need = list[Expr](), list(expr.factors), outer
    while need != ONE:
        factor = rest.pop(0)
        left = need.over(size_of(factor))
        if left is None:
            first, second = split_product(factor, need)
            head.append(first)
            rest.insert(0, second)
            break
        head.append(factor)
        need = left
    return product(head), product(rest)


def split_concat(expr: Expr, length: int) -> tuple[Expr, Expr]:
    """Split `expr` into its first `length` positions and the rest, everywhere at once."""
    expr = resolve(expr)
    if isinstance(expr, ConcatExpr):
        head, rest = cut(expr.segments, length)
        return concat(head), concat(rest)
    if isinstance(expr, ProductExpr):
        inner = product(expr.factors[1:])
        rows, rest_ = divmod(length, size_of(inner).count)
        if rest_ or size_of(expr).symbols:
            raise Mismatch(f"{_show(expr)} cannot be cut after {length}")
        first, second = split_concat(expr.factors[0], rows)
        return product([first, inner]), product([second, inner])
    parts = _new(expr, Size(length)), _new(expr, Size(expr.size.count - length))
    _bind(expr, ConcatExpr(parts))
    return parts


def _new(expr: Expr, size: Size) -> Atom:
    reason = next((atom.fixed for atom in atoms(expr)), None) if is_fixed(expr) else None
    return fixed_atom(size, reason) if reason is not None else open_atom(size)


def reshape(dims: Sequence[Expr], sizes: Sequence[Size], place: Place | str) -> list[Expr]:
    """The dimensions after a row-major reshape to `sizes`; groups that do not match are fixed."""
    result: list[Expr] = []
    for old, new in _groups(dims, sizes):
        try:
            result += _regroup(old, new)
        except (Mismatch, IndexError) as mismatch:
            why = Reason(str(mismatch), _place(place))
            for dim in old:
                fix(dim, why)
            result += [fixed_atom(size, why) for size in new]
    return result


def _groups(dims: Sequence[Expr], sizes: Sequence[Size]) -> Iterator[tuple[list[Expr], list[Size]]]:
    """Cut both sides wherever the products so far are equal."""
    left_dims = [resolve(d) for d in dims if resolve(d) is not UNIT]
    right_sizes = list(sizes)
    while right_sizes:
        if right_sizes[0] == ONE or not left_dims:
            yield [], [right_sizes.pop(0)]
            continue
        old, new = [left_dims.pop(0)], [right_sizes.pop(0)]
        left, right = size_of(old[0]), new[0]
        while left != right:
            if left_dims and _smaller(left, right):
                old.append(left_dims.pop(0))
                left = left.times(size_of(old[-1]))
            elif right_sizes and _smaller(right, left):
                new.append(right_sizes.pop(0))
                right = right.times(new[-1])
            else:
                old, new, left_dims, right_sizes = old + left_dims, new + right_sizes, [], []
                break
        yield old, new


def _smaller(a: Size, b: Size) -> bool:
    """Whether `a` is less than `b` whatever the symbols stand for; unknown where they differ and do not divide."""
    return a.count < b.count if a.symbols == b.symbols else b.over(a) is not None


def _regroup(old: list[Expr], new: list[Size]) -> list[Expr]:
    factors = _open(old)
    result: list[Expr] = []
    for size in new:
        parts, need = list[Expr](), size
        while need != ONE:
            factors = _open(factors)
            factor = factors.pop(0)
            left = need.over(size_of(factor))
            if left is None:
                outer, inner = split_product(factor, need)
                parts.append(outer)
                factors.insert(0, inner)
                break
            parts.append(factor)
            need = left
        result.append(product(parts))
    return result


def _show(expr: Expr) -> str:
    expr = resolve(expr)
    match expr:
        case Atom(size=size):
            return "*".join([str(size.count)] * (size.count != 1 or not size.symbols) + list(size.symbols))
        case ProductExpr(parts):
            return "(" + " * ".join(map(_show, parts)) + ")"
        case ConcatExpr(parts):
            return "(" + " + ".join(map(_show, parts)) + ")"
