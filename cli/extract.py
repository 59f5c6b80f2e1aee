"""`sortify extract`: one sub-network as a file that no longer needs sortify."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
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
from .show import cost_table, say, show, warn, working

if TYPE_CHECKING:
    import torch

    import sortify
else:
    from .lazy import sortify, torch

FILES = ("pt2", "safetensors")
FOLDERS = {"huggingface": "transformers", "timm": "timm", "torchvision": "torchvision"}
"""Formats that are folders, and the library that reads each."""
FORMATS = (*FILES, *FOLDERS)
NATIVE = "native"
"""The folder of the library that the model came from."""
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
        typer.Option(
            "--format",
            help="pt2, safetensors, huggingface, timm, torchvision (folders), or auto: as OUT ends, else as it came.",
        ),
    ] = "auto",
    native: Annotated[
        bool,
        typer.Option("--native", help="The largest within the budget that is a model of the original's own class."),
    ] = False,
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
    _check(fractions, budget, _is_from_command_line(ctx, "budget"), format, native)
    model = sortify.load(dir)
    own = parse_sizes(sizes)
    subnet, rule = model.space.subnet(**fractions), ""
    if budget and not fractions:
        subnet, rule = _within(model, budget, metric, own, native)
    load = {"batch_size": batch_size, "tokenizer": tokenizer, "sequence_length": sequence_length, "task": task}
    _ready(model, subnet, data, recalibrate, load)
    target, error, use = _write(model, subnet, output, NATIVE if native else format)
    if rule:
        say(f"chosen: {subnet}: {rule}")
    show(cost_table(model, {"full": model.space.full, "extracted": subnet}, own))
    say(f"check: outputs equal the sub-network's, largest difference {error:.1e}")
    say(f"saved: {target}  ({use})")


def _check(fractions: Mapping[str, float], budget: Any, typed: bool, format: str, native: bool) -> None:
    """Refuse options that do not go together."""
    if fractions and budget and typed:
        raise typer.BadParameter("give --budget or --width, --heads, --depth, not both")
    if not fractions and not budget:
        raise typer.BadParameter("say how large: --budget 0.5, or --width, --heads, --depth")
    if native and (fractions or format in FILES):
        raise typer.BadParameter("--native is for a --budget, and writes a folder of the original's library")
    if format not in ("auto", *FORMATS):
        raise typer.BadParameter(f"'{format}'; expected auto, {' or '.join(FORMATS)}", param_hint="--format")


def _within(
    model: sortify.SortedModel, budget: Any, metric: str, sizes: dict[str, int], native: bool
) -> tuple[sortify.Subnet, str]:
    """The sub-network for a budget, and by which rule."""
    if not native:
        chosen = model.choose(budget, metric, **sizes)
        return chosen.subnet, chosen.rule
    with working("looking for settings"):
        subnet = sortify.nearest_native(model, budget, metric, **sizes).subnet
    return subnet, "the largest within the budget that is a model of the original's class"


def _is_from_command_line(ctx: typer.Context, name: str) -> bool:
    """Whether an option was typed, not read from sortify.toml."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _ready(
    model: sortify.SortedModel, subnet: sortify.Subnet, data: str | None, batches: int, load: dict[str, Any]
) -> None:
    """Say what the sub-network lacks: training, batch-norm statistics; these are measured where there is data."""
    if model.space.trained is not None and not model.space.is_member(subnet):
        warn(f"{subnet} is none of the sub-networks that were trained; it may score far below its neighbours")
    if model.is_calibrated(subnet):
        return
    if data is None:
        warn(
            f"the batch-norm statistics are not those of {subnet}; name --data, or run `sortify train`, to measure them"
        )
        return
    loaded = sortify.load_data(data, model=model, **load)
    task = sortify.task_for(loaded, model, load["task"])
    with model.using(subnet):
        model.recalibrate((task.split(batch)[0].to_model() for batch in loaded.train), batches)


def _write(
    model: sortify.SortedModel, subnet: sortify.Subnet, output: Path | None, format: str
) -> tuple[Path, float, str]:
    """Write the file or folder, and check it before it is put in its place.

    Returns:
        what was written, the largest difference of outputs, and how to use it.
    """
    ending = "" if output is None else output.suffix.removeprefix(".")
    if format in (NATIVE, *FOLDERS) or (format == "auto" and ending not in FILES and sortify.has_native_library(model)):
        native = _native(model, subnet, required=format != "auto")
        if native is not None:
            if FOLDERS.get(format, native.library) != native.library:
                said = f"'{format}', but the model was converted from {native.library}"
                raise typer.BadParameter(said, param_hint="--format")
            return _write_folder(native, output or Path("extracted"))
    target, form = _target(output, format)
    use = "use it: torch.export.load(path).module()" if form == "pt2" else "weights"
    return target, _write_file(model, subnet, target, form), use


def _target(output: Path | None, format: str) -> tuple[Path, str]:
    """The file to write and its format: what is named, else as the name ends, else pt2."""
    if output is None or output.is_dir():
        output = (output or Path()) / "extracted"
    ending = output.suffix.removeprefix(".")
    form = format if format != "auto" else ending if ending in FILES else "pt2"
    return output if ending else output.with_suffix(f".{form}"), form


def _native(model: sortify.SortedModel, subnet: sortify.Subnet, required: bool) -> sortify.Native | None:
    """The sub-network as a model of the original's class; if it is not required, a line says why it is none."""
    try:
        with working("looking for settings"):
            return sortify.to_native(model, subnet)
    except sortify.NativeError as error:
        if required:
            raise
        say(f"written as a graph, as {error}; --native takes the nearest sub-network that is a model of its class")
        return None


def _write_folder(native: sortify.Native, target: Path) -> tuple[Path, float, str]:
    native.save(target)
    changes = ", ".join(f"{name}={value}" for name, value in native.changes.items())
    return target, native.error, f"use it: {native.use}; {changes}"


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
