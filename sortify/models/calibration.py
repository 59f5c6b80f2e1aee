"""Batch-norm statistics of one sub-network.

Running statistics belong to the sub-network that made them. They are measured with the eval graph (dropout off)
whose batch-norms use, and hand out, the statistics of the batch; the mean over batches is what stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from sortify.axes.rules.table import position_of
from sortify.capture.lifting import Program
from sortify.errors import DataError, InputError
from sortify.network.blueprint import Blueprint
from sortify.network.extract import cut_tensors
from sortify.network.network import STATISTICS, Runner, running_statistics
from sortify.rewriting.rewrite import rewrite

if TYPE_CHECKING:
    from sortify.models.sorted_model import SortedModel


class Overlay(Mapping[str, torch.Tensor]):
    """Tensors of which some are replaced."""

    def __init__(self, base: Mapping[str, torch.Tensor], replaced: Mapping[str, torch.Tensor]) -> None:
        self._base, self._replaced = base, replaced

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._replaced[name] if name in self._replaced else self._base[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def _normalises_batches(node: fx.Node) -> bool:
    """Whether an op keeps running statistics and can be told to use the batch's."""
    schema = getattr(node.target, "_schema", None)
    names = {a.name for a in schema.arguments} if schema is not None else set()
    return {*STATISTICS, "training", "momentum"} <= names


def statistics_of(blueprint: Blueprint) -> list[str]:
    """The names of the running statistics that the eval graph uses."""
    return running_statistics(blueprint.programs["eval"])


@lru_cache(maxsize=4)
def _measuring_runner(blueprint: Blueprint) -> Runner:
    """The eval graph whose batch-norms normalise by the batch and write its statistics out whole."""
    program = blueprint.programs["eval"]
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    for node in graph.nodes:
        if node.op == "call_function" and _normalises_batches(node):
            for argument, value in (("training", True), ("momentum", 1.0)):
                place = position_of(node, argument)
                node.update_arg(place, value) if isinstance(place, int) else node.update_kwarg(place, value)
    changed = Program(graph, program.tensors, program.outputs)
    return Runner(rewrite(changed, blueprint.plan, "eval", blueprint.infos), program.tensors, program.outputs)


def measure(model: SortedModel, loader: Iterable[Any], batches: int) -> dict[str, torch.Tensor]:
    """The statistics of the active sub-network, of its own sizes: means over `batches` batches.

    Raises:
        DataError: the loader yields nothing.
    """
    runner = _measuring_runner(model.blueprint)
    names = statistics_of(model.blueprint)
    own = cut_tensors(model.plan, {name: model.tensors[name] for name in names}, model.active)
    sums = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    count = 0
    for batch in loader:
        fresh = {name: tensor.clone() for name, tensor in own.items()}
        with torch.no_grad():
            runner((model.active.values,), Overlay(model.tensors, fresh), bind_batch(model, batch))
        for name in names:
            sums[name] += fresh[name]
        count += 1
        if count == batches:
            break
    if not count:
        raise DataError("recalibrate: the loader yields no batch")
    return {name: total / count for name, total in sums.items()}


def bind_batch(model: SortedModel, batch: Any) -> list[torch.Tensor]:
    """The input tensors of a batch that may come with a target, on the model's device."""
    device = next(iter(model.tensors.values())).device
    batch = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), batch)
    candidates: list[Any] = [batch]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        candidates.insert(0, batch[0])
    failure: InputError | None = None
    for inputs in candidates:
        args = () if isinstance(inputs, Mapping) else tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
        known = {name for name in inputs if name in model.signature.names} if isinstance(inputs, Mapping) else set()
        try:
            return model.signature.bind(args, {name: inputs[name] for name in known})
        except InputError as error:
            failure = failure or error
    assert failure is not None
    raise failure
