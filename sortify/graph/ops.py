"""What is known of a call of an op beside its result: its arguments by name, and its effects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._functorch import predispatch

from sortify.graph.graphs import register_function

_aten = torch.ops.aten
# Ops that write into running statistics and whose schema does not say so: where these are, and the flag that decides.
RUNNING: dict[Any, tuple[str, str]] = {
    _aten.batch_norm.default: ("running_mean", "training"),
    _aten.native_batch_norm.default: ("running_mean", "training"),
    _aten.cudnn_batch_norm.default: ("running_mean", "training"),
    _aten.miopen_batch_norm.default: ("running_mean", "training"),
    _aten.instance_norm.default: ("running_mean", "use_input_stats"),
}

# Begin and end of what `torch.vmap` runs: nobody reads them, but what lies between works on batches because of them.
NESTING: frozenset[Any] = frozenset(
    {
        predispatch.lazy_load_decompositions,
        predispatch._vmap_increment_nesting,
        predispatch._vmap_decrement_nesting,
    }
)
for function in (*NESTING, predispatch._add_batch_dim, predispatch._remove_batch_dim):
    register_function(f"functorch.{function.__name__}", function)


def argument(node: fx.Node, name: str) -> Any:
    """An argument of an op call by the name in its schema; None where it is left out or the op has none such."""
    schema = getattr(node.target, "_schema", None)
    names = [each.name for each in schema.arguments] if schema is not None else []
    if name not in names:
        return None
    place = names.index(name)
    return node.args[place] if place < len(node.args) else node.kwargs.get(name)


def has_effect(node: fx.Node) -> bool:
    """Whether a node must run although nobody may read its result."""
    if node.target in NESTING:
        return True
    if node.target in RUNNING:
        statistics, flag = (argument(node, name) for name in RUNNING[node.target])
        return statistics is not None and bool(flag)
    return node.is_impure()


def without_dead_code(graph: fx.Graph) -> None:
    """Drop the nodes that nobody reads and that have no effect."""
    graph.eliminate_dead_code(has_effect)


def nests(graph: fx.Graph) -> bool:
    """Whether a graph runs something under `torch.vmap`."""
    return any(node.target in NESTING for node in graph.nodes)


@contextmanager
def nesting_restored() -> Iterator[None]:
    """What fails inside `torch.vmap` leaves it."""
    before = _level()
    try:
        yield
    finally:
        while _level() > before:
            predispatch._vmap_decrement_nesting()


def _level() -> int:
    return torch._C._functorch.maybe_current_level() or 0
