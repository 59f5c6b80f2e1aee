"""What a node of a graph does beside giving its result: such a node stays, though nobody may read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten
# Ops that write into running statistics and whose schema does not say so: where these are, and the flag that decides.
RUNNING: dict[Any, tuple[str, str]] = {
    _aten.batch_norm.default: ("running_mean", "training"),
    _aten.native_batch_norm.default: ("running_mean", "training"),
    _aten.cudnn_batch_norm.default: ("running_mean", "training"),
    _aten.miopen_batch_norm.default: ("running_mean", "training"),
    _aten.instance_norm.default: ("running_mean", "use_input_stats"),
}


def has_effect(node: fx.Node) -> bool:
    """Whether a node must run although nobody may read its result."""
    if node.target in RUNNING:
        statistics, flag = (_argument(node, name) for name in RUNNING[node.target])
        return statistics is not None and bool(flag)
    return node.is_impure()


def without_dead_code(graph: fx.Graph) -> None:
    """Drop the nodes that nobody reads and that have no effect."""
    graph.eliminate_dead_code(has_effect)


def _argument(node: fx.Node, name: str) -> Any:
    arguments: Sequence[Any] = node.target._schema.arguments  # type: ignore[union-attr]
    place = next(place for place, argument in enumerate(arguments) if argument.name == name)
    return node.args[place] if place < len(node.args) else node.kwargs.get(name)
