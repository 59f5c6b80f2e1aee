"""Many costs at once equal the costs one by one, in whatever numbers they are computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_space import SPACE

from sortify.costs.cost import METRICS, Cost, CostModel, Term
from sortify.costs.open_sizes import OpenSize
from sortify.costs.table import CHUNK
from sortify.errors import AxesError
from sortify.graph.dims import parse

LAW = settings(derandomize=True, deadline=None, max_examples=60, database=None)
AXES = {"a": 7, "b": 12, "c": 64}
OPENS = (OpenSize("batch", 3), OpenSize("size_1", 2, "batch//2 + 1"))
TEXTS = (
    "a:7 b:12 c:64 3 batch:3 size_1:2 (a:7*4) (a:7+b:12) (a:7+3) (2*b:12*size_1:2) (5+(a:7*b:12)) (batch:3+4)".split()
)
blocks = st.dictionaries(st.integers(0, 1), st.integers(0, 2), max_size=2).map(lambda d: tuple(sorted(d.items())))
terms = st.builds(
    Term,
    st.sampled_from(METRICS),
    st.integers(0, 5),
    st.lists(st.sampled_from(TEXTS).map(parse), max_size=4).map(tuple),
    st.lists(blocks, min_size=1, max_size=2).map(tuple),
)
rows = st.tuples(*(st.integers(0, size) for size in AXES.values()), st.integers(0, 3), st.integers(0, 3))


@LAW
@given(st.lists(terms, max_size=12), st.lists(rows, max_size=8), st.sampled_from([1, 3, 10]))
def test_a_table_holds_what_single_calls_give(found: list[Term], values: list[tuple[int, ...]], batch: int) -> None:
    model = CostModel(found, list(AXES), OPENS)
    table = model.table(np.array(values, dtype=np.int64).reshape(len(values), 5), batch=batch)
    assert list(table) == [model(each, batch=batch) for each in values]
    assert len(table) == len(values)


@LAW
@given(st.lists(terms, max_size=12), st.lists(rows, max_size=8), st.sets(st.sampled_from(METRICS)))
def test_metrics_that_are_not_asked_for_are_zero(
    found: list[Term], values: list[tuple[int, ...]], wanted: set[str]
) -> None:
    model, matrix = CostModel(found, list(AXES), OPENS), np.array(values, dtype=np.int64).reshape(len(values), 5)
    whole, some = model.table(matrix), model.only(wanted).table(matrix)
    for metric in METRICS:
        expected = getattr(whole, metric) if metric in wanted else np.zeros(len(values), dtype=np.int64)
        assert np.array_equal(getattr(some, metric), expected)


@pytest.mark.parametrize(
    ("weight", "kind"), [(1, np.int64), (2**46, np.int64), (2**52, np.int64), (2**57, object), (2**70, object)]
)
def test_large_costs_stay_exact(weight: int, kind: object) -> None:
    """Up to 2**53 in float64, up to 2**63 in int64, then in Python's integers."""
    model = CostModel([Term("flops", weight, (parse("a:7"), parse("b:12"))), Term("params", 3, ())], ["a", "b"])
    values = np.array([[a, b] for a in range(8) for b in range(13)], dtype=np.int64)
    table = model.table(values)
    assert table.flops.dtype == kind
    assert [int(each) for each in table.flops] == [weight * int(a) * int(b) for a, b in values]
    assert table[5] == Cost(3, weight * 0 * 5, 0)


def test_more_than_one_chunk() -> None:
    model = CostModel([Term("flops", 2, (parse("a:7"),), (((0, 1),),))], ["a"])
    values = np.stack([np.arange(3 * CHUNK + 5) % 8, np.arange(3 * CHUNK + 5) % 4], axis=1)
    assert np.array_equal(model.table(values).flops, 2 * values[:, 0] * (values[:, 1] > 1))


def test_a_matrix_of_values_is_checked() -> None:
    values = np.array([SPACE.smallest.values, SPACE.full.values], dtype=np.int64)
    assert list(SPACE.costs(values)) == [SPACE.cost(SPACE.smallest), SPACE.cost(SPACE.full)]
    assert len(SPACE.costs(values[:0])) == len(SPACE.costs([])) == 0
    with pytest.raises(AxesError, match=r"expected a matrix of 5 columns, axes then chains, got \(2, 4\)"):
        SPACE.costs(values[:, 1:])
    with pytest.raises(AxesError, match="larger than the full"):
        SPACE.costs(values + 1)


def test_a_wrong_table_is_seen() -> None:
    model = CostModel([Term("flops", 2, (parse("a:7"),))], ["a"])
    assert list(model.table(np.array([[3]]))) != [model((4,))]
