"""`sortify evaluate`: the score of every sub-network, and the front."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    SORTED,
    BatchSize,
    DataText,
    Device,
    Directory,
    SequenceLength,
    TaskName,
    Tokenizer,
    Verbose,
    Workers,
    data_and_task,
    parse_levels,
    read_device,
    require_data,
)
from .show import progress_bar, say, show, speaks, warn

if TYPE_CHECKING:
    import sortify
else:
    from .lazy import sortify


def run(
    dir: Directory = SORTED,
    data: DataText = None,
    task: TaskName = None,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            metavar="LEVELS",
            help="Sub-networks to measure, such as width=4,depth=4 or width=0.5,1; else those that were trained.",
        ),
    ] = None,
    recalibrate: Annotated[
        int, typer.Option("--recalibrate", metavar="N", min=1, help="Training batches for batch-norm statistics.")
    ] = 20,
    batch_size: BatchSize = 64,
    tokenizer: Tokenizer = None,
    sequence_length: SequenceLength = None,
    workers: Workers = 0,
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Measure sub-networks on the test data: a table, and in DIR evaluation.json, evaluation.csv and a picture."""
    options = locals()
    require_data(options)
    model = sortify.load(dir).to(read_device(device))
    members = _members(model, grid)
    loaded, chosen = data_and_task(model, options)
    trained = _trained_task(dir)
    if trained not in (None, chosen.name):
        warn(f"{dir} was trained for {trained} and is measured as {chosen.name}; say --task as in training")
    with progress_bar() as bar:
        line = bar.add_task("", total=len(members))
        found = sortify.evaluate(
            model,
            loaded,
            chosen,
            members,
            recalibrate_batches=recalibrate,
            directory=dir,
            progress=lambda done, _, row: bar.update(line, completed=done, description=str(row.subnet)),
        )
    if not speaks():
        return
    if model.has_batch_statistics:
        model.save_statistics(dir)
    show(found.table())
    picture, _ = sortify.draw(found, dir / "evaluation.png")
    say(f"saved: {dir / 'evaluation.json'}, {dir / 'evaluation.csv'}, {picture}")


def _trained_task(dir: Path) -> str | None:
    """The task that was trained last in a folder, if one was."""
    try:
        name = json.loads((dir / "training" / "status.json").read_text()).get("task")
    except (OSError, ValueError, AttributeError):
        return None
    return name if isinstance(name, str) else None


def _members(model: sortify.SortedModel, grid: str | None) -> list[sortify.Subnet]:
    """The sub-networks to measure."""
    if grid is None:
        return model.space.landmarks()
    levels = parse_levels(grid, "--grid")
    groups = dict.fromkeys(model.space.groups, levels) if isinstance(levels, int) else levels
    members, asked = _grid(model, groups)
    if len(members) < asked:
        warn(
            f"--grid {grid}: {len(members)} different sub-networks, not {asked}: sizes are too small for so many levels"
        )
    return members


def _grid(model: sortify.SortedModel, levels: Mapping[str, Any]) -> tuple[list[sortify.Subnet], int]:
    """The sub-networks of a grid, and how many the numbers of levels ask for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        members = model.space.grid(**levels)
    return members, math.prod(each if isinstance(each, int) else len(each) for each in levels.values())
