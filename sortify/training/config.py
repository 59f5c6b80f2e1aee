"""How to train: one frozen value, checked when it is made, kept with the training state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from sortify.errors import TrainingError
from sortify.training.accumulation import ADAPTIVE, Counts, check_counts
from sortify.training.objectives import OBJECTIVES
from sortify.training.samplers import SAMPLERS

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "linear", "constant")
NORMS = ("own", "frozen")
PRECISIONS = ("auto", "no", "bf16", "fp16")
UNLOGGED = "none"
TRACKERS = (UNLOGGED, *sorted(LOGGER_TYPE_TO_CLASS))
FREE_TO_CHANGE = ("save_steps", "save_minutes", "device", "log", "gradient_checkpointing")
"""Fields that a resumed run may set anew: they do not touch the numbers."""

LevelSpec = int | Mapping[str, int | tuple[float, ...]]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        dims: groups to train ("width", "heads", "depth"); None for all that the model has, () for the full model alone.
        levels: evenly spaced levels per group, or levels per group by name; see `training.samplers.levels_for`.
        untied: kinds, groups or patterns of axes that are drawn one by one, such as ("inner",).
        multiple: widths are rounded to multiples of this number of units.
        every: kinds, groups or patterns of axes of which every size from the lowest level to the highest is drawn, such
            as ("width",); the levels are then what is measured afterwards.
        sampler: which sub-networks a step trains, a name in `sortify.SAMPLERS`: "random" (SortedNet), "sandwich" ...
        accumulate: sub-networks per optimiser step (g_acc); several numbers, such as (1, 2, 4), for equal parts of the
            training; "adaptive" for as many as the disagreement of gradients asks for (8 at most); None for the
            sampler's usual number (1, or 4).
        project: whether conflicts between the gradients of a step are taken out; costs memory for one more set.
        share_batch: whether all sub-networks of a step see the same mini-batch, or each the next one; None for the
            sampler's way (the sandwich shares, so that its members differ in nothing but size).
        objective: what a sub-network learns from, a name in `sortify.OBJECTIVES`: "task", "distill" (the largest of the
            step teaches the others), "chain" (each the next smaller), "features" (as distill, hidden features too) or
            "sum" (all nested in what was drawn run too).
        teacher: the teacher's share in the loss of a sub-network that has one; the rest is the task's loss.
        features: weight of the distance between hidden features, where the objective compares them; it comes on top.
        epochs: passes over the training data, where `steps` is None.
        steps: optimiser steps.
        optimizer: "adamw" or "sgd" (Nesterov, `momentum`).
        lr: largest learning rate.
        weight_decay: of weights with two dimensions or more; norms and biases have none.
        momentum: of sgd.
        schedule: of the learning rate after the warm-up: "cosine" or "linear" down to 0, or "constant".
        warmup: share of the steps in which the learning rate rises from 0.
        clip: largest norm of the gradient; None for no limit.
        precision: "no" (float32), "bf16", "fp16", or "auto" for what `accelerate launch` says, else "no".
        norms: what batch-norms normalise by: "own" (each sub-network has its own statistics: those of its batch while
            it trains, measured at the end), "frozen" (all use those of the full network when training begins, which
            stay), or None for what the model says, see `SortedModel.freeze_norms`.
        recalibrate: training batches for the batch-norm statistics of every trained sub-network at the end; 0 for none.
        seed: of everything that is drawn.
        save_steps: steps between two checkpoints.
        save_minutes: minutes between two checkpoints; with neither there are none.
        ema: weight of the past (such as 0.999) in an exponential moving average of the weights, which the training ends
            with; None for the last weights themselves.
        gradient_checkpointing: whether blocks compute their activations again in the backward pass, to save memory.
        compile: whether sub-networks run through `torch.compile`: two graphs for each choice of blocks, see
            `SortedModel.compile`.
        shard: whether FSDP2 shards parameters, gradients and optimiser states over the processes of a run.
        offload: whether shards wait in the processor's memory.
        log: the tracker, a name that `accelerate` knows ("tensorboard", "wandb", ...), or "none"; TensorBoard's files
            go to directory/training/logs.
        device: such as "cpu" or "cuda:1"; "auto" for what `accelerate` finds.
    """

    dims: tuple[str, ...] | None = None
    levels: LevelSpec = 4
    untied: tuple[str, ...] = ()
    multiple: int = 1
    every: tuple[str, ...] = ()
    sampler: str = "random"
    accumulate: Counts = None
    project: bool = False
    share_batch: bool | None = None
    objective: str = "task"
    teacher: float = 0.5
    features: float = 0.1
    epochs: int = 10
    steps: int | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.05
    clip: float | None = 1.0
    precision: str = "auto"
    norms: str | None = None
    recalibrate: int = 20
    seed: int = 0
    save_steps: int | None = None
    save_minutes: float | None = 10.0
    ema: float | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    shard: bool = False
    offload: bool = False
    log: str = "tensorboard"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, known in (
            ("sampler", tuple(SAMPLERS)),
            ("objective", tuple(OBJECTIVES)),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("log", TRACKERS),
        ):
            if getattr(self, name) not in known:
                raise TrainingError(f"unknown {name} '{getattr(self, name)}'; there are {', '.join(known)}")
        if self.norms not in (None, *NORMS):
            raise TrainingError(f"unknown norms '{self.norms}'; there are {', '.join(NORMS)}")
        for name in ("multiple", "epochs", "steps", "lr", "clip", "save_steps", "save_minutes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise TrainingError(f"{name} must be above 0, got {value}")
        if not (math.isfinite(self.features) and self.features >= 0):
            raise TrainingError(f"features must be 0 or more, got {self.features}")
        for name in ("weight_decay", "momentum", "warmup"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise TrainingError(f"{name} must be 0 or more and below 1, got {value}")
        check_counts(self.accumulate)
        together = {"ema": self.ema, "project": self.project, "accumulate": self.accumulate == ADAPTIVE}
        clash = [name for name, wanted in together.items() if wanted] + (["fp16"] if self.precision == "fp16" else [])
        if self.shard and clash:
            raise TrainingError(f"shard does not go together with {', '.join(clash)}, which need whole gradients")
        whole = {"shard": self.shard, "gradient_checkpointing": self.gradient_checkpointing}
        if self.compile and any(whole.values()):
            names = ", ".join(name for name, wanted in whole.items() if wanted)
            raise TrainingError(f"compile does not go together with {names}")
        if self.offload and not self.shard:
            raise TrainingError("offload is for sharded training: set shard too")
        if self.ema is not None and not 0 < self.ema < 1:
            raise TrainingError(f"ema must be above 0 and below 1, got {self.ema}")
        if not 0 <= self.teacher <= 1:
            raise TrainingError(f"teacher must be from 0 to 1, got {self.teacher}")
        if self.share_batch is False and OBJECTIVES[self.objective].shares_batch:
            raise TrainingError(f"objective '{self.objective}' compares sub-networks on one batch: share it")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        found = asdict(self)
        found["dims"] = None if self.dims is None else list(self.dims)
        found |= {"untied": list(self.untied), "every": list(self.every)}
        if isinstance(self.accumulate, tuple):
            found["accumulate"] = list(self.accumulate)
        if isinstance(self.levels, Mapping):
            found["levels"] = {name: v if isinstance(v, int) else list(v) for name, v in self.levels.items()}
        return found

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TrainConfig:
        """Make a configuration from JSON values.

        Raises:
            TrainingError: a name is unknown, or a value is not allowed.
        """
        unknown = set(stored) - {field.name for field in fields(cls)}
        if unknown:
            raise TrainingError(f"unknown training option '{min(unknown)}'")
        values = dict(stored)
        if values.get("dims") is not None:
            values["dims"] = tuple(values["dims"])
        values |= {name: tuple(values.get(name, ())) for name in ("untied", "every")}
        if isinstance(values.get("accumulate"), list):
            values["accumulate"] = tuple(values["accumulate"])
        if isinstance(values.get("levels"), Mapping):
            values["levels"] = {k: v if isinstance(v, int) else tuple(v) for k, v in values["levels"].items()}
        return cls(**values)

    def differs_from(self, other: TrainConfig) -> list[str]:
        """Return the names of fields that change the numbers and are not alike."""
        names = [field.name for field in fields(self) if field.name not in FREE_TO_CHANGE]
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of optimiser step `step` (from 0) out of `total`."""
        warm = round(self.warmup * total)
        if step < warm:
            return self.lr * (step + 1) / (warm + 1)
        done = (step - warm) / max(1, total - warm)
        left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
        return self.lr * left[self.schedule]
