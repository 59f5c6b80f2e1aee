"""Which sub-networks of transformers models are models of their own class again: `sortify.to_native`, class by class.

    python -m examples.native_models [NAMES ...] [--out out/native.jsonl] [--page docs/native.md]

Every model is built offline from a tiny configuration with random weights and converted; outputs that show the stream
beside the logits, as an encoder's hidden states, may become narrower with it (`free=`). Three sub-networks are asked
for: all widths and heads halved, half of the blocks, and the nearest within half of the FLOPs. Each is written as a
folder, read back by the library and compared. A model that is in the output file is not run again.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from examples.coverage import models
from sortify import (
    Native,
    NativeError,
    SortedModel,
    SortifyError,
    difference,
    nearest_native,
    sortify,
    to_native,
)

NAMES = (
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
WANTED = {"half": ("width", "heads"), "half the depth": ("depth",)}
NEAREST = "nearest"
Row = dict[str, Any]
console = Console()


def row_of(name: str) -> Row:
    """Convert one model and try its sub-networks."""
    built = models.build(f"transformers/{name}")
    row: Row = {"name": name, "class": type(built.module).__name__}
    try:
        model = converted(built)
    except SortifyError as error:
        return row | {"refused": str(error)}
    for what, groups in WANTED.items():
        fractions = dict.fromkeys((group for group in groups if group in model.space.groups), 0.5)
        subnet = model.space.subnet(**fractions)
        full = subnet == model.space.full
        row[what] = {"why": "nothing to halve"} if full else tried(model, partial(to_native, model, subnet))
    return row | {NEAREST: tried(model, partial(nearest_native, model, 0.5))}


def converted(built: models.Built) -> SortedModel:
    """The model; outputs beside the logits that keep the stream as it is are let go."""
    module = built.module.eval()
    model = sortify(module, built.inputs).eval()
    shown = {found[1] for frozen in model.frozen if (found := re.search(r"of the output '([\w.]+)'", frozen.why))}
    others = sorted(shown - {"logits"})
    return sortify(module, built.inputs, free=others).eval() if others else model


def tried(model: SortedModel, make: Callable[[], Native]) -> Row:
    """What came of one sub-network: the settings and the error, or the reason why there is none."""
    try:
        native = make()
    except NativeError as error:
        return {"why": str(error)}
    args, kwargs = model.examples
    with tempfile.TemporaryDirectory() as place:
        native.save(Path(place, "small"))
        again: Any = type(native.module).from_pretrained(Path(place, "small")).eval()  # type: ignore[attr-defined]
    with torch.no_grad(), model.using(native.subnet):
        expected, found = model(*args, **kwargs), again(*args, **model.signature.completed(args, kwargs))
    worst = max(native.error, difference(expected["logits"], found["logits"]))
    share = model.cost(native.subnet).flops / model.cost(model.space.full).flops
    return {"subnet": str(native.subnet), "flops": share, "changes": dict(native.changes), "error": worst}


def page(rows: list[Row]) -> str:
    """The rows as a table."""
    heads = ("model", "class", "half of the widths and heads", "half of the blocks", "nearest within half of the FLOPs")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["refused"]] * 3 if "refused" in row else [cell(row[what]) for what in (*WANTED, NEAREST)]
        lines.append(f"| {row['name']} | `{row['class']}` | {' | '.join(cells)} |")
    counts = [sum("error" in row.get(what, {}) for row in rows) for what in (*WANTED, NEAREST)]
    return f"""# Sub-networks as models of their own class

What `sortify.to_native` makes of tiny, random models of transformers: the settings of the class that give a
sub-network of half the widths and heads, and one of half the blocks; and what `sortify.nearest_native` finds within
half of the FLOPs. In brackets is the largest difference of outputs after the folder was written and read back by
`from_pretrained`. Of {len(rows)} classes {counts[0]}, {counts[1]} and {counts[2]} give such a model.

Made by `make native` (torch {torch.__version__}, transformers {transformers.__version__}).

""" + "\n".join([*lines, ""])


def cell(found: Row) -> str:
    """One outcome in words."""
    if "why" in found:
        return f"no: {found['why']}"
    changes = ", ".join(f"{name} {value}" for name, value in found["changes"].items())
    return f"{found['subnet']}, {found['flops']:.0%} of the FLOPs: {changes} ({found['error']:.1g})"


def main(make: Callable[[str], Row] = row_of) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--out", type=Path, default=Path("out/native.jsonl"))
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
        options.page.write_text(page([known[name] for name in options.names]), "utf-8")


if __name__ == "__main__":
    main()
