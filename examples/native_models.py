"""Which sub-networks of transformers models are models of their own class again: `sortify.to_native`, class by class.

    python -m examples.native_models [NAMES ...] [--out out/native.jsonl] [--page docs/native.md]

Every model is built offline from a tiny configuration with random weights and converted. Two of its sub-networks are
asked for: all widths and heads halved, and half of the blocks. Each is written as a folder, read back by the library
and compared. A model that is in the output file is not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from examples.coverage import models
from sortify import NativeError, SortedModel, SortifyError, Subnet, difference, sortify, to_native

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
Row = dict[str, Any]
console = Console()


def row_of(name: str) -> Row:
    """Convert one model and try its sub-networks."""
    built = models.build(f"transformers/{name}")
    row: Row = {"name": name, "class": type(built.module).__name__}
    try:
        model = sortify(built.module.eval(), built.inputs).eval()
    except SortifyError as error:
        return row | {"refused": str(error)}
    for what, groups in WANTED.items():
        fractions = dict.fromkeys((group for group in groups if group in model.space.groups), 0.5)
        subnet = model.space.subnet(**fractions)
        row[what] = {"why": "nothing to halve"} if subnet == model.space.full else tried(model, subnet)
    return row


def tried(model: SortedModel, subnet: Subnet) -> Row:
    """What came of one sub-network: the settings and the error, or the reason why there is none."""
    try:
        native = to_native(model, subnet)
    except NativeError as error:
        return {"why": str(error)}
    args, kwargs = model.examples
    with tempfile.TemporaryDirectory() as place:
        native.save(Path(place, "small"))
        again: Any = type(native.module).from_pretrained(Path(place, "small")).eval()  # type: ignore[attr-defined]
    with torch.no_grad(), model.using(subnet):
        expected, found = model(*args, **kwargs), again(*args, **model.signature.completed(args, kwargs))
    error = max(native.error, difference(expected["logits"], found["logits"]))
    return {"changes": dict(native.changes), "error": error}


def page(rows: list[Row]) -> str:
    """The rows as a table."""
    lines = ["| model | class | half of the widths and heads | half of the blocks |", "|---|---|---|---|"]
    for row in rows:
        cells = [row["refused"]] * 2 if "refused" in row else [cell(row[what]) for what in WANTED]
        lines.append(f"| {row['name']} | `{row['class']}` | {cells[0]} | {cells[1]} |")
    counts = [sum("error" in row.get(what, {}) for row in rows) for what in WANTED]
    return f"""# Sub-networks as models of their own class

What `sortify.to_native` makes of tiny, random models of transformers: the settings of the class that give a
sub-network of half the widths and heads, and one of half the blocks, with the largest difference of outputs after the
folder was written and read back by `from_pretrained`. {counts[0]} and {counts[1]} of {len(rows)} are such models.

Made by `make native` (torch {torch.__version__}).

""" + "\n".join([*lines, ""])


def cell(found: Row) -> str:
    """One outcome in words."""
    if "why" in found:
        return f"no: {found['why']}"
    return ", ".join(f"{name} {value}" for name, value in found["changes"].items()) + f" ({found['error']:.1g})"


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
