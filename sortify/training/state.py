"""What an interrupted training needs to go on: DIR/training/.

    state.pt        weights, optimiser, place in the data, configuration; replaced as a whole
    logs/           TensorBoard's files, unless nothing is logged
    history.jsonl   one line per optimiser step
    status.json     whether the training came to its end

No generator states: everything drawn is a function of the seed and the place (see `sortify.data.batches`).
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sortify.data.batches import Place
from sortify.errors import TrainingError
from sortify.files import replacing
from sortify.training.config import TrainConfig

FORMAT = 1


@dataclass(frozen=True)
class State:
    """A moment between two optimiser steps.

    Attributes:
        step: optimiser steps made.
        place: the next batch.
        config: of the run.
        data: facts about the data that must not change: batch size, batches per epoch.
        model, optimizer, scaler: state dicts.
        drawing: what samplers and numbers of draws have learnt.
        average: the moving average of the weights, where one is kept.
    """

    step: int
    place: Place
    config: TrainConfig
    data: Mapping[str, Any]
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    drawing: Mapping[str, Any] = field(default_factory=dict)
    average: Mapping[str, Any] = field(default_factory=dict)


class StateFolder:
    """DIR/training/.

    States: empty; unfinished (a state file); finished (a status, no state file).
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "training"
        self._state = self.path / "state.pt"
        self._status = self.path / "status.json"
        self._history = self.path / "history.jsonl"
        self._lines: list[str] = []

    @property
    def unfinished(self) -> bool:
        """Whether an interrupted training stands here."""
        return self._state.exists()

    @property
    def finished(self) -> Mapping[str, Any] | None:
        """Status of a training that came to its end, if one did."""
        if self.unfinished or not self._status.exists():
            return None
        try:
            status: Mapping[str, Any] = json.loads(self._status.read_text())
        except (OSError, ValueError):
            return None
        return status

    def clear(self) -> None:
        """Remove whatever an earlier training left."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)

    def save(self, state: State) -> None:
        """Write a checkpoint; the one before stays until this one is complete.

        Raises:
            TrainingError: the disk refuses.
        """
        stored = {
            "format": FORMAT,
            "step": state.step,
            "place": [state.place.epoch, state.place.batch],
            "config": json.dumps(state.config.to_json()),
            "data": dict(state.data),
            "model": dict(state.model),
            "optimizer": dict(state.optimizer),
            "scaler": dict(state.scaler),
            "drawing": dict(state.drawing),
            "average": dict(state.average),
        }
        try:
            self.flush()
            archive = io.BytesIO()  # torch's own writer ends the process when the disk is full
            torch.save(stored, archive)
            with replacing(self._state) as draft:
                draft.write_bytes(archive.getbuffer())
        except (OSError, RuntimeError) as error:
            raise TrainingError(f"{self._state}: the checkpoint cannot be written ({_reason(error)})") from error

    def load(self) -> State:
        """Read the checkpoint, and cut the history to what came before it.

        Raises:
            TrainingError: there is none, or it is damaged.
        """
        if not self.unfinished:
            raise TrainingError(f"{self.path}: no interrupted training to resume")
        try:
            stored = torch.load(self._state, map_location="cpu", weights_only=True)
            if stored["format"] != FORMAT:
                raise TrainingError(f"{self._state}: format {stored['format']} is unknown; this version reads {FORMAT}")
            state = State(
                step=stored["step"],
                place=Place(*stored["place"]),
                config=TrainConfig.from_json(json.loads(stored["config"])),
                data=stored["data"],
                model=stored["model"],
                optimizer=stored["optimizer"],
                scaler=stored["scaler"],
                drawing=stored.get("drawing", {}),
                average=stored.get("average", {}),
            )
        except (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise TrainingError(f"{self._state}: the checkpoint is damaged ({_reason(error)})") from error
        return state

    def tidy(self, step: int) -> None:
        """Cut the history to the steps before `step` and remove half-written files of a killed run."""
        for leftover in self.path.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
        kept = [json.dumps(line) for line in self.history() if line["step"] < step]
        with replacing(self._history) as draft:
            draft.write_text("".join(f"{line}\n" for line in kept))

    def record(self, line: Mapping[str, Any]) -> None:
        """Remember one step; written with the next `flush`."""
        self._lines.append(json.dumps(line))

    def flush(self) -> None:
        """Append the remembered steps to the history."""
        if self._lines:
            with self._history.open("a") as file:
                file.writelines(f"{line}\n" for line in self._lines)
            self._lines = []

    def history(self) -> list[dict[str, Any]]:
        """Return the written steps; a half-written last line is left out."""
        if not self._history.exists():
            return []
        lines = []
        for text in self._history.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
        return lines

    def finish(self, status: Mapping[str, Any]) -> None:
        """Mark the training as finished and remove its state."""
        self.flush()
        with replacing(self._status) as draft:
            draft.write_text(json.dumps(status, indent=1))
        self._state.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
