"""`sortify convert`: any model into a sorted one, with the proof that it is the same model."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import SORTED, Verbose
from .show import amount, cost_table, counted, proof_table, say, show, table, warn

if TYPE_CHECKING:
    import sortify
else:
    from .lazy import sortify

TRAINING = "training"
LEFT_BY_TRAINING = (TRAINING, *(f"evaluation.{end}" for end in ("json", "csv", "png", "svg")), "report.html")
REASONS = 3
"""Reasons for fixed dimensions that are told; `inspect` tells them all."""


def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="model.pt, model.pt2, timm/NAME, torchvision/NAME, transformers/DIR, or package.module:factory.",
        ),
    ],
    dir: Annotated[Path, typer.Option("-o", "--dir", metavar="DIR", help="Folder of the sorted model.")] = SORTED,
    input: Annotated[
        str | None,
        typer.Option("--input", metavar="SIZES", help="Example inputs: 2x3x32x32, or input_ids=2x16:int64<1000."),
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Load a file of unknown classes: this runs its code.")] = False,
    allow: Annotated[
        str,
        typer.Option(
            "--allow", metavar="NAMES", help="Classes of yours that a pickled model may hold, or packages of such."
        ),
    ] = "",
    fix: Annotated[
        str,
        typer.Option(
            "--fix", metavar="PATTERNS", help="Axes, blocks or parameters to leave as they are: 'head.*,layers.0'."
        ),
    ] = "",
    free: Annotated[
        str, typer.Option("--free", metavar="PATTERNS", help="Axes to cut that stay full by default: '*.head_dim'.")
    ] = "",
    opaque: Annotated[
        str, typer.Option("--opaque", metavar="PATTERNS", help="Modules not to look into: 'encoder.pooler'.")
    ] = "",
    eval_only: Annotated[
        bool, typer.Option("--eval-only", help="Capture evaluation mode alone: for models that are not to be trained.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that has been trained.")] = False,
    verbose: Verbose = False,
) -> None:
    """Capture a model, find its axes and blocks, prove them, and save the sorted model."""
    if (dir / TRAINING).exists() and not overwrite:
        raise typer.BadParameter(f"{dir} holds a model in training or trained: say --overwrite, or another -o DIR")
    found = sortify.load_source(source, trust=trust, allow=_patterns(allow), input=input)
    module, examples = _callable(found, source)
    fixed, freed, closed = (_patterns(text) for text in (fix, free, opaque))
    model = sortify.sortify(
        module,
        examples,
        training=not eval_only,
        fix=fixed,
        free=freed,
        opaque=closed,
        progress=True,
        source=source,
    )
    model.save(dir)
    for name in LEFT_BY_TRAINING:
        _remove(dir / name)
    _report(model, found.name)
    say(f"saved: {dir}")


def _patterns(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _callable(found: sortify.Source, source: str) -> tuple[Any, Any]:
    """The source as a module, with its example inputs.

    A module made of an exported program refuses to change its mode; it behaves alike in both.
    """
    if found.program is None:
        return found.module, found.example_inputs
    if found.example_inputs is None:
        raise sortify.SourceError(f"'{source}' takes positional and named inputs: describe all by name with --input")
    warn(f"{source} was exported in one mode: dropout and batch-norm act alike in training and in evaluation")
    module: Any = found.program.module(check_guards=False)
    module.train = MethodType(_stays, module)
    return module, found.example_inputs


def _stays(module: Any, mode: bool = True) -> Any:
    """Stands for `train`."""
    return module


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _report(model: sortify.SortedModel, name: str) -> None:
    """What was found, what it costs, what stays fixed, what was proven."""
    made = table("axes", "number", "sizes", right=("number",), title=f"{name}: what is elastic")
    for kind, number in Counter(axis.kind for axis in model.axes.values()).items():
        sizes = sorted({axis.size for axis in model.axes.values() if axis.kind == kind})
        made.add_row(kind, str(number), ", ".join(map(str, sizes)))
    for chain in model.chains.values():
        made.add_row("depth", "1", f"{chain.name}: {counted(len(chain.blocks), 'block')}")
    show(made)
    show(cost_table(model, sortify.describe.ends(model)))
    elastic = sortify.describe.elastic_share(model)
    say(f"elastic: {elastic:.2%} of {amount(model.cost(model.space.full).params)} parameters")
    say(f"fixed: {_fixed(model)}")
    if model.report is not None:
        show(proof_table(model.report))


def _fixed(model: sortify.SortedModel) -> str:
    reasons = sortify.describe.frozen_reasons(model)
    told = [f"{why} ({count})" for why, count in reasons[:REASONS]]
    rest = len(reasons) - len(told)
    return (
        "; ".join([*told, *([f"and {counted(rest, 'other reason')}: see `sortify inspect`"] if rest else [])])
        or "nothing"
    )
