"""What `sortify inspect` shows of a vision transformer, a residual network and a language model, as a page of the docs.

    python examples/inspect_models.py [--page docs/inspect.md]

Converts the three models with random weights, prints what the command prints, and draws their pictures beside the page.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

PAGE = """# What inspect shows

Before anything is trained, `sortify inspect` tells what will be cut and what it is worth: every axis with the sizes
that quarter steps give, the tensors that carry it and the share of the parameters and FLOPs that it multiplies; the
chains of blocks, of which the first stay; the cost of the full, the half and the smallest sub-network; and what is
fixed, and why. `sortify inspect --picture FILE` draws it.
"""


def sortify(folder: Path, *words: str) -> str:
    """Run the command and return what it prints."""
    run = [sys.executable, "-m", "sortify_cli", *words]
    done = subprocess.run(
        run, cwd=folder, env={**os.environ, "COLUMNS": "118"}, capture_output=True, text=True, check=True
    )
    return done.stdout


def language_model(folder: Path) -> str:
    """A small LLaMA with two key-value heads for eight query heads, saved; its source as the command wants it."""
    config = LlamaConfig(
        vocab_size=4000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    return "transformers/llama"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--page", type=Path, help="write the page, and the pictures into assets/ beside it")
    page = parser.parse_args().page
    text = PAGE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, source in (
            ("vit_b_16", "torchvision/vit_b_16"),
            ("resnet50", "torchvision/resnet50"),
            ("LLaMA, four layers", language_model(folder)),
        ):
            sortify(folder, "convert", source, "--overwrite")
            shown = sortify(folder, "inspect")
            print(shown)
            text += f"\n## {title}\n\n```\n$ sortify convert {source}\n$ sortify inspect\n{shown.rstrip()}\n```\n"
            if page is not None:
                picture = page.parent / "assets" / f"inspect_{source.rpartition('/')[2]}.svg"
                sortify(folder, "inspect", "--picture", str(picture.resolve()))
                text += f"\n![costs and blocks of {title}](assets/{picture.name})\n"
    if page is not None:
        page.write_text(text + "\nMade by `python examples/inspect_models.py --page docs/inspect.md`.\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
