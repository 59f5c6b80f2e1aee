"""Checkpoints of every format version, in tests/golden/checkpoints/: made once by the sortify of that version.

    python tests/golden_checkpoints.py        make those of the present version; what is there stays as it is

Each version has three folders: a `whole` model, with trained levels, recalibrated statistics, ordered blocks and tied
weights; one in `parts`; and one in `shards`, from version 2 on. `expected.safetensors` beside the files of each holds
outputs on the example inputs, by sub-network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from parts_models import Router
from safetensors.torch import save_file
from torch import Tensor, nn
from zoo import randomize

from sortify import SortedModel, sortify
from sortify.models.manifest import VERSION
from sortify.space.space import Trained

FOLDER = Path(__file__).parent / "golden" / "checkpoints"
EXPECTED = "expected.safetensors"
WIDTHS = (1.0, 0.5)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.norm(self.up(x))))
        return out


class Network(nn.Module):
    """Tokens [N, T] to scores [N, 20]; the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.blocks, self.drop = nn.Sequential(*(Block() for _ in range(3))), nn.Dropout(0.1)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.blocks(self.embed(tokens).mean(1))))
        return out


def whole() -> SortedModel:
    tokens = torch.arange(28).reshape(4, 7) % 20
    model = sortify(randomize(Network(), 3), (tokens,)).eval()
    model.order("magnitude", blocks=True)
    model.record_trained(Trained((("width", WIDTHS), ("depth", (0.5, 1.0)))))
    with model.using(width=0.5):
        model.recalibrate([tokens])
    return model


def parts() -> SortedModel:
    rows = torch.linspace(-1, 1, 64).reshape(8, 8)
    return sortify(randomize(Router(), 3), (rows,)).eval()


def outputs(model: SortedModel) -> dict[str, Tensor]:
    """Of the full model and of narrower ones, on the example inputs."""
    args, kwargs = model.examples
    found = {}
    for width in WIDTHS:
        with model.using(width=width), torch.no_grad():
            found[str(width)] = model(*args, **kwargs).contiguous()
    return found


def make(name: str, build: Callable[[], SortedModel], **options: object) -> None:
    folder = FOLDER / f"v{VERSION}" / name
    if not folder.exists():
        torch.manual_seed(0)
        model = build()
        model.save(folder, **options)
        save_file(outputs(model), folder / EXPECTED)
        print(folder)


def main() -> int:
    make("whole", whole)
    make("parts", parts)
    if VERSION > 1:
        make("shards", whole, max_shard_size="1KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
