"""What a training tells trackers: TensorBoard by default, others that `accelerate` knows by name."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from accelerate import Accelerator

from sortify.errors import TrainingError
from sortify.training.config import UNLOGGED
from sortify.training.sampling import Levels
from sortify.training.update import Drawn

PROJECT = "sortify"
"""The project that trackers show runs under."""
EVERY = 10
"""Steps whose means are logged together."""


class Log:
    """Means over a few steps: the loss, that of each level (`loss/width=0.5`), the learning rate, samples per second.

    Args:
        name: of a tracker, or "none".
        accelerator: of the run; the main process writes.
        directory: the training's own folder, where TensorBoard's files go (`logs/`); None logs nothing.
        levels: the losses of sizes between them are told with the nearest; none: each size by itself.
        settings: of the training, as JSON values, for trackers that show such; TensorBoard's files go without.

    Raises:
        TrainingError: the tracker's package is not installed.
    """

    def __init__(
        self,
        name: str,
        accelerator: Accelerator,
        directory: Path | None,
        levels: Levels = (),
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._levels, self._all = dict(levels), sorted({level for _, own in levels for level in own})
        self._open = name != UNLOGGED and directory is not None
        self._accelerator = accelerator
        self._values: dict[str, list[float]] = defaultdict(list)
        self._samples, self._since = 0, time.monotonic()
        if self._open:
            accelerator.project_configuration.logging_dir = str(directory)
            accelerator.log_with = [name]
            project, told = ("logs", None) if name == "tensorboard" else (PROJECT, dict(settings))
            try:
                accelerator.init_trackers(project, told)
            except (ImportError, ValueError) as error:
                reason = str(error).splitlines()[0]
                said = f"log '{name}' does not work ({reason}); install its package, or log to 'none'"
                raise TrainingError(said) from error

    def add(self, step: int, loss: float, drawn: Sequence[Drawn], rate: float, samples: int, last: bool) -> None:
        """Take one step.

        Args:
            step: made so far; loss: its mean; drawn: its sub-networks; rate: of learning; samples: seen.
            last: whether the training ends with it.
        """
        if not self._open:
            return
        self._values["loss"].append(loss)
        for each in drawn:
            for name, fraction in each.subnet.fractions:
                level = min(self._levels.get(name, self._all), key=lambda own: abs(own - fraction), default=fraction)
                self._values[f"loss/{name}={level:g}"].append(float(each.loss))
        self._samples += samples
        if step % EVERY == 0 or last:
            seconds = max(1e-9, time.monotonic() - self._since)
            means = {name: fmean(values) for name, values in self._values.items()}
            self._accelerator.log({**means, "lr": rate, "samples per second": self._samples / seconds}, step=step)
            self._values.clear()
            self._samples, self._since = 0, time.monotonic()

    def close(self) -> None:
        """Write what is left."""
        if self._open:
            for tracker in self._accelerator.trackers:
                tracker.finish()
            self._accelerator.trackers = []
            self._open = False
