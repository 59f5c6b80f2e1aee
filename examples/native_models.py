"""How small models leave sortify: the rung of the ladder that models of three libraries reach.

    python -m examples.native_models [NAMES ...] [--out docs/assets/native.jsonl] [--page docs/native.md]

Every model is built offline with random weights, of transformers from a tiny configuration, and converted; outputs that
show the stream beside the logits, as an encoder's hidden states, may become narrower with it (`free=`). Of each two
members are asked for, within half of the FLOPs and with half of the blocks, and the rungs are tried in order: the
original class with smaller settings (`to_native`, `nearest_native`), written as a folder and read back; a copy of the
original module with smaller layers (`to_module`); the graph (`extract`). Each is also written in every format, which
checks what it writes. A model that is in the output file is not run again.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import transformers
from rich.console import Console
from torch import nn

from examples.coverage import models
from sortify import (
    FORMATS,
    BudgetError,
    NativeError,
    SortedModel,
    SortifyError,
    Subnet,
    difference,
    has_native_library,
    nearest_native,
    sortify,
    to_module,
    to_native,
    write_subnet,
)

NAMES = (
    *(
        f"transformers/{name}"
        for name in (
            "causal-lm/llama",
            "causal-lm/gpt2",
            "causal-lm/qwen3",
            "causal-lm/mistral",
            "causal-lm/mixtral",
            "causal-lm/gemma2",
            "causal-lm/olmo2",
            "causal-lm/gpt_neox",
            "causal-lm/opt",
            "causal-lm/phi",
            "masked-lm/bert",
            "masked-lm/roberta",
            "masked-lm/distilbert",
            "masked-lm/electra",
            "sequence-classification/albert",
            "seq2seq-lm/t5",
            "seq2seq-lm/bart",
            "seq2seq-lm/marian",
            "image-classification/vit",
            "image-classification/deit",
            "image-classification/swin",
            "image-classification/convnext",
            "ctc/wav2vec2",
            "audio-classification/hubert",
        )
    ),
    *(
        f"timm/{name}"
        for name in (
            "resnet18",
            "vit_tiny_patch16_224",
            "deit_tiny_patch16_224",
            "swin_tiny_patch4_window7_224",
            "convnext_atto",
            "mobilenetv3_small_050",
            "efficientnet_b0",
            "regnetx_002",
            "densenet121",
            "mixer_s32_224",
            "resmlp_12_224",
            "pit_ti_224",
            "xcit_nano_12_p16_224",
            "levit_128s",
            "ghostnet_050",
            "cait_xxs24_224",
            "poolformer_s12",
            "coat_tiny",
            "edgenext_xx_small",
            "repvgg_a0",
        )
    ),
    *(
        f"torchvision/{name}"
        for name in (
            "resnet18",
            "resnet50",
            "resnext50_32x4d",
            "wide_resnet50_2",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "mnasnet0_5",
            "alexnet",
            "vgg11_bn",
            "densenet121",
            "squeezenet1_0",
            "googlenet",
            "inception_v3",
            "shufflenet_v2_x0_5",
            "efficientnet_b0",
            "regnet_y_400mf",
            "convnext_tiny",
            "swin_t",
            "vit_b_32",
            "maxvit_t",
        )
    ),
)
HALF, DEPTH = "half of the FLOPs", "half of the blocks"
Row = dict[str, Any]
console = Console()


def row_of(name: str) -> Row:
    """Convert one model and find the rung of each of its members."""
    built = models.build(name)
    row: Row = {"name": name, "class": type(built.module).__name__}
    try:
        model = converted(built)
    except SortifyError as error:
        return row | {"refused": str(error)}
    return row | {HALF: half(model, built.module), DEPTH: depth(model, built.module)}


def converted(built: models.Built) -> SortedModel:
    """The model; outputs beside the logits that keep the stream as it is are let go."""
    module = built.module.eval()
    model = sortify(module, built.inputs).eval()
    shown = {found[1] for frozen in model.frozen if (found := re.search(r"of the output '([\w.]+)'", frozen.why))}
    others = sorted(shown - {"logits"})
    return sortify(module, built.inputs, free=others).eval() if others else model


def half(model: SortedModel, module: nn.Module) -> Row:
    """The member within half of the FLOPs: the nearest that the class can be, else the largest."""
    why = "no library that makes it by its settings is known"
    if has_native_library(model):
        try:
            return as_folder(model, nearest_native(model, 0.5).subnet)
        except NativeError as error:
            why = str(error)
    try:
        return below(model, module, model.choose(0.5).subnet, why)
    except BudgetError as error:
        return {"none": str(error)}


def depth(model: SortedModel, module: nn.Module) -> Row:
    """The member with half of the blocks."""
    subnet = model.space.subnet(depth=0.5) if "depth" in model.space.groups else model.space.full
    if subnet == model.space.full:
        return {"none": "nothing to halve"}
    try:
        return as_folder(model, subnet)
    except NativeError as error:
        return below(model, module, subnet, str(error))


def as_folder(model: SortedModel, subnet: Subnet) -> Row:
    """The first rung: written, read back and compared."""
    native = to_native(model, subnet)
    with tempfile.TemporaryDirectory() as place:
        native.save(Path(place, "small"))
        again = read(native.library, type(native.module), Path(place, "small"))
    return outcome(model, subnet, "config", max(native.error, apart(model, subnet, again)), dict(native.changes))


def read(library: str, kind: Any, folder: Path) -> nn.Module:
    module: nn.Module = (
        timm.create_model(f"local-dir:{folder}", pretrained=True) if library == "timm" else kind.from_pretrained(folder)
    )
    return module.eval()


def below(model: SortedModel, module: nn.Module, subnet: Subnet, why: str) -> Row:
    """The second rung, else the third."""
    try:
        small = to_module(model, subnet, module)
    except NativeError as error:
        graph = model.extract(subnet).eval()
        return outcome(model, subnet, "graph", apart(model, subnet, graph), {}, f"{why}; {error}")
    return outcome(model, subnet, "module", small.error, dict(small.changes), why)


def apart(model: SortedModel, subnet: Subnet, found: nn.Module) -> float:
    """The largest difference of outputs on the example inputs."""
    args, kwargs = model.examples
    with torch.no_grad(), model.using(subnet):
        return difference(plain(model(*args, **kwargs)), plain(found(*args, **model.signature.completed(args, kwargs))))


def plain(output: Any) -> Any:
    return output["logits"] if hasattr(output, "keys") and "logits" in output else output


def outcome(model: SortedModel, subnet: Subnet, rung: str, error: float, changes: Row, why: str = "") -> Row:
    share = model.cost(subnet).flops / model.cost(model.space.full).flops
    found = {"rung": rung, "subnet": str(subnet), "flops": share, "error": error, "changes": changes, "why": why}
    return found | {"formats": {form: written(model, subnet, form) for form in FORMATS}}


def written(model: SortedModel, subnet: Subnet, form: str) -> float | str:
    """The error of what is written in a format, or why it is not."""
    with tempfile.TemporaryDirectory() as place:
        try:
            return write_subnet(model, subnet, Path(place, "small"), form).error
        except SortifyError as error:
            return str(error).replace(place, "")[:300]


# -- the page


def page(rows: list[Row]) -> str:
    """The rows as a table, then what the settings are, then why a lower rung was taken."""
    heads = ("model", "class", HALF, "sub-network", *RESULTS, DEPTH, *RESULTS)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        one, two = row.get(HALF, {}), row.get(DEPTH, {})
        if "refused" in row:
            one = two = {"none": row["refused"]}
        cells = (row["name"], f"`{row['class']}`", *cell(one, "subnet"), *cell(two))
        lines.append(f"| {' | '.join(cells)} |")
    return INTRODUCTION.format(
        count=len(rows),
        counts=counted(rows),
        formats=", ".join(FORMATS),
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}, timm {timm.__version__}, "
        f"torchvision {torchvision.__version__}",
        table="\n".join(lines),
        settings="\n".join(settings(rows)),
        reasons="\n".join(reasons(rows)),
    )


RESULTS = ("FLOPs", "error", "formats")


def cell(found: Row, *more: str) -> tuple[str, ...]:
    if "none" in found:
        return ("none", *("" for _ in (*more, *RESULTS)))
    forms = found["formats"].values()
    passed = [error for error in forms if not isinstance(error, str)]
    errors = f"{len(passed)} of {len(forms)}, {max(passed, default=0):.1g}"
    return found["rung"], *(found[name] for name in more), f"{found['flops']:.0%}", f"{found['error']:.1g}", errors


def counted(rows: list[Row]) -> str:
    """How many members of each library are on each rung."""
    heads = ("library", "models", *(f"{what}: {rung}" for what in (HALF, DEPTH) for rung in RUNGS))
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for library in dict.fromkeys(row["name"].partition("/")[0] for row in rows):
        own = [row for row in rows if row["name"].startswith(f"{library}/")]
        cells = [library, str(len(own))]
        for what in (HALF, DEPTH):
            found = Counter(row.get(what, {}).get("rung", "none") for row in own)
            cells += [str(found[rung]) for rung in RUNGS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


RUNGS = ("config", "module", "graph", "none")


def settings(rows: list[Row]) -> list[str]:
    lines = ["| model | half of the FLOPs | half of the blocks |", "|---|---|---|"]
    for row in rows:
        cells = [said(row.get(what, {})) for what in (HALF, DEPTH)]
        if any(cells):
            lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return lines


def said(found: Row) -> str:
    if found.get("rung") != "config":
        return ""
    return ", ".join(f"{name} {value}" for name, value in found["changes"].items())


def reasons(rows: list[Row]) -> list[str]:
    lines = ["| model | member | rung or format | why not a higher one, or not this one |", "|---|---|---|---|"]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['name']} | both | none | {row['refused']} |")
        for what in (HALF, DEPTH):
            found = row.get(what, {})
            for form, error in found.get("formats", {}).items():
                if isinstance(error, str):
                    lines.append(f"| {row['name']} | {what} | {form} | {error.replace('|', '/')} |")
            if found.get("why") or "none" in found:
                why = found.get("why") or found["none"]
                lines.append(f"| {row['name']} | {what} | {found.get('rung', 'none')} | {why.replace('|', '/')} |")
    return lines


INTRODUCTION = """# How small models leave sortify

