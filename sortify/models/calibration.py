"""Batch-norm statistics: those of one sub-network, or the full network's for all.

Running statistics belong to the sub-network that made them. They are measured with the eval graph (dropout off)
whose batch-norms use, and hand out, the statistics of the batch; the mean over batches is what stays. Frozen norms
take the full network's, which no sub-network changes.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch

from sortify.errors import DataError, InputError
from sortify.models import checkpoint
from sortify.models.scope import ACTIVE, Scope
from sortify.network import norms
from sortify.network.blueprint import Blueprint
from sortify.network.extract import cut_tensors
from sortify.network.network import GraphModule, Runner, running_statistics
from sortify.rewriting.rewrite import rewrite
from sortify.space.space import Space, Subnet

_KEEPING = threading.Lock()
"""Held for as long as it takes to keep the statistics of one more sub-network beside those of the others."""


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


class Calibrated(GraphModule):
    """The part of a sorted model that keeps the batch-norm statistics of its sub-networks.

    States of the statistics of a sub-network: none of its own (it runs with its share of the full network's); measured.
    Norms may be frozen: then all run with their share of the full network's, in training too.

    Threads may run the model while another one measures or forgets: what is known is replaced as a whole, and a call
    looks at it once.

    Attributes:
        blueprint: everything about the model but the tensors.
    """

    blueprint: Blueprint
    _active: Subnet
    _scope: Scope
    _statistics: Mapping[Subnet, Mapping[str, torch.Tensor]]

    @property
    def active(self) -> Subnet:
        """The sub-network that runs, in this thread or task."""
        found: Subnet = self._scope.get(ACTIVE, (self._active, None))[0]
        return found

    @property
    def space(self) -> Space:
        """The sub-networks of this model."""
        return self.blueprint.space

    @property
    def statistics(self) -> Mapping[Subnet, Mapping[str, torch.Tensor]]:
        """Recalibrated batch-norm statistics by sub-network."""
        return MappingProxyType(self._statistics)

    def _statistics_of(self, subnet: Subnet) -> Mapping[str, torch.Tensor]:
        """Those of one sub-network; of a part, those that it has in the whole that is running."""
        running, given = self._scope.get(ACTIVE, (None, None))
        return given if given is not None and running == subnet else self._statistics.get(subnet, {})

    @property
    def has_batch_statistics(self) -> bool:
        """Whether the model keeps running statistics, each of which belongs to one sub-network."""
        return not self.norms_frozen and bool(statistics_of(self.blueprint))

    def is_calibrated(self, subnet: Subnet | None = None) -> bool:
        """Whether a sub-network (the active one by default) runs with statistics that are its own.

        So do all where norms are frozen or keep no statistics, and the full network until it is trained with others.
        """
        subnet = self.active if subnet is None else subnet
        own = bool(self._statistics_of(subnet)) or (subnet == self.space.full and self.space.trained is None)
        return own or not self.has_batch_statistics

    def recalibrate(self, loader: Iterable[Any], batches: int = 20) -> None:
        """Measure the batch-norm statistics of the active sub-network; kept, and saved, until weights change.

        Nothing is done where norms are frozen.

        Args:
            loader: batches of model inputs (a tensor, a tuple of positional or a dict of keyword inputs), or
                pairs of (inputs, target), of which the target is left out.
            batches: how many to use; their statistics are averaged (US-Nets, arXiv 1903.05134, section 3.3).
        """
        if self.has_batch_statistics:
            subnet = self.active
            self._keep_statistics(subnet, measure(self, subnet, loader, batches))

    def _keep_statistics(self, subnet: Subnet, own: Mapping[str, torch.Tensor]) -> None:
        with _KEEPING:
            self._statistics = {**self._statistics, subnet: own}

    def take_statistics(self, found: Mapping[Subnet, Mapping[str, torch.Tensor]]) -> None:
        """Take statistics that were measured before, in place of those that are known."""
        self._statistics = {subnet: dict(own) for subnet, own in found.items()}

    def save_statistics(self, path: str | Path) -> None:
        """Write the batch-norm statistics into a folder that `save` wrote with these very weights; all else stays.

        Raises:
            CheckpointError: the folder holds other weights, or cannot be read or written.
        """
        checkpoint.save_statistics(path, self.tensors, self._statistics)

    def forget_statistics(self) -> None:
        """Drop all recalibrated statistics: the weights that they were measured with are gone."""
        self._statistics = {}

    @property
    def norms_frozen(self) -> bool:
        """Whether all sub-networks normalise by the full network's running statistics, see `freeze_norms`."""
        return self.blueprint.norms_frozen

    def freeze_norms(self, frozen: bool = True) -> None:
        """Let batch-norms use the running statistics of the full network, as they are now, for every sub-network.

        They do so in training too, which no longer changes the statistics. For weights that were trained before, and
        batches too small to normalise by. What was recalibrated is forgotten; `save` and `extract` keep the choice.

        Args:
            frozen: False lets each sub-network have its own statistics again, as at first.

        Raises:
            CaptureError: a norm cannot be told to.
        """
        if frozen != self.norms_frozen:
            self.blueprint = self.blueprint.with_frozen_norms(frozen)
            self.forget_statistics()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module; recalibrated statistics are forgotten."""
        self.forget_statistics()
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Moves to a device or dtype take recalibrated statistics along."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        known = self._statistics.items()
        self._statistics = {subnet: {name: fn(tensor) for name, tensor in own.items()} for subnet, own in known}
        return self

    def _warn_uncalibrated(self, subnet: Subnet, level: int = 3) -> None:
        """Say that a sub-network of trained weights runs with statistics that are not its own.

        Args:
            subnet: which; level: how many calls away the one is that the warning is for.
        """
        if self.space.trained is not None and not self.is_calibrated(subnet):
            warnings.warn(
                f"the batch-norm statistics are not those of {subnet}, nobody measured them: "
                f"activate it and call model.recalibrate(loader), or its accuracy may be that of chance",
                stacklevel=level,
            )


def statistics_of(blueprint: Blueprint) -> list[str]:
    """The names of the running statistics that the eval graph uses."""
    return running_statistics(blueprint.programs["eval"])


@lru_cache(maxsize=4)
def _measuring_runner(blueprint: Blueprint) -> Runner:
    """The eval graph whose batch-norms normalise by the batch and write its statistics out whole."""
    changed = norms.measuring(blueprint.programs["eval"])
    graph = rewrite(changed, blueprint.plan, "eval", blueprint.infos)
    return Runner(graph, changed.tensors, changed.outputs)


def measure(model: Calibrated, subnet: Subnet, loader: Iterable[Any], batches: int) -> dict[str, torch.Tensor]:
    """The statistics of a sub-network, of its own sizes: means over `batches` batches.

    Raises:
        DataError: the loader yields nothing.
    """
    runner = _measuring_runner(model.blueprint)
    names = statistics_of(model.blueprint)
    own = cut_tensors(model.blueprint.plan, {name: model.tensors[name] for name in names}, subnet)
    sums = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    count = 0
    for batch in loader:
        fresh = {name: tensor.clone() for name, tensor in own.items()}
        with torch.no_grad():
            runner((subnet.values,), Overlay(model.tensors, fresh), bind_batch(model, batch))
        for name in names:
            sums[name] += fresh[name]
        count += 1
        if count == batches:
            break
    if not count:
        raise DataError("recalibrate: the loader yields no batch")
    return {name: total / count for name, total in sums.items()}


def bind_batch(model: Calibrated, batch: Any) -> list[torch.Tensor]:
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
