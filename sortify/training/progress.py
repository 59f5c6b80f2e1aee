"""What a training shows while it runs: a bar on a terminal, lines now and then elsewhere, or nothing."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 10.0
SMOOTHING = 0.9
"""Weight of the past in the loss that is shown."""


class Show(Protocol):
    """Something that is told about every step."""

    def __enter__(self) -> Show: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def step(self, step: int, epoch: int, loss: float, samples: int, subnet: str) -> None:
        """Tell that `step` steps are made, the last with this mean loss, so many samples, this sub-network."""
        ...


def make_show(wanted: bool | None, total: int, start: int, console: Console | None = None) -> Show:
    """Choose what to show.

    Args:
        wanted: True for a bar on a terminal and lines elsewhere; None for a bar on a terminal only; False for nothing.
        total: steps of the whole training.
        start: steps made already.
        console: where to; standard error by default.
    """
    console = console or Console(stderr=True)
    if wanted is False or (wanted is None and not console.is_terminal):
        return Nothing()
    return Bar(total, start, console) if console.is_terminal else Lines(total, console)


class Nothing:
    """Shows nothing."""

    def __enter__(self) -> Nothing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def step(self, step: int, epoch: int, loss: float, samples: int, subnet: str) -> None:
        """Do nothing."""


class Meter:
    """Running loss and throughput; waiting before the first step does not count."""

    def __init__(self) -> None:
        self.loss: float | None = None
        self._samples = self._steps = 0
        self._start = time.monotonic()

    def add(self, loss: float, samples: int) -> None:
        """Add one step."""
        self.loss = loss if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        self._samples += samples
        self._steps += 1

    def text(self) -> str:
        """Return `loss 0.1234, 567 samples/s`."""
        rate = self._samples / max(1e-9, time.monotonic() - self._start)
        return f"loss {self.loss or 0.0:.4f}, {rate:,.0f} samples/s"

    def left(self, steps: int) -> str:
        """Return `0:12:34 left` for so many more steps at the pace so far."""
        seconds = (time.monotonic() - self._start) / max(1, self._steps) * steps
        return f"{timedelta(seconds=round(seconds))} left"


class Bar(Nothing):
    """One line that stays in place."""

    def __init__(self, total: int, start: int, console: Console) -> None:
        self._meter = Meter()
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[measured]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[subnet]}"),
            console=console,
        )
        self._task = self._progress.add_task("train", total=total, completed=start, epoch=1, measured="", subnet="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, step: int, epoch: int, loss: float, samples: int, subnet: str) -> None:
        """Move the bar."""
        self._meter.add(loss, samples)
        self._progress.update(self._task, completed=step, epoch=epoch + 1, measured=self._meter.text(), subnet=subnet)


class Lines(Nothing):
    """A plain line every few seconds, and one at the end."""

    def __init__(self, total: int, console: Console) -> None:
        self._meter = Meter()
        self._total = total
        self._console = console
        self._last = time.monotonic()

    def step(self, step: int, epoch: int, loss: float, samples: int, subnet: str) -> None:
        """Write a line when it is time."""
        self._meter.add(loss, samples)
        now = time.monotonic()
        if step < self._total and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        told = f"{self._meter.text()}, {self._meter.left(self._total - step)}, {subnet}"
        line = f"epoch {epoch + 1}, step {step}/{self._total}, {told}"
        self._console.print(line, highlight=False, soft_wrap=True)
