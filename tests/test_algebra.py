"""The dimension algebra: laws of unify, split, cut and reshape, on cases written by hand and on random ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_law import positions

from sortify.axes.algebra import (
    ONE,
    UNIT,
    Atom,
    ConcatExpr,
    Expr,
    Mismatch,
    ProductExpr,
    Size,
    atoms,
    concat,
    cut,
    fix,
    fixed_atom,
    is_fixed,
    mark,
    open_atom,
    product,
    reshape,
    resolve,
    same,
    size_of,
    split_concat,
    split_product,
    unify,
)

LAW = settings(derandomize=True, deadline=None, max_examples=150, database=None)


def text(*exprs: Expr) -> str:
    """Expressions as text; open atoms get a letter and fixed ones an exclamation mark: `(a2 * b3), !4`."""
    names: dict[Atom, str] = {}

    def show(expr: Expr) -> str:
        expr = resolve(expr)
        match expr:
            case Atom(size=size):
                if expr.fixed is not None:
                    return f"!{size.count}"
                return names.setdefault(expr, chr(ord("a") + len(names))) + str(size.count)
            case ProductExpr(parts):
                return "(" + " * ".join(map(show, parts)) + ")"
            case ConcatExpr(parts):
                return "(" + " + ".join(map(show, parts)) + ")"

    return ", ".join(map(show, exprs))


def count(expr: Expr) -> int:
    return size_of(expr).count


def sizes(*numbers: int) -> list[Size]:
    return [Size(number) for number in numbers]


# -- what expressions are


def test_products_and_concatenations_are_canonical() -> None:
    a, b, c = open_atom(2), open_atom(3), open_atom(4)
    assert text(product([a, product([b, UNIT, c])])) == "(a2 * b3 * c4)"
    assert text(concat([a, concat([b, c])])) == "(a2 + b3 + c4)"
    assert product([UNIT, a]) is a
    assert concat([a]) is a
    assert product([]) is UNIT
    assert concat([a, fixed_atom(0, "empty")]) is a
    assert count(concat([])) == 0


@pytest.mark.parametrize("size", [Size(1), Size(0), Size(2, ("s0",))], ids=str)
def test_what_cannot_be_cut_is_never_open(size: Size) -> None:
    assert is_fixed(open_atom(size))


def test_sizes_multiply_and_divide() -> None:
    batch = Size(2, ("s0",))
    assert batch.times(Size(3, ("s1",))) == Size(6, ("s0", "s1"))
    assert Size(6, ("s0", "s1")).over(batch) == Size(3, ("s1",))
    assert batch.over(Size(3)) is None
    assert batch.over(Size(2, ("s1",))) is None
    assert Size(0).over(Size(0)) is None
    assert size_of(concat([fixed_atom(batch, "x"), fixed_atom(Size(1, ("s1",)), "x")])).symbols != ()


def test_a_bound_atom_is_replaced_everywhere() -> None:
    whole = open_atom(6)
    before = product([whole, open_atom(5)])
    split_product(whole, Size(2))
    assert text(before, whole) == "(a2 * b3 * c5), (a2 * b3)"


def test_roles_gather_where_atoms_meet() -> None:
    a, b = open_atom(4, "heads"), open_atom(4)
    mark(b, "norm_groups")
    unify(a, b, "here")
    assert [atom.roles for atom in atoms(a)] == [{"heads", "norm_groups"}]


# -- what unify does


def heads_of_parts() -> list[Expr]:
    """Fused q, k and v per head, and flat: heads x (k + k + v)."""
    heads, parts = open_atom(4), [open_atom(2), open_atom(2), open_atom(3)]
    return [product([heads, concat(parts)]), open_atom(28)]


CASES: dict[str, tuple[Callable[[], Sequence[Expr]], str]] = {
    "two atoms": (lambda: (open_atom(4), open_atom(4)), "a4, a4"),
    "an atom and a product": (lambda: (open_atom(6), product([open_atom(2), open_atom(3)])), "(a2 * b3), (a2 * b3)"),
    "an atom and a concatenation": (
        lambda: (open_atom(5), concat([open_atom(2), open_atom(3)])),
        "(a2 + b3), (a2 + b3)",
    ),
    "products that nest": (
        lambda: (product([open_atom(2), open_atom(6)]), product([open_atom(4), open_atom(3)])),
        "(a2 * b2 * c3), (a2 * b2 * c3)",
    ),
    "concatenations that overlap": (
        lambda: (concat([open_atom(2), open_atom(5)]), concat([open_atom(4), open_atom(3)])),
        "(a2 + b2 + c3), (a2 + b2 + c3)",
    ),
    "nested heads and a flat width": (heads_of_parts, "(a4 * (b2 + c2 + d3)), (a4 * (b2 + c2 + d3))"),
    "whole rows of a product": (
        lambda: (product([open_atom(5), open_atom(4)]), concat([open_atom(8), open_atom(12)])),
        "((a2 + b3) * c4), ((a2 * c4) + (b3 * c4))",
    ),
    "one row for each part": (
        lambda: (product([open_atom(3), open_atom(4)]), concat([open_atom(4), open_atom(4), open_atom(4)])),
        "(!3 * a4), (a4 + a4 + a4)",
    ),
    "rows of the same pieces": (
        lambda: (
            product([open_atom(2), open_atom(5)]),
            concat([open_atom(2), open_atom(3), open_atom(2), open_atom(3)]),
        ),
        "(!2 * (a2 + b3)), (a2 + b3 + a2 + b3)",
    ),
    "a fixed atom fixes": (lambda: (fixed_atom(6, "x"), product([open_atom(2), open_atom(3)])), "(!2 * !3), (!2 * !3)"),
    "a fixed part fixes its twin": (
        lambda: (concat([fixed_atom(2, "x"), open_atom(3)]), concat([open_atom(2), open_atom(3)])),
        "(!2 + a3), (!2 + a3)",
    ),
    "sizes that differ": (lambda: (open_atom(3), open_atom(4)), "!3, !4"),
    "factors that do not divide": (
        lambda: (product([open_atom(4), open_atom(3)]), product([open_atom(6), open_atom(2)])),
        "(!4 * !3), (!6 * !2)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_unify(name: str) -> None:
    make, expected = CASES[name]
    a, b = make()
    unify(a, b, "here")
    assert text(a, b) == expected


@pytest.mark.parametrize("name", CASES)
def test_unify_is_idempotent_and_symmetric(name: str) -> None:
    make, _ = CASES[name]
    a, b = make()
    unify(a, b, "here")
    once = text(a, b)
    unify(a, b, "here")
    unify(b, a, "here")
    assert text(a, b) == once
    c, d = make()
    unify(d, c, "here")
    assert sorted(text(c, d)) == sorted(once)


def test_a_mismatch_fixes_both_sides_with_the_reason() -> None:
    a, b, other = open_atom(3), product([open_atom(2), open_atom(2)]), open_atom(3)
    unify(a, b, "aten.add.Tensor in layers.0")
    assert [str(atom.fixed) for atom in (*atoms(a), *atoms(b))] == [
        "aten.add.Tensor in layers.0: sizes 3 and (2 * 2) differ"
    ] * 3
    assert not is_fixed(other)


def test_the_first_reason_stays() -> None:
    a = open_atom(3)
    fix(a, "first")
    fix(a, "second")
    assert str(next(atoms(a)).fixed) == "first"


def test_heads_split_into_parts_and_back() -> None:
    """view(N, heads, -1), split(k, k, v), cat again, flatten: the same dimension."""
    width = open_atom(28)
    heads, rest = reshape([width], sizes(4, 7), "view")
    q, k, v = _cut_three(rest)
    assert text(width) == "(a4 * (b2 + c2 + d3))"
    assert text(heads, q, k, v) == "a4, b2, c2, d3"
    (flat,) = reshape([heads, concat([q, k, v])], sizes(28), "flatten")
    assert same(flat, width)


def _cut_three(expr: Expr) -> tuple[Expr, Expr, Expr]:
    first, rest = split_concat(expr, 2)
    second, third = split_concat(rest, 2)
    return first, second, third


def test_unify_after_a_split_reaches_the_parts() -> None:
    width, other = open_atom(12), open_atom(12)
    split_product(width, Size(3))
    split_concat(other, 8)
    unify(width, other, "add")
    assert text(width, other) == "((a2 + !1) * b4), ((a2 * b4) + b4)"


def test_fixed_dimensions_are_the_same_by_size() -> None:
    a, b = open_atom(4), open_atom(4)
    assert same(fixed_atom(6, "x"), product([fixed_atom(2, "y"), fixed_atom(3, "z")]))
    assert same(product([a, fixed_atom(6, "x")]), product([a, fixed_atom(2, "y"), fixed_atom(3, "z")]))
    assert same(concat([fixed_atom(1, "x"), fixed_atom(2, "x"), a]), concat([fixed_atom(3, "x"), a]))
    assert not same(a, b)
    assert not same(product([a, fixed_atom(6, "x")]), product([fixed_atom(6, "x"), a]))
    assert not same(fixed_atom(6, "x"), fixed_atom(5, "x"))
    assert not same(concat([a, b]), product([fixed_atom(2, "x"), a]))


# -- splits and cuts


def test_split_concat_of_a_product_takes_whole_rows() -> None:
    rows, width = open_atom(5), open_atom(4)
    first, second = split_concat(product([rows, width]), 8)
    assert text(rows, first, second) == "(a2 + b3), (a2 * c4), (b3 * c4)"
    with pytest.raises(Mismatch, match="cannot be cut after 6"):
        split_concat(product([open_atom(5), open_atom(4)]), 6)


def test_split_product_needs_a_multiple() -> None:
    with pytest.raises(Mismatch, match="10 is no multiple of 4"):
        split_product(open_atom(10), Size(4))


def test_an_unknown_size_is_not_cut() -> None:
    with pytest.raises(Mismatch, match="only known when the model runs"):
        cut([fixed_atom(Size(1, ("s0",)), "batch")], 3)


def test_a_concatenation_seen_as_rows_has_equal_rows() -> None:
    parts = [open_atom(2), open_atom(4)]
    rows, width = reshape([concat(parts)], sizes(2, 3), "view")
    assert text(rows, width, *parts) == "!2, (a2 + !1), a2, (!1 + a2 + !1)"


RESHAPES = {
    "split": ([6, 4], [2, 3, 4], "a2, b3, c4"),
    "merge": ([2, 3, 4], [6, 4], "(a2 * b3), c4"),
    "across": ([4, 6], [2, 12], "a2, (b2 * c6)"),
    "ones": ([3, 1, 4], [1, 3, 4, 1], "!1, a3, b4, !1"),
    "apart": ([4, 6, 5], [3, 8, 5], "!3, !8, a5"),
    "nothing in common": ([4, 6], [3, 8], "!3, !8"),
    "a number": ([], [1, 1], "!1, !1"),
}


@pytest.mark.parametrize("name", RESHAPES)
def test_reshape(name: str) -> None:
    before, after, expected = RESHAPES[name]
    dims = [open_atom(size) for size in before]
    assert text(*reshape(dims, sizes(*after), "view")) == expected


def test_reshape_keeps_unknown_factors_apart() -> None:
    batch = fixed_atom(Size(1, ("s0",)), "batch")
    heads, rest = open_atom(4), open_atom(6)
    dims = reshape([batch, heads, rest], [Size(4, ("s0",)), Size(6)], "view")
    assert resolve(dims[1]) is rest
    back = reshape(dims, [Size(1, ("s0",)), Size(4), Size(6)], "view")
    assert resolve(back[1]) is heads


def test_a_reshape_that_does_not_fit_says_why() -> None:
    dims = [open_atom(4), open_atom(6)]
    reshape(dims, sizes(3, 8), "aten.view.default in mixer")
    assert {str(next(atoms(d)).fixed) for d in dims} == {"aten.view.default in mixer: 4 is no multiple of 3"}


# -- laws over random expressions


def factors_of(number: int) -> list[int]:
    return [n for n in range(2, number) if number % n == 0]


@st.composite
def expressions(draw: st.DrawFn, size: int, depth: int = 3) -> Expr:
    """A random expression of the given size over fresh atoms."""
    kind = draw(st.sampled_from("apc")) if depth and size > 2 else "a"
    if kind == "p" and factors_of(size):
        outer = draw(st.sampled_from(factors_of(size)))
        return product([draw(expressions(outer, depth - 1)), draw(expressions(size // outer, depth - 1))])
    if kind == "c":
        first = draw(st.integers(1, size - 1))
        return concat([draw(expressions(first, depth - 1)), draw(expressions(size - first, depth - 1))])
    return open_atom(size) if draw(st.integers(0, 9)) else fixed_atom(size, "drawn")


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Expr, Expr]:
    size = draw(st.sampled_from([4, 6, 8, 12, 24]))
    return draw(expressions(size)), draw(expressions(size))


@st.composite
def shapes(draw: st.DrawFn, total: int) -> list[int]:
    """Random sizes whose product is `total`."""
    found = []
    while total > 1:
        found.append(draw(st.sampled_from([*factors_of(total), total])))
        total //= found[-1]
    return found


def alike(a: Expr, b: Expr) -> bool:
    """The meaning of `same`: whatever the open atoms keep, shuffled or cut, both keep the same positions."""
    generator = np.random.default_rng(0)
    found = list(dict.fromkeys(atom for expr in (a, b) for atom in atoms(expr) if atom.fixed is None))
    for make in (generator.permutation, lambda size: np.arange((size + 1) // 2)):
        kept = {atom: make(atom.size.count) for atom in found}
        if positions(a, kept).tolist() != positions(b, kept).tolist():
            return False
    return True


def test_alike_tells_what_differs() -> None:
    a, b = open_atom(4), open_atom(3)
    assert alike(product([a, b]), product([a, b]))
    assert not alike(product([a, b]), product([b, a]))
    assert not alike(a, open_atom(4))
    assert not alike(concat([a, b]), concat([b, a]))


@LAW
@given(pairs())
def test_what_is_unified_is_one_dimension(pair: tuple[Expr, Expr]) -> None:
    a, b = pair
    before = size_of(a)
    unify(a, b, "here")
    assert alike(a, b)
    assert size_of(a) == size_of(b) == before


@LAW
@given(pairs(), pairs())
def test_what_is_the_same_is_alike(first: tuple[Expr, Expr], second: tuple[Expr, Expr]) -> None:
    """Of expressions whose parts were unified here and there, those called the same really are."""
    pool = [*first, *second]
    for a, b in pairwise(pool):
        if count(a) == count(b):
            unify(a, b, "here")
    for a in pool:
        assert same(a, a)
        assert all(alike(a, b) for b in pool if same(a, b))


@LAW
@given(pairs())
def test_unify_twice_changes_nothing(pair: tuple[Expr, Expr]) -> None:
    a, b = pair
    unify(a, b, "here")
    once = text(a, b)
    unify(b, a, "there")
    unify(a, b, "here")
    assert text(a, b) == once


@LAW
@given(shapes(48), shapes(48))
def test_reshape_there_and_back_is_the_identity(before: list[int], after: list[int]) -> None:
    dims = [open_atom(size) for size in before]
    made = reshape(dims, sizes(*after), "there")
    back = reshape(made, sizes(*before), "back")
    assert [count(d) for d in made] == after
    assert all(map(same, back, dims))


@LAW
@given(st.data())
def test_reshape_of_any_expression_there_and_back(data: st.DataObject) -> None:
    before, after = data.draw(shapes(24)), data.draw(shapes(24))
    dims = [data.draw(expressions(size, 1)) for size in before]
    back = reshape(reshape(dims, sizes(*after), "there"), sizes(*before), "back")
    assert all(map(alike, back, dims))


@LAW
@given(st.data())
def test_reshape_keeps_the_same_positions(data: st.DataObject) -> None:
    """Row-major: the positions that all dimensions keep together are those of their product."""
    dims = [data.draw(expressions(size, 2)) for size in data.draw(shapes(24))]
    made = reshape(dims, sizes(*data.draw(shapes(24))), "there")
    assert alike(product(dims), product(made))


@LAW
@given(st.data())
def test_cut_gives_back_everything(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([6, 8, 12]))
    expr, length = data.draw(expressions(size)), data.draw(st.integers(0, size))
    try:
        head, rest = cut([expr], length)
    except Mismatch:
        assert count(expr) == size
    else:
        assert count(concat(head)) == length
        assert alike(concat([*head, *rest]), expr)


def _random_step(draw: random.Random, pool: list[Expr]) -> None:
    """One of what rules do: a new dimension, unify two, split one, join two."""
    kind, expr = draw.randrange(5), draw.choice(pool)
    if kind == 0:
        pool.append(open_atom(draw.choice([4, 6, 8, 12, 24, 48])))
    elif kind == 1:
        equal = [other for other in pool if count(other) == count(expr)]
        unify(expr, draw.choice(equal), "here")
    elif kind == 2 and factors_of(count(expr)):
        outer = draw.choice(factors_of(count(expr)))
        pool += reshape([expr], sizes(outer, count(expr) // outer), "view")
    elif kind == 3 and count(expr) > 2:
        half = count(expr) // 2
        try:
            pool += map(concat, cut([expr], half))
        except Mismatch as reason:
            fix(expr, str(reason))
    elif kind == 4 and count(expr) <= 24:
        other = draw.choice(pool)
        pool.append(
            concat([expr, other]) if draw.random() < 0.5 and count(other) <= 24 else product([expr, open_atom(2)])
        )


@pytest.mark.parametrize("seed", range(3))
def test_two_thousand_steps_stay_canonical_and_quick(seed: int) -> None:
    draw, pool = random.Random(seed), [open_atom(12), open_atom(24)]
    made = list(map(count, pool))
    start = perf_counter()
    for _ in range(2000):
        _random_step(draw, pool)
        made += map(count, pool[len(made) :])
    assert perf_counter() - start < 30
    assert list(map(count, pool)) == made
    for expr in pool[:: len(pool) // 100]:
        assert all(atom.link is None for atom in atoms(expr))
        assert _canonical(expr)
        assert len(list(atoms(expr))) <= count(expr)


def _canonical(expr: Expr) -> bool:
    """No product inside a product, no concatenation inside a concatenation, nothing of size 1 as a factor."""
    expr = resolve(expr)
    match expr:
        case Atom():
            return expr.size != ONE or expr is UNIT
        case ProductExpr(parts):
            inner = [resolve(p) for p in parts]
            return len(parts) > 1 and all(
                not isinstance(p, ProductExpr) and size_of(p) != ONE and _canonical(p) for p in inner
            )
        case ConcatExpr(parts):
            inner = [resolve(p) for p in parts]
            return len(parts) > 1 and all(not isinstance(p, ConcatExpr) and _canonical(p) for p in inner)


def test_a_long_chain_of_equal_dimensions_is_quick() -> None:
    """Ten thousand dimensions unified one with the next, then split once: everywhere at once."""
    chain: list[Any] = [open_atom(12) for _ in range(10_000)]
    start = perf_counter()
    for a, b in pairwise(chain):
        unify(a, b, "add")
    split_product(chain[0], Size(3))
    assert {text(expr) for expr in chain[::1000]} == {"(a3 * b4)"}
    assert len({next(atoms(expr)) for expr in chain}) == 1
    assert perf_counter() - start < 30
