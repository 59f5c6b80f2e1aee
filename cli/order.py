"""`sortify order`: the most important units first, so that small sub-networks keep them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    data_and_task,
    read_device,
    require_data,
)
from .show import counted, progress_bar, say, show, table, warn

if TYPE_CHECKING:
    import sortify
else:
    from .lazy import sortify


def run(
    dir: Directory = SORTED,
    by: Annotated[str, typer.Option("--by", help="magnitude (without data), activation or taylor.")] = "magnitude",
    data: DataText = None,
    task: TaskName = None,
    batches: Annotated[int, typer.Option("--batches", metavar="N", min=1, help="Training batches to measure on.")] = 20,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="Rank blocks as well: small depths give up the least important ones.")
    ] = False,
    batch_size: BatchSize = 64,
    tokenizer: Tokenizer = None,
    sequence_length: SequenceLength = None,
    device: Device = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Order a model that has been trained: its sub-networks become others.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Sort the units of every axis by importance; the full network computes the same, which is checked."""
    options = locals()
    model = sortify.load(dir)
    if not overwrite and (model.space.trained is not None or (dir / "training").exists()):
        raise typer.BadParameter(
            f"{dir} holds a model in training or trained: its sub-networks keep the first units, and ordering makes "
            "these others; order before training, or say --overwrite"
        )
    with progress_bar() as bar:
        line = bar.add_task(by, total=batches)
        given: dict[str, Any] = {"progress": lambda done, of: bar.update(line, completed=done, total=of)}
        if by != "magnitude":
            given |= _measured_on(model, options)
            model.to(read_device(device))
        done = model.order(by, batches=batches, blocks=blocks, **given)
    model.to("cpu").save(dir)
    _report(model, done)
    say(f"saved: {dir}")


def _measured_on(model: sortify.SortedModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """Batches of training data with their targets, and the loss of the task."""
    require_data(options)
    loaded, task = data_and_task(model, options)

    def pairs() -> Iterator[Any]:
        for batch in loaded.train:
            inputs, target = task.split(batch)
            yield inputs.to_model(), target

    return {"data": pairs(), "loss": task.loss}


def _report(model: sortify.SortedModel, done: Any) -> None:
    """How many units moved, which axes stayed, the order of the blocks."""
    made = table("axes", "number", "units", "moved", right=("number", "units", "moved"), title=f"ordered by {done.by}")
    kinds = dict.fromkeys(model.axes[name].kind for name in done.orders)
    for kind in kinds:
        own = {name: places for name, places in done.orders.items() if model.axes[name].kind == kind}
        moved = sum(place != number for places in own.values() for number, place in enumerate(places))
        made.add_row(kind, str(len(own)), str(sum(map(len, own.values()))), str(moved))
    show(made)
    for chain, names in done.blocks.items():
        if len(names) > 1:
            say(f"{chain}: the first of these stay: {', '.join(names)}")
    for chain, why in done.left_blocks.items():
        warn(f"{chain}: {why}")
    if done.left:
        warn(f"{counted(len(done.left), 'axis', 'axes')} without a score stay as they were: {', '.join(done.left[:5])}")
    say(f"check: outputs of the full network differ by {done.error:.1e}, allowed {done.tolerance:.0e}")
