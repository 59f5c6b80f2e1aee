"""`sortify train`: all sub-networks at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    SORTED,
    BatchSize,
    DataText,
    Device,
    Directory,
    Every,
    Multiple,
    SequenceLength,
    TaskName,
    Tokenizer,
    Untie,
    Verbose,
    Workers,
    data_and_task,
    parse_levels,
    parse_names,
    require_data,
)
from .show import say

if TYPE_CHECKING:
    import sortify
else:
    from .lazy import sortify


def _option(names: str | tuple[str, ...], help: str, panel: str, count: bool = False) -> Any:
    names = (names,) if isinstance(names, str) else names
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar="N" if count else None)


WHAT, HOW, DATA, KEEP = "What is trained", "How", "Data", "Checkpoints"

Dims = Annotated[str | None, _option("--dims", "Groups, such as width,depth; all by default; none: full only.", WHAT)]
LevelText = Annotated[str, _option("--levels", "Levels: 4, or width=4,depth=2, or width=0.25,0.5,1.", WHAT)]
Sampler = Annotated[
    str,
    _option(
        "--sampler",
        "Which sub-networks a step trains: random, sandwich, stratified, weighted, by-cost, by-loss, round-robin, "
        "progressive or bounded.",
        WHAT,
    ),
]
Accumulate = Annotated[
    str | None, _option("--accumulate", "How many: 4, 1,2,4 in turn, or adaptive; by default the sampler's own.", WHAT)
]
Project = Annotated[bool, _option("--project", "Take conflicts between their gradients out.", WHAT)]
ShareBatch = Annotated[
    bool | None,
    _option("--share-batch/--no-share-batch", "Whether they see the same batch; the sandwich's do.", WHAT),
]
Objective = Annotated[
    str,
    _option("--objective", "What they learn from: task, distill (the largest teaches), chain, features or sum.", WHAT),
]
Teacher = Annotated[float, _option("--teacher", "Share of the teacher in the loss of those that have one.", WHAT)]
FeatureWeight = Annotated[float, _option("--features", "Weight of hidden features, in the objective so called.", WHAT)]
Epochs = Annotated[int, _option("--epochs", "Passes over the training data.", HOW, True)]
Steps = Annotated[int | None, _option("--steps", "Optimiser steps, instead of epochs.", HOW, True)]
Optimizer = Annotated[str, _option("--optimizer", "adamw or sgd.", HOW)]
Rate = Annotated[float, _option("--lr", "Largest learning rate.", HOW)]
WeightDecay = Annotated[float, _option("--weight-decay", "Of weights, not of norms and biases.", HOW)]
Momentum = Annotated[float, _option("--momentum", "Of sgd.", HOW)]
Schedule = Annotated[str, _option("--schedule", "Of the learning rate: cosine, linear or constant.", HOW)]
Warmup = Annotated[float, _option("--warmup", "Share of the steps in which the learning rate rises.", HOW)]
Clip = Annotated[float, _option("--clip", "Largest norm of the gradient; 0: no limit.", HOW)]
Norms = Annotated[
    str | None,
    _option("--norms", "own: each has batch-norm statistics of its own; frozen: all use the full model's of now.", HOW),
]
Precision = Annotated[str, _option("--precision", "no (float32), bf16, fp16, or auto.", HOW)]
Ema = Annotated[float | None, _option("--ema", "End with a moving average of the weights, such as 0.999.", HOW)]
Recompute = Annotated[
    bool, _option("--gradient-checkpointing", "Compute activations of blocks again: less memory, more time.", HOW)
]
Compile = Annotated[bool, _option("--compile", "Run through torch.compile: two graphs for each choice of blocks.", HOW)]
Shard = Annotated[bool, _option("--shard", "Shard weights and optimiser over processes (FSDP2).", HOW)]
Offload = Annotated[bool, _option("--offload", "Keep shards in the processor's memory.", HOW)]
LogTo = Annotated[
    str, _option(("--log", "--tracker"), "tensorboard, another tracker that accelerate knows, or none.", KEEP)
]
Seed = Annotated[int, _option("--seed", "Of everything that is drawn.", HOW)]
Augment = Annotated[str, _option("--augment", "Of training pictures: none, shift or shift-flip.", DATA)]
Recalibrate = Annotated[
    int, _option("--recalibrate", "Batches for batch-norm statistics at the end; 0: none.", DATA, True)
]
Resume = Annotated[bool, _option("--resume", "Go on where a training stopped.", KEEP)]
Overwrite = Annotated[bool, _option("--overwrite", "Start anew over a training that stopped.", KEEP)]
SaveSteps = Annotated[int | None, _option("--save-steps", "Steps between two checkpoints.", KEEP, True)]
SaveMinutes = Annotated[float, _option("--save-minutes", "Minutes between two checkpoints; 0: no limit.", KEEP)]


def run(
    dir: Directory = SORTED,
    data: DataText = None,
    task: TaskName = None,
    dims: Dims = None,
    levels: LevelText = "4",
    untied: Untie = "",
    multiple: Multiple = 1,
    every: Every = "",
    sampler: Sampler = "random",
    accumulate: Accumulate = None,
    project: Project = False,
    share_batch: ShareBatch = None,
    objective: Objective = "task",
    teacher: Teacher = 0.5,
    features: FeatureWeight = 0.1,
    epochs: Epochs = 10,
    steps: Steps = None,
    optimizer: Optimizer = "adamw",
    lr: Rate = 1e-3,
    weight_decay: WeightDecay = 0.01,
    momentum: Momentum = 0.9,
    schedule: Schedule = "cosine",
    warmup: Warmup = 0.05,
    clip: Clip = 1.0,
    norms: Norms = None,
    precision: Precision = "auto",
    ema: Ema = None,
    gradient_checkpointing: Recompute = False,
    compile: Compile = False,
    shard: Shard = False,
    offload: Offload = False,
    seed: Seed = 0,
    device: Device = "auto",
    batch_size: BatchSize = 64,
    augment: Augment = "none",
    tokenizer: Tokenizer = None,
    sequence_length: SequenceLength = None,
    workers: Workers = 0,
    recalibrate: Recalibrate = 20,
    resume: Resume = False,
    overwrite: Overwrite = False,
    save_steps: SaveSteps = None,
    save_minutes: SaveMinutes = 10.0,
    log: LogTo = "tensorboard",
    verbose: Verbose = False,
) -> None:
    """Train all sub-networks of a sorted model at once (SortedNet, arXiv 2309.00255)."""
    _train(dir, locals())


def _train(dir: Path, options: Mapping[str, Any]) -> None:
    """Train with options by name, and say what came of it."""
    config = _config(options)
    require_data(options)
    model = sortify.load(dir)
    loaded, task = data_and_task(model, options)
    trainer = sortify.Trainer(model, loaded, config, task=task, directory=dir, progress=True)
    say(f"{dir}: {trainer.task.name} on {loaded.description}")
    result = trainer.run(resume=options["resume"], overwrite=options["overwrite"])
    if not result.losses:
        say(f"{dir}: this training came to its end before, after {result.steps} steps; nothing to do")
        return
    what = sortify.describe.trained_text(model)
    say(f"trained: {what}; {result.steps} steps, {result.seconds:.0f} s, loss {result.losses[-1]:.4f}")
    say(f"saved: {dir}")


def _config(options: Mapping[str, Any]) -> sortify.TrainConfig:
    """The options that bear the names of a configuration's fields, read where they are text."""
    same = {field.name: options[field.name] for field in fields(sortify.TrainConfig)}
    read = {
        "dims": parse_names(options["dims"]),
        "levels": parse_levels(options["levels"], "--levels"),
        "untied": parse_names(options["untied"]),
        "every": parse_names(options["every"]),
        "accumulate": _counts(options["accumulate"]),
        "clip": options["clip"] or None,
        "save_minutes": options["save_minutes"] or None,
    }
    return sortify.TrainConfig(**{**same, **read})


def _counts(text: str | None) -> int | tuple[int, ...] | str | None:
    """Read `4`, `1,2,4` or `adaptive`."""
    if text is None or text == "adaptive":
        return text
    parts = text.replace(" ", "").split(",")
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"'{text}': expected 4, 1,2,4 or adaptive", param_hint="--accumulate")
    numbers = tuple(int(part) for part in parts)
    return numbers if len(numbers) > 1 else numbers[0]
