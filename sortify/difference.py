"""How far two nested outputs are apart: the one measure behind every proof and check."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor


def difference(expected: Any, found: Any) -> float:
    """The largest difference over all tensors of two nested values, relative to the expected scale.

    Infinite when structures, shapes, dtype kinds or NaN patterns differ, when a tensor has no data, or when no finite
    number was compared.
    """
    left, left_spec = torch.utils._pytree.tree_flatten(expected)
    right, right_spec = torch.utils._pytree.tree_flatten(found)
    if left_spec != right_spec or not any(_says_something(leaf) for leaf in left):
        return float("inf")
    return max(_leaf_difference(a, b) for a, b in zip(left, right, strict=True))


def _says_something(leaf: Any) -> bool:
    """Whether a tensor holds a finite number, or none at all because it is empty."""
    if not isinstance(leaf, torch.Tensor) or isinstance(leaf, FakeTensor):
        return False
    return leaf.numel() == 0 or bool(leaf.isfinite().any())


def _leaf_difference(a: Any, b: Any) -> float:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return 0.0 if type(a) is type(b) and a == b else float("inf")
    if isinstance(a, FakeTensor) or isinstance(b, FakeTensor):  # has no numbers to compare
        return float("inf")
    if a.shape != b.shape or a.is_floating_point() != b.is_floating_point():
        return float("inf")
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else float("inf")
    if a.numel() == 0:
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs())
    scale = a[a.isfinite()].abs().max() if a.isfinite().any() else torch.tensor(1.0)
    worst = float(gap.max() / scale.clamp(min=1e-3))
    return float("inf") if worst != worst else worst