Extraction is a ladder, and each rung is proven by equal outputs before it is taken:

1. **config**: the original class with smaller settings, in a folder that the library reads where sortify is not
   installed (`sortify.to_native`; `sortify.nearest_native` finds the nearest sub-network that the class can be);
2. **module**: a copy of the original module with smaller layers, the same names in its state dict
   (`sortify.to_module`);
3. **graph**: the captured graph with its sizes folded to constants (`model.extract`), which needs torch alone.

Here are {count} models, offline and with random weights: the member within half of the FLOPs, and the one with half of
the blocks. *Error* is the largest difference of outputs from the sub-network's, relative to the largest output; of the
first rung after the folder was written and read back by the library. *Formats* are how many of {formats}
pass their own check: written, run again where that format is at home, and equal; and the largest difference of these.

{counts}

Made by `make native` ({versions}).

{table}

## Settings

What differs from the original's settings, of the members on the first rung.

{settings}

## What is not reached

{reasons}
"""


def main(make: Callable[[str], Row] = row_of) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--out", type=Path, default=Path("docs/assets/native.jsonl"))
    parser.add_argument("--page", type=Path, help="write the table to this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known: dict[str, Row] = {row["name"]: row for row in map(json.loads, lines)}
    with options.out.open("a") as file:
        for name in options.names:
            if name not in known:
                known[name] = make(name)
                file.write(json.dumps(known[name]) + "\n")
                file.flush()
                console.print(known[name], markup=False)
    if options.page:
        options.page.write_text(page([known[name] for name in options.names if name in known]), "utf-8")


if __name__ == "__main__":
    main()
