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

Before anything is trained, `sortify inspect` tells what will be cut and what it is worth. From top to bottom:

- **axes**: what can be made smaller. `encoder.layers.encoder_layer_*.mlp.inner`, 12 of size 3072, are twelve axes, one
  in each layer; `levels` are the sizes that quarter steps give, `tensors` carry them, and the shares say what cutting
  them is worth. `hidden` is the width of the stream that goes through all layers, so nearly everything carries it.
- **depth**: chains of blocks. A smaller depth keeps the first of them; blocks that stand in no chain always stay.
- **costs** of the full, the half and the smallest sub-network, and in words what half keeps.
- **what is not elastic**: what stays at its full size, how often, and why. `sortify inspect --why` tells each one with
  what would free it.

`sortify inspect --picture FILE` draws it. The lines above show what is left of the FLOPs when one group is cut alone,
or all at once; below stand the blocks with the widths inside them, full size and half size, and over each chain the
widths that go through it. Half the depth gives up the dashed blocks.
"""
MODELS = {
    "vit_b_16": """\
Half keeps six of twelve layers; in each of them six of twelve heads and half of the inner width; and half of the stream
that goes through all.
""",
    "resnet50": """\
The first block of each stage changes the size of the picture and stays; half the depth halves the others. Half the
width halves the channels inside every block and those between the blocks.
""",
    "LLaMA, four layers": """\
Eight query heads share two key-value heads: four query heads and their key-value head are cut as one.
""",
}


def sortify(folder: Path, *words: str) -> str:
    """Run the command and return what it prints."""
    run = [sys.executable, "-m", "sortify_cli", *words]
    done = subprocess.run(
        run, cwd=folder, env={**os.environ, "COLUMNS": "142"}, capture_output=True, text=True, check=True
    )
    return done.stdout


def tidy(shown: str) -> str:
    """Output without blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in shown.rstrip().splitlines())


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
            said = f"$ sortify convert {source}\n$ sortify inspect\n{tidy(shown)}"
            text += f"\n## {title}\n\n{MODELS[title]}\n```\n{said}\n```\n"
            if page is not None:
                picture = page.parent / "assets" / f"inspect_{source.rpartition('/')[2]}.svg"
                sortify(folder, "inspect", "--picture", str(picture.resolve()))
                text += f"\n![costs and blocks of {title}](assets/{picture.name})\n"
    if page is not None:
        page.write_text(text + "\nMade by `python examples/inspect_models.py --page docs/inspect.md`.\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
