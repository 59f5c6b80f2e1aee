"""Dimension expressions: text and back, sizes, and positions against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    parse,
    parse_shape,
    positions,
    product,
    shape_text,
)

LAW = settings(derandomize=True, deadline=None, max_examples=150, database=None)
AXES = {"hidden": 4, "layers.0.heads": 3, "inner_2": 2, "a": 5}

leaves = st.one_of(
    st.integers(1, 4).map(Fixed), st.sampled_from(sorted(AXES)).map(lambda name: Named(name, AXES[name]))
)
dims = st.recursive(
    leaves,
    lambda parts: st.one_of(
        st.lists(parts, min_size=2, max_size=3).map(lambda x: Product(tuple(x))),
        st.lists(parts, min_size=2, max_size=3).map(lambda x: Concat(tuple(x))),
    ),
    max_leaves=5,
)


def by_numpy(dim: Dim, kept: dict[str, list[int]]) -> np.ndarray:
    """The positions that stay, by reshaping, indexing and joining arrays of position numbers."""
    match dim:
        case Fixed(size):
            return np.arange(size)
        case Named(axis, size):
            return np.arange(size)[kept.get(axis, list(range(size)))]
        case Product(factors):
            numbers = np.arange(full(dim)).reshape([full(factor) for factor in factors])
            return numbers[np.ix_(*(by_numpy(factor, kept) for factor in factors))].reshape(-1)
        case Concat(segments):
            pieces = np.split(np.arange(full(dim)), np.cumsum([full(segment) for segment in segments])[:-1])
            return np.concatenate([piece[by_numpy(s, kept)] for piece, s in zip(pieces, segments, strict=True)])


@LAW
@given(dims)
def test_text_and_back(dim: Dim) -> None:
    assert parse(str(dim)) == dim


@LAW
@given(st.lists(dims, max_size=4).map(tuple))
def test_shape_text_and_back(shape: tuple[Dim, ...]) -> None:
    assert parse_shape(shape_text(shape)) == shape


@LAW
@given(dims, st.fixed_dictionaries({name: st.integers(1, size) for name, size in AXES.items()}))
def test_prefixes_keep_what_numpy_keeps(dim: Dim, sizes: dict[str, int]) -> None:
    kept = {name: list(range(size)) for name, size in sizes.items()}
    found = positions(dim, kept)
    assert found == by_numpy(dim, kept).tolist()
    assert len(found) == active(dim, sizes)
    assert found == sorted(set(found))


@LAW
@given(dims, st.fixed_dictionaries({name: st.permutations(range(size)) for name, size in AXES.items()}))
def test_permutations_reorder_as_numpy_does(dim: Dim, orders: dict[str, list[int]]) -> None:
    found = positions(dim, orders)
    assert found == by_numpy(dim, orders).tolist()
    assert sorted(found) == list(range(full(dim)))


@LAW
@given(dims)
def test_full_sizes_keep_everything(dim: Dim) -> None:
    assert active(dim, AXES) == full(dim)
    assert positions(dim, {}) == list(range(full(dim)))


@LAW
@given(st.lists(dims, min_size=1, max_size=3))
def test_canonical_forms_keep_sizes_and_positions(parts: list[Dim]) -> None:
    kept = {name: list(range((size + 1) // 2)) for name, size in AXES.items()}
    for make, plain in ((product, Product), (concat, Concat)):
        assert full(make(parts)) == full(plain(tuple(parts)))
        assert positions(make(parts), kept) == positions(plain(tuple(parts)), kept)
        assert make([make(parts)]) == make(parts)


def test_canonical_forms() -> None:
    heads, width = Named("heads", 4), Named("width", 6)
    assert product([Fixed(2), Fixed(3), heads, Fixed(1)]) == Product((Fixed(6), heads))
    assert product([heads, product([width, Fixed(2)])]) == Product((heads, width, Fixed(2)))
    assert product([]) == Fixed(1)
    assert concat([Fixed(2), Fixed(3), heads, Fixed(0)]) == Concat((Fixed(5), heads))
    assert concat([heads]) == heads
    assert concat([]) == Fixed(0)


def test_axes_come_in_order_of_appearance() -> None:
    dim = parse("((b:2 * 3) + a:4 + (b:2 * a:4))")
    assert [axis.axis for axis in axes_of(dim)] == ["b", "a", "b", "a"]
    assert str(dim) == "((b:2 * 3) + a:4 + (b:2 * a:4))"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "ends too early"),
        ("(", "ends too early"),
        ("(a:2 * 3", r"'\)' is missing"),
        ("(a:2 * 3 + 4)", "one kind of operator"),
        ("(3)", "one kind of operator"),
        ("3 4", "expected the end, found '4'"),
        ("a", "unexpected 'a'"),
        ("* 3", "expected a size, an axis or '[(]', found '[*]'"),
        ("a:x", "unexpected 'a:x'"),
    ],
)
def test_what_is_no_dimension_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text)
