"""160 sub-networks in one training: 16 widths and 10 depths of a residual network, on Fashion-MNIST or the like.

The same network is trained alone first. The family then gets a share of the compute (FLOPs) that this took, is
evaluated member by member, and both times are told. Nothing is tuned for a size. `--model resnet` is for a GPU: what
small convolutions cost a processor is not their FLOPs.

    python examples/many.py --data fashion_mnist.npz --out out/many --page docs/many.md

A training that is finished is not made again, and evaluated members stay.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from sortify import (
    Evaluation,
    SortedModel,
    SortedUpdate,
    TrainConfig,
    Trainer,
    draw,
    evaluate,
    load,
    load_data,
    make_sampler,
    sortify,
    task_for,
)

WIDTHS = tuple(round(0.25 + 0.05 * step, 2) for step in range(16))
DEPTHS = tuple(round(0.1 * step, 1) for step in range(1, 11))
LEVELS = {"width": WIDTHS, "depth": DEPTHS}
console = Console()


class Layer(nn.Module):
    """A residual block of two linear layers, normalised first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(nn.functional.gelu(self.inner(self.norm(x))))


class ResMLP(nn.Module):
    """The picture as one vector, then ten blocks of one width."""

    def __init__(self, width: int, pixels: int = 28 * 28, classes: int = 10, blocks: int = 10) -> None:
        super().__init__()
        self.stem = nn.Linear(pixels, width)
        self.blocks = nn.Sequential(*(Layer(width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x.flatten(1)))))


class Block(nn.Module):
    """A residual block of two convolutions, as in ResNet (arXiv 1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class ResNet(nn.Module):
    """Two convolutions that halve the picture, then ten blocks of one width."""

    def __init__(self, width: int, channels: int = 1, classes: int = 10, blocks: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.down(self.stem(x))).mean((2, 3)))


KINDS = {"mlp": "Ten residual blocks of two linear layers", "resnet": "Ten residual blocks of two convolutions"}
MODELS = {"mlp": ResMLP, "resnet": ResNet}


def new_model(options: argparse.Namespace) -> SortedModel:
    torch.manual_seed(0)
    return sortify(MODELS[options.model](options.width), (torch.randn(2, 1, 28, 28),))


def config_of(options: argparse.Namespace, steps: int, **changed: Any) -> TrainConfig:
    return TrainConfig(
        steps=steps, lr=options.lr, weight_decay=0.05, log="none", device=options.device, save_minutes=2.0, **changed
    )


def family_steps(model: SortedModel, options: argparse.Namespace) -> int:
    """As many steps as a share of the compute of the full network's training pays for."""
    space, spent, step = model.space, 0, 0
    cost = {member: model.cost(member).flops for member in space.grid(**LEVELS)}
    levels = tuple(LEVELS.items())
    update = SortedUpdate(model, make_sampler(options.sampler, space, levels, options.accumulate, options.steps))
    while True:
        spent += sum(cost[subnet] for subnet in update.draw())
        if spent > options.compute * options.steps * cost[space.full]:
            return step
        step = update.step = step + 1


def trained(model: SortedModel, data: Any, config: TrainConfig, directory: Path) -> tuple[SortedModel, float]:
    """Train, or take what was trained before; the model, and the seconds that it took."""
    seconds = directory / "seconds.json"
    if not seconds.exists():
        spent = Trainer(model, data, config, directory=directory, progress=True).run(overwrite=True).seconds
        seconds.write_text(json.dumps(spent))
    return load(directory), float(json.loads(seconds.read_text()))


def _ends(found: Evaluation) -> list[tuple[str, Any]]:
    """The members with the full width and the least depth, and the reverse."""
    wanted = {"full width": {"width": 1.0, "depth": DEPTHS[0]}, "full depth": {"width": WIDTHS[0], "depth": 1.0}}
    return [(name, row) for name, at in wanted.items() for row in found.rows if dict(row.subnet.fractions) == at]


def page(found: Evaluation, alone: float, times: tuple[float, float], steps: int, options: argparse.Namespace) -> str:
    """The outcome as Markdown."""
    full, worst = found.full_row, min(found.rows, key=found.relative)
    assert full is not None
    score = found.score(full)
    names = ("model", "steps", "compute", "width", "lr", "batch_size", "augment", "sampler", "accumulate", "device")
    told = " ".join(f"--{name.replace('_', '-')} {getattr(options, name)}" for name in names)
    rows = [
        ("full network alone", f"{alone:.2%}", f"{options.steps} steps"),
        ("full network in the family", f"{score:.2%}", f"{steps} steps for all {len(found.rows)}"),
        (
            "weakest of the family",
            f"{found.score(worst):.2%}",
            f"{found.relative(worst):.1%} of the full one: {worst.subnet}",
        ),
        *((f"{name}, the other at its smallest", f"{found.score(row):.2%}", "") for name, row in _ends(found)),
        ("median of the family", f"{sorted(map(found.score, found.rows))[len(found.rows) // 2]:.2%}", ""),
        ("training time of the family", f"{times[1] / times[0]:.2f}", "of the full network's alone"),
    ]
    return "\n".join(
        [
            "# 160 sub-networks in one training",
            "",
            f"{KINDS[options.model]} on Fashion-MNIST (60,000 pictures to train, 10,000 to",
            f"test): 16 widths from {WIDTHS[0]:g} to 1, 10 depths, trained at once with {options.compute:.0%} of the",
            f"FLOPs that the full network takes alone; {options.sampler} sampler, {options.accumulate} a step.",
            "",
            "| | | |",
            "| --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            "![Accuracy against FLOPs, and the heat map of width and depth](assets/many.svg)",
            "",
            f"Made by `python examples/many.py --data {Path(options.data).name} {told} --page PAGE` "
            f"(torch {torch.__version__}).",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", required=True, help="a file of pictures of 28x28 pixels: x_train, y_train, x_test, y_test"
    )
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps of the full network alone")
    parser.add_argument("--compute", type=float, default=0.9, help="the family's share of the compute of these steps")
    parser.add_argument("--width", type=int, default=512, help="units or channels of the full network")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--augment", default="none", help="none, shift or shift-flip")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/many"))
    parser.add_argument("--page", type=Path, help="where to write the outcome; the picture goes to assets/ beside it")
    options = parser.parse_args()
    model = new_model(options)
    data = load_data(options.data, batch_size=options.batch_size, model=model, augment=options.augment)
    task = task_for(data, model)
    steps = family_steps(model, options)
    single, alone_seconds = trained(
        new_model(options), data, config_of(options, options.steps, dims=()), options.out / "alone"
    )
    alone = evaluate(single, data, task, [single.space.full], directory=options.out / "alone")
    drawing = {"levels": LEVELS, "sampler": options.sampler, "accumulate": options.accumulate, "recalibrate": 20}
    config = config_of(options, steps, dims=("width", "depth"), **drawing)
    family, seconds = trained(model, data, config, options.out / "family")
    found = evaluate(family, data, task, family.space.grid(**LEVELS), directory=options.out / "family")
    text = page(found, alone.score(alone.rows[0]), (alone_seconds, seconds), steps, options)
    console.print(text, markup=False)
    picture, vector = draw(found, options.out / "many.png")
    console.print(f"picture: {picture}")
    if options.page:
        options.page.write_text(text)
        (options.page.parent / "assets").mkdir(exist_ok=True)
        shutil.copy(vector, options.page.parent / "assets" / "many.svg")


if __name__ == "__main__":
    main()
