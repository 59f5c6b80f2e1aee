"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    import sortify
else:
    from .lazy import sortify, torch

Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="Show warnings, and the whole traceback of an error."),
]
Directory = Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of the sorted model.")]
DataText = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="digits, FILE (npz, csv, tsv, jsonl, txt), a folder of pictures, a saved data set, or "
        "package.module:function.",
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="Such as masked-lm, where data and model leave it open, or package.module:function.",
    ),
]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", metavar="DIR", help="Folder of a saved tokenizer; else text is bytes.")
]
SequenceLength = Annotated[
    int | None, typer.Option("--sequence-length", metavar="N", help="Tokens of a sample, if not the model's.")
]
Workers = Annotated[int, typer.Option("--workers", metavar="N", help="Processes that read samples.")]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", help="Samples of a batch.")]
Device = Annotated[str, typer.Option("--device", help="Such as cpu or cuda:1; auto takes a GPU if there is one.")]
Untie = Annotated[
    str,
    typer.Option(
        "--untie",
        metavar="NAMES",
        help="What is drawn axis by axis: kinds, groups or patterns, such as inner or 'encoder.*'.",
        rich_help_panel="What is trained",
    ),
]
Every = Annotated[
    str,
    typer.Option(
        "--every",
        metavar="NAMES",
        help="What is drawn in every size from the lowest level to the highest: such as width.",
        rich_help_panel="What is trained",
    ),
]
Multiple = Annotated[
    int,
    typer.Option(
        "--multiple",
        metavar="N",
        min=1,
        help="Round widths to multiples of N, such as 8.",
        rich_help_panel="What is trained",
    ),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="BUDGET",
        help="0.5, 50%, '2.5M params', '300 MFLOPs', '5 ms', '40 MB'; several hold together.",
    ),
]
Sizes = Annotated[
    str, typer.Option("--sizes", metavar="SIZES", help="Count costs at batch=1,sequence=128, not the example's sizes.")
]
SORTED = Path("sorted")

Levels = int | dict[str, int | tuple[float, ...]]


READING = ("batch_size", "seed", "augment", "tokenizer", "sequence_length", "workers", "task")
"""Options of commands that say how data is read, by the names that `sortify.load_data` has for them."""


def require_data(options: Mapping[str, Any]) -> None:
    """For a command that cannot do without data: a usage error where nobody named any."""
    if options["data"] is None:
        raise typer.BadParameter("say what to use, such as --data digits, or name it in sortify.toml (data = ...)")


def data_and_task(model: sortify.SortedModel, options: Mapping[str, Any]) -> tuple[sortify.Data, Any]:
    """The data that a command's options name, fitted to a model, and the task.

    Args:
        model: a sorted model.
        options: of the command, by the names of its parameters; those in `READING` count.
    """
    reading = {name: options[name] for name in READING if name in options}
    loaded = sortify.load_data(options["data"], model=model, **reading)
    return loaded, sortify.task_for(loaded, model, options["task"])


def parse_levels(text: str, option: str) -> Levels:
    """Read `4`, `width=4,depth=2` or `width=0.25,0.5,1,layers.*.inner=0.5,1`: numbers of levels, or the fractions.

    Args:
        text: as the user gives it; after `name=`, a whole number by itself counts levels.
        option: its name, for errors.
    """
    groups: dict[str, list[str]] = {}
    for part in text.replace(" ", "").split(","):
        name, equals, value = part.rpartition("=")
        if equals and (not name or name in groups):
            raise typer.BadParameter(f"'{text}': name every group once", param_hint=option)
        if not equals:
            name = next(reversed(groups), "")
        groups.setdefault(name, []).append(value)
    read = {name: _level(values, text, option) for name, values in groups.items()}
    if list(read) == [""] and isinstance(read[""], int):
        return read[""]
    if "" in read:
        raise typer.BadParameter(f"'{text}': say whose levels, as in width=0.5,1", param_hint=option)
    return read


def _level(values: list[str], text: str, option: str) -> int | tuple[float, ...]:
    if len(values) == 1 and values[0].isdecimal():
        return int(values[0])
    try:
        return tuple(float(value) for value in values)
    except ValueError:
        raise typer.BadParameter(
            f"'{text}': expected numbers of levels (width=4,depth=2) or fractions (width=0.25,0.5,1)",
            param_hint=option,
        ) from None


def parse_sizes(text: str) -> dict[str, int]:
    """Read `batch=1,sequence=128`."""
    found = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, value = part.partition("=")
        if not name or not value.isdecimal():
            raise typer.BadParameter(f"'{text}': expected sizes such as batch=1,sequence=128", param_hint="--sizes")
        found[name] = int(value)
    return found


def read_device(name: str) -> Any:
    """A device by its name; `auto` is a GPU where there is one, and of several processes each takes its own."""
    if name == "auto":
        place = os.environ.get("LOCAL_RANK")
        gpu = "cuda" if place is None else f"cuda:{int(place) % max(1, torch.cuda.device_count())}"
        return torch.device(gpu if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise typer.BadParameter(f"'{name}' is no device; expected auto, cpu or cuda", param_hint="--device") from None


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """Read `width,depth`; None stays None, and `none` is no name at all."""
    if text is None:
        return None
    names = tuple(name for name in text.replace(" ", "").split(",") if name)
    return () if names == ("none",) else names


def given(**fractions: float | None) -> Mapping[str, float]:
    """The fractions that the user gave."""
    return {name: value for name, value in fractions.items() if value is not None}
