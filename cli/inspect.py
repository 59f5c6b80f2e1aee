"""`sortify inspect`: what is elastic, what is not and why, what it costs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import SORTED, Directory, Verbose
from .show import amount, cost_table, counted, kept_table, say, show, table

if TYPE_CHECKING:
    import sortify
else:
    from .lazy import sortify


SHOWN = 6
"""Blocks of a chain that are told one by one."""


def run(
    dir: Directory = SORTED,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    why: Annotated[
        bool,
        typer.Option("--why", help="Tell of every fixed dimension what made it so, where, and what would free it."),
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="One line for every axis and block, also where many are alike.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Draw costs, and blocks with their elastic widths: FILE.svg or FILE.png."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Show axes, depth, what is fixed and why, costs, and what was trained."""
    model, describe = sortify.load(dir, runnable=False), sortify.describe
    if picture is not None:
        say(f"saved: {sortify.draw_model(model, picture)}")
        return
    if as_json:
        say(json.dumps(facts(model), indent=1))
        return
    if why:
        show(_why(model))
        return
    trained = f"{describe.trained_text(model)}{describe.order_text(model)}"
    say(f"{dir}: from {model.source or 'a module'}; trained: {trained}")
    show(_axes(model, every))
    if model.chains:
        show(_chains(model, every))
    ends = describe.ends(model)
    show(cost_table(model, ends))
    show(kept_table(model, "half of all", ends["half of all"]))
    if model.profiled is not None:
        say(describe.profile_text(model.profiled))
    if model.frozen:
        show(_frozen(model))
    say(f"elastic: {describe.elastic_share(model):.2%} of {amount(model.cost(model.space.full).params)} parameters")


def facts(model: sortify.SortedModel) -> dict[str, Any]:
    """Everything that the tables show, as JSON values."""
    trained, describe = model.space.trained, sortify.describe
    return {
        "source": model.source,
        "axes": [asdict(axis) for axis in model.axes.values()],
        "chains": {chain.name: [block.name for block in chain.blocks] for chain in model.chains.values()},
        "frozen": [asdict(frozen) for frozen in model.frozen],
        "costs": {name: asdict(model.cost(member)) for name, member in describe.ends(model).items()},
        "elastic": describe.elastic_share(model),
        "trained": None if trained is None else trained.to_json(),
        "ordered": {"units": model.ordered, "blocks": model.blocks_ranked},
        "profile": None if model.profiled is None else model.profiled.to_json(),
        "open": model.open_sizes,
    }


def _axes(model: sortify.SortedModel, every: bool) -> Any:
    """One row for axes of one kind and size whose names differ in numbers only, or one for each."""
    axes, describe = list(model.axes.values()), sortify.describe
    counts = describe.parameter_counts(model)
    whole = max(1, sum(counts.values()))
    numbers = ("number", "size", "levels", "tensors", "% of parameters", "% of FLOPs")
    made = table("axis", "kind", *numbers, right=numbers, title=counted(len(model.axes), "axis", "axes"))
    for own in [[axis] for axis in axes] if every else describe.alike(axes):
        tensors = {name for axis in own for name in axis.parameters}
        made.add_row(
            describe.common_name([axis.name for axis in own]),
            own[0].kind,
            str(len(own)),
            str(own[0].size),
            " ".join(map(str, own[0].levels)),
            str(len(tensors)),
            f"{sum(counts.get(name, 0) for name in tensors) / whole:.1%}",
            f"{model.share([axis.name for axis in own]):.1%}",
        )
    made.caption, made.caption_justify = "shares are of what the axes reach, and overlap", "left"
    return made


def _chains(model: sortify.SortedModel, every: bool) -> Any:
    made = table("chain", "blocks", "the first of them stay", right=("blocks",), title="depth")
    for chain in model.chains.values():
        names = [block.name for block in chain.blocks]
        if len(names) > SHOWN and not every:
            names = [*names[:2], "...", names[-1]]
        made.add_row(chain.name, str(len(chain.blocks)), ", ".join(names))
    return made


def _frozen(model: sortify.SortedModel) -> Any:
    """One row per reason, with the first place."""
    made = table("fixed because", "times", "for instance", right=("times",), title="what is not elastic")
    first = {sortify.describe.reason(frozen): frozen.where for frozen in reversed(model.frozen)}
    for why, count in sortify.describe.frozen_reasons(model):
        made.add_row(why, str(count), first[why])
    return made


def _why(model: sortify.SortedModel) -> Any:
    """One row per fixed dimension, with all that is known of it."""
    columns = ("what", "is fixed because", "by", "in module", "at", "what would free it")
    made = table(*columns, title=counted(len(model.frozen), "fixed dimension"))
    for frozen in model.frozen:
        made.add_row(frozen.where, frozen.why, frozen.op, frozen.module, frozen.source, frozen.remedy)
    return made
