"""`sortify extract`: one sub-network as a file that no longer needs sortify."""

from __future__ import annotations

import os
import tempfile
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
    given,
    parse_sizes,
)
from .show import cost_table, say, show, warn

if TYPE_CHECKING:
    import torch

    import sortify
else:
    from .lazy import sortify, torch

FILES = ("pt2", "safetensors")
FOLDER = "huggingface"
FORMATS = (*FILES, FOLDER)
TOLERANCE = 1e-5
"""Largest difference of outputs, relative to their scale, in float32."""
COARSE = 1e-2
"""The same in float16 and bfloat16."""

Fraction = float | None


def run(
    ctx: typer.Context,
    dir: Directory = SORTED,
    budget: Budgets = None,
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            help="What a budget without a unit is: flops, params, activation_bytes, cache_bytes, latency or memory.",
        ),
    ] = "flops",
    sizes: Sizes = "",
    width: Annotated[Fraction, typer.Option("--width", help="This width instead of a budget, such as 0.5.")] = None,
    heads: Annotated[Fraction, typer.Option("--heads", help="This share of the heads.")] = None,
    depth: Annotated[Fraction, typer.Option("--depth", help="This share of the blocks.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="OUT", help="The file or folder; else ./extracted, with the format's ending."
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option("--format", help="pt2, safetensors, huggingface (a folder), or auto: as OUT ends, else pt2."),
    ] = "auto",
    data: DataText = None,
    task: TaskName = None,
    recalibrate: Annotated[
        int, typer.Option("--recalibrate", metavar="N", min=1, help="Batches of --data for batch-norm statistics.")
    ] = 20,
    batch_size: BatchSize = 64,
    tokenizer: Tokenizer = None,
    sequence_length: SequenceLength = None,
    verbose: Verbose = False,
) -> None:
    """Cut out the largest sub-network within a budget, or a given one, and check that it computes the same."""
    fractions = given(width=width, heads=heads, depth=depth)
    if fractions and budget and _is_from_command_line(ctx, "budget"):
        raise typer.BadParameter("give --budget or --width, --heads, --depth, not both")
    if not fractions and not budget:
        raise typer.BadParameter("say how large: --budget 0.5, or --width, --heads, --depth")
    target, form = _target(output, format)
    model = sortify.load(dir)
    subnet, rule, own = model.space.subnet(**fractions), "", parse_sizes(sizes)
    if budget and not fractions:
        chosen = model.choose(budget, metric, **own)
        subnet, rule = chosen.subnet, chosen.rule
    if model.space.trained is not None and not model.space.is_member(subnet):
        warn(f"{subnet} is none of the sub-networks that were trained; it may score far below its neighbours")
    if not model.is_calibrated(subnet):
        load = {"batch_size": batch_size, "tokenizer": tokenizer, "sequence_length": sequence_length, "task": task}
        _measure(model, subnet, data, recalibrate, load)
    error, use = _write(model, subnet, target, form)
    if rule:
        say(f"chosen: {subnet}: {rule}")
    show(cost_table(model, {"full": model.space.full, "extracted": subnet}, own))
    say(f"check: outputs equal the sub-network's, largest difference {error:.1e}")
    say(f"saved: {target}  ({use})")


def _is_from_command_line(ctx: typer.Context, name: str) -> bool:
    """Whether an option was typed, not read from sortify.toml."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _target(output: Path | None, format: str) -> tuple[Path, str]:
    """The file and its format."""
    if format not in ("auto", *FORMATS):
        raise typer.BadParameter(f"'{format}'; expected auto, {' or '.join(FORMATS)}", param_hint="--format")
    if format == FOLDER:
        return output or Path("extracted"), format
    if output is None or output.is_dir():
        output = (output or Path()) / "extracted"
    ending = output.suffix.removeprefix(".")
    form = format if format != "auto" else ending if ending in FILES else "pt2"
    return output if ending else output.with_suffix(f".{form}"), form


def _measure(
    model: sortify.SortedModel, subnet: sortify.Subnet, data: str | None, batches: int, load: dict[str, Any]
) -> None:
    """Measure batch-norm statistics on training data, or say that nobody has."""
    if data is None:
        warn(
            f"the batch-norm statistics are not those of {subnet}; name --data, or run `sortify train`, to measure them"
        )
        return
    loaded = sortify.load_data(data, model=model, **load)
    task = sortify.task_for(loaded, model, load["task"])
    with model.using(subnet):
        model.recalibrate((task.split(batch)[0].to_model() for batch in loaded.train), batches)


def _write(model: sortify.SortedModel, subnet: sortify.Subnet, target: Path, form: str) -> tuple[float, str]:
    """Write the file or folder, and check it before it is put in its place.

    Returns:
        the largest difference of outputs, and how to use what was written.
    """
    if form == FOLDER:
        native = sortify.to_native(model, subnet)
        native.save(target)
        changes = ", ".join(f"{name}={value}" for name, value in native.changes.items())
        return native.error, f"use it: {type(native.module).__name__}.from_pretrained(path); {changes}"
    use = "use it: torch.export.load(path).module()" if form == "pt2" else "weights"
    return _write_file(model, subnet, target, form), use


def _write_file(model: sortify.SortedModel, subnet: sortify.Subnet, target: Path, form: str) -> float:
    """Write the file, check it, and only then put it in its place; returns the largest difference of outputs."""
    small = model.extract(subnet=subnet).eval()
    args, kwargs = model.examples
    with torch.no_grad(), model.using(subnet):
        expected = model.eval()(*args, **kwargs)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as place:
        draft = Path(place, target.name)
        sortify.write(small, model.example_tensors, draft, form)
        if form == "pt2":
            again: Any = torch.export.load(str(draft)).module()
        else:
            again = small
        with torch.no_grad():
            error = sortify.difference(_leaves(expected), _leaves(again(*args, **kwargs)))
        tensors = [t for t in small.tensors.values() if t.is_floating_point()]
        allowed = COARSE if any(t.element_size() < 4 for t in tensors) else TOLERANCE
        if not error <= allowed:
            raise sortify.ProofError(f"{target}: not written: its outputs differ from the sub-network's by {error:.1e}")
        os.replace(draft, target)
    return error


def _leaves(value: Any) -> list[Any]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
