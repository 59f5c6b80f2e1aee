"""Fits without negative weights: optimal by the conditions of Karush, Kuhn and Tucker; planted weights come back."""

from __future__ import annotations

import numpy as np
import pytest

from sortify.space.fitting import Array, fit, held_out, nonnegative


def is_optimal(matrix: Array, target: Array, weights: Array) -> bool:
    """No weight is negative, no column would help, and those in use are at their best."""
    slope = matrix.T @ (target - matrix @ weights)
    scale = np.abs(matrix.T @ target).max() + np.linalg.norm(matrix) ** 2
    used = weights > 0
    return bool((weights >= 0).all() and (slope <= 1e-9 * scale).all() and (np.abs(slope[used]) <= 1e-9 * scale).all())


@pytest.mark.parametrize("seed", range(50))
def test_the_weights_are_the_best(seed: int) -> None:
    chance = np.random.default_rng(seed)
    matrix = chance.normal(size=(12, 5)) if seed % 2 else chance.random((12, 5))
    target = chance.normal(size=12) + chance.random() * matrix.sum(axis=1)
    weights = nonnegative(matrix, target)
    assert is_optimal(matrix, target, weights)
    for place in range(5):
        wrong = weights.copy()
        wrong[place] += 0.1
        assert not is_optimal(matrix, target, wrong)


def test_columns_that_are_alike_or_empty_do_no_harm() -> None:
    column = np.arange(1.0, 7.0)
    weights = nonnegative(np.stack([column, column, 0 * column], axis=1), 3 * column)
    assert weights[:2].sum() == pytest.approx(3.0)
    assert weights[2] == 0
    assert (nonnegative(np.ones((4, 2)), -np.ones(4)) == 0).all()


def test_planted_weights_come_back_whatever_their_scale() -> None:
    chance = np.random.default_rng(0)
    matrix = np.concatenate([np.ones((20, 1)), chance.random((20, 3)) * [1e9, 1e6, 10]], axis=1)
    planted = np.array([4e5, 1e-3, 0.0, 2e4])
    measured = matrix @ planted
    assert fit(matrix, measured) == pytest.approx(planted, rel=1e-6, abs=1e-9)
    assert held_out(matrix, measured).max() < 1e-9


def test_small_rows_count_as_much_as_large_ones() -> None:
    """One weight, two rows that want another one each: in relative error both are off alike."""
    weight = float(fit(np.array([[1.0], [1000.0]]), np.array([1.0, 2000.0]))[0])
    assert weight == pytest.approx(1.2)


def test_what_no_cost_explains_is_told_as_an_error() -> None:
    chance = np.random.default_rng(0)
    matrix = np.concatenate([np.ones((30, 1)), chance.random((30, 2))], axis=1)
    assert np.median(held_out(matrix, np.exp(chance.normal(size=30)))) > 0.3
