"""Parts of a training step: the optimiser, and the mini-batches that a step's draws see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sortify.data.batches import Loader, Stream, length, preserved_chance
from sortify.errors import TrainingError
from sortify.tasks.base import Task
from sortify.tasks.inputs import Inputs
from sortify.training.config import TrainConfig

FUSED_DEVICES = ("cpu", "cuda")
"""Devices on which torch updates all elements of a parameter in one pass."""


class StepBatches:
    """The mini-batches of one optimiser step: one for all draws, or one for each."""

    def __init__(
        self, stream: Stream, task: Task, device: torch.device, accelerator: Accelerator, shared: bool
    ) -> None:
        self._stream, self._task, self._device, self._accelerator = stream, task, device, accelerator
        self._shared = shared
        self._current: tuple[Inputs, Tensor, Tensor] | None = None
        self.taken = 0
        self.samples = 0

    def take(self) -> tuple[Inputs, Tensor, Tensor]:
        """Return inputs and targets on the device, and the number of targets over all processes."""
        self.taken += 1
        if self._current is None or not self._shared:
            self._current = self._next()
        self.samples += length(self._current[1])
        return self._current

    @property
    def current(self) -> tuple[Inputs, Tensor, Tensor]:
        """What was taken last."""
        assert self._current is not None
        return self._current

    def _next(self) -> tuple[Inputs, Tensor, Tensor]:
        batch = self._stream.take()
        inputs, target = self._task.split(batch, self._stream.last_seed)
        target = moved(target, self._device)
        count = self._accelerator.reduce(self._task.count(target), reduction="sum").clamp_min(1)
        on_device = Inputs(moved(inputs.args, self._device), moved(inputs.kwargs, self._device), inputs.names)
        return on_device, target, count


def recalibration_inputs(loader: Loader, task: Task, batches: int, device: torch.device) -> Iterator[Any]:
    """Yield what the model is called with, the same training batches each time, each sample once at most.

    Generators of random numbers stay where they were.
    """
    with preserved_chance():
        stream = Stream(loader, seed=0)
        for _ in range(min(batches, stream.per_epoch or batches)):
            batch = stream.take()
            inputs, _target = task.split(batch, stream.last_seed)
            yield moved(inputs.to_model(), device)


def moved(value: Any, device: torch.device) -> Any:
    """Return a nested value of tuples, lists and dicts with its tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: moved(inner, device) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(moved(inner, device) for inner in value)
    return value


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW or SGD over a model's parameters; those with fewer than two dimensions do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise TrainingError("the model has no parameters to train")
    fused = all(p.is_floating_point() and p.device.type in FUSED_DEVICES for p in parameters)
    if config.optimizer == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def make_average(model: torch.nn.Module, decay: float | None) -> AveragedModel | None:
    """Return an exponential moving average of a model's parameters, which begins with those of now."""
    return None if decay is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def take_average(model: torch.nn.Module, average: AveragedModel) -> None:
    """Give a model the averaged parameters; buffers stay its own."""
    with torch.no_grad():
        for own, mean in zip(model.parameters(), average.module.parameters(), strict=True):
            own.copy_(mean)
