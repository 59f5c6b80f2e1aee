"""Fits with weights that are not negative: what is measured, as a sum of known costs.

The relative error is what is made small, so that small sub-networks count as much as large ones. How good a fit is, is
told by leaving one measurement out, fitting the others, and predicting the one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
TINY = 1e-12
"""Relative: a slope this small is none."""


def nonnegative(matrix: Array, target: Array) -> Array:
    """The weights, none negative, for which `matrix @ weights` is closest to `target` in squares.

    Lawson and Hanson, Solving Least Squares Problems, chapter 23: columns enter one by one, where they help most, and
    leave where their weight would become negative.

    Args:
        matrix: `[rows, columns]`.
        target: `[rows]`.

    Returns:
        `[columns]`.
    """
    weights = np.zeros(matrix.shape[1])
    inside = np.zeros(matrix.shape[1], dtype=np.bool_)
    limit = TINY * float(np.abs(matrix.T @ target).max(initial=0.0))
    for _ in range(10 * matrix.shape[1]):
        slope = matrix.T @ (target - matrix @ weights)
        slope[inside] = -np.inf
        if inside.all() or slope.max() <= limit:
            break
        inside[int(slope.argmax())] = True
        while True:
            free = np.zeros_like(weights)
            free[inside] = np.linalg.lstsq(matrix[:, inside], target, rcond=None)[0]
            falling = inside & (free <= 0)
            if not falling.any():
                break
            room = weights[falling] / np.maximum(weights[falling] - free[falling], np.finfo(np.float64).tiny)
            weights = weights + float(room.min()) * (free - weights)
            inside &= weights > TINY * max(1.0, float(weights.max()))
            weights[~inside] = 0.0
        weights = free
    return weights


def fit(matrix: Array, measured: Array) -> Array:
    """Weights, none negative, for which `matrix @ weights` is close to `measured`, relative to it.

    Args:
        matrix: `[rows, features]`, not negative.
        measured: `[rows]`, positive.
    """
    scale = np.maximum(matrix.max(axis=0), np.finfo(np.float64).tiny)
    shares = matrix / scale / measured[:, None]
    weights: Array = nonnegative(shares, np.ones(len(measured))) / scale
    return weights


def held_out(matrix: Array, measured: Array) -> Array:
    """The relative error of every row when it is predicted by a fit of all others; `[rows]`."""
    rows = np.arange(len(measured))
    found = [float(matrix[row] @ fit(matrix[rows != row], measured[rows != row])) for row in rows]
    errors: Array = np.abs(np.array(found) - measured) / measured
    return errors
