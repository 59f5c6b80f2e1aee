"""`sortify extract`: sub-networks as files that no longer need sortify."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    SORTED,
    BatchSize,
    Budgets,
    DataText,
    Directory,
    SequenceLength,
    Sizes,
    TaskName,
    Tokenizer,
    Verbose,
    data_and_task,
    given,
    parse_sizes,
)
from .show import cost_table, counted, family_table, say, show, warn, working

if TYPE_CHECKING:
    import sortify
else:
    from .lazy import sortify

SEARCH = "looking for settings"

Metric = Annotated[
    str,
    typer.Option(
        "--metric",
        help="What a budget without a unit is: flops, params, activation_bytes, cache_bytes, latency or memory.",
    ),
]
Several = Annotated[
    str,
    typer.Option(
        "--budgets", metavar="BUDGETS", help="0.25,0.5,1: a folder with the sub-network for each, and index.json."
    ),
]
Width = Annotated[float | None, typer.Option("--width", help="This width instead of a budget, such as 0.5.")]
Heads = Annotated[float | None, typer.Option("--heads", help="This share of the heads.")]
Depth = Annotated[float | None, typer.Option("--depth", help="This share of the blocks.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT",
        help="The file or folder; else ./extracted, with the format's ending, or ./family.",
    ),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="pt2, safetensors, onnx; python, huggingface, timm, torchvision (folders); or auto: as OUT ends, else "
        "what it came from.",
    ),
]
Native = Annotated[
    bool,
    typer.Option("--native", help="The largest within a budget that is a model of the original's own class."),
]
Recalibrate = Annotated[
    int, typer.Option("--recalibrate", metavar="N", min=1, help="Batches of --data for batch-norm statistics.")
]


def run(
    ctx: typer.Context,
    dir: Directory = SORTED,
    budget: Budgets = None,
    budgets: Several = "",
    metric: Metric = "flops",
    sizes: Sizes = "",
    width: Width = None,
    heads: Heads = None,
    depth: Depth = None,
    output: Output = None,
    format: Format = "auto",
    native: Native = False,
    data: DataText = None,
    task: TaskName = None,
    recalibrate: Recalibrate = 20,
    batch_size: BatchSize = 64,
    tokenizer: Tokenizer = None,
    sequence_length: SequenceLength = None,
    verbose: Verbose = False,
) -> None:
    """Cut out the largest sub-network within a budget, or a given one, and check that it computes the same."""
    options = locals()
    typed = {name for name in ("budget", "budgets") if _is_from_command_line(ctx, name)}
    if len(typed) == 1:  # what is typed goes before what sortify.toml says
        budget, budgets = (budget, "") if "budget" in typed else (None, budgets)
    fractions = given(width=width, heads=heads, depth=depth)
    _check(fractions, budget, budgets, bool(typed), format, native)
    model, own = sortify.load(dir), parse_sizes(sizes)
    prepare = partial(_ready, model, options)
    if budgets and not fractions:
        _family(model, budgets, output or Path("family"), metric, format, native, prepare, own)
        return
    subnet, rule = model.space.subnet(**fractions), ""
    if budget and not fractions:
        subnet, rule = _within(model, budget, metric, own, native)
    prepare(subnet)
    with working(SEARCH):
        written = sortify.write_subnet(model, subnet, output, "native" if native else format)
    if written.note:
        say(f"{written.note}; --native takes the nearest sub-network that is a model of its class")
    if rule:
        say(f"chosen: {subnet}: {rule}")
    show(cost_table(model, {"full": model.space.full, "extracted": subnet}, own))
    say(f"check: outputs equal the sub-network's, largest difference {written.error:.1e}")
    say(f"saved: {written.path}  ({written.use})")


def _family(
    model: sortify.SortedModel,
    budgets: str,
    output: Path,
    metric: str,
    format: str,
    native: bool,
    prepare: Callable[[sortify.Subnet], None],
    sizes: dict[str, int],
) -> None:
    """Write the sub-network for each budget and an index, and print it as a table."""
    wanted = [text.strip() for text in budgets.split(",") if text.strip()]
    with working(SEARCH):
        family = sortify.extract_family(
            model, wanted, output, metric=metric, form=format, native=native, prepare=prepare, **sizes
        )
    for note in family.notes:
        say(note)
    show(family_table(model, family))
    say(f"saved: {output}  (index.json lists {counted(len(family.members), 'member')})")


def _check(fractions: Mapping[str, float], budget: Any, budgets: str, typed: bool, format: str, native: bool) -> None:
    """Refuse options that do not go together."""
    if (budget and budgets) or (fractions and (budget or budgets) and typed):
        raise typer.BadParameter("give --budget, --budgets, or --width, --heads, --depth: one of them")
    if not (fractions or budget or budgets):
        raise typer.BadParameter("say how large: --budget 0.5, --budgets 0.25,0.5,1, or --width, --heads, --depth")
    if native and (fractions or format in sortify.FORMATS):
        raise typer.BadParameter("--native is for budgets, and writes a folder of the original's library")
    if format not in sortify.FORMS:
        raise typer.BadParameter(f"'{format}'; expected {' or '.join(sortify.FORMS)}", param_hint="--format")


def _within(
    model: sortify.SortedModel, budget: Any, metric: str, sizes: dict[str, int], native: bool
) -> tuple[sortify.Subnet, str]:
    """The sub-network for a budget, and by which rule."""
    if not native:
        chosen = model.choose(budget, metric, **sizes)
        return chosen.subnet, chosen.rule
    with working(SEARCH):
        subnet = sortify.nearest_native(model, budget, metric, **sizes).subnet
    return subnet, "the largest within the budget that is a model of the original's class"


def _is_from_command_line(ctx: typer.Context, name: str) -> bool:
    """Whether an option was typed, not read from sortify.toml."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _ready(model: sortify.SortedModel, options: Mapping[str, Any], subnet: sortify.Subnet) -> None:
    """Say what the sub-network lacks: training, batch-norm statistics; these are measured where there is data."""
    if model.space.trained is not None and not model.space.is_member(subnet):
        warn(f"{subnet} is none of the sub-networks that were trained; it may score far below its neighbours")
    if model.is_calibrated(subnet):
        return
    if options["data"] is None:
        warn(
            f"the batch-norm statistics are not those of {subnet}; name --data, or run `sortify train`, to measure them"
        )
        return
    loaded, task = data_and_task(model, options)
    with model.using(subnet):
        model.recalibrate((task.split(batch)[0].to_model() for batch in loaded.train), options["recalibrate"])
    try:
        model.save_statistics(options["dir"])
    except sortify.CheckpointError as error:
        warn(f"the batch-norm statistics of {subnet} are not kept for the next time: {error}")
