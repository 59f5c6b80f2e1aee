"""The whole way in one script: convert a ResNet, train 16 sub-networks, evaluate, extract at half the FLOPs.

Real data without a download: scikit-learn's 1,797 handwritten digits. The same network is also trained alone for the
same number of updates, for comparison. Run it with `make demo`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from sortify import TrainConfig, Trainer, draw, evaluate, load_data, sortify, task_for, write

LEVELS = (0.25, 0.5, 0.75, 1.0)


class Block(nn.Module):
    """A residual block, as in ResNet (arXiv 1512.03385): two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A ResNet for 8x8 pictures; nothing in it knows of sortify."""

    def __init__(self, classes: int = 10, blocks: int = 4, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = nn.Sequential(*(Block(width, width) for _ in range(blocks)))
        self.down = Block(width, 2 * width, stride=2)
        self.stage2 = nn.Sequential(*(Block(2 * width, 2 * width) for _ in range(blocks)))
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage2(self.down(self.stage1(self.stem(x)))).mean((2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps of each training")
    parser.add_argument("--sampler", default="sandwich", help="random or sandwich")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the results")
    options = parser.parse_args()
    console = Console()
    started = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[bold]{time.monotonic() - started:5.0f} s[/bold]  {text}")

    def new_model() -> nn.Module:
        torch.manual_seed(0)
        return ResNet()

    examples = (torch.randn(2, 1, 8, 8),)
    model = sortify(new_model(), examples, progress=True)
    axes, blocks = len(model.axes), sum(len(chain.blocks) for chain in model.chains.values())
    say(f"converted and proven: {axes} axes, {len(model.chains)} chains of {blocks} blocks in all")

    data = load_data("digits", batch_size=64, model=model)
    task = task_for(data, model)
    grid = model.space.grid(width=LEVELS, depth=LEVELS)
    config = TrainConfig(dims=("width", "depth"), steps=options.steps, sampler=options.sampler, lr=3e-3)
    say(f"training {len(grid)} sub-networks at once: {options.steps} steps, {options.sampler} sampler")
    family = Trainer(model, data, config, task=task, directory=options.out / "sorted").run(overwrite=True)
    evaluation = evaluate(model, data, task, grid, directory=options.out / "sorted")

    say("training the same network alone, for the same number of steps")
    alone = sortify(new_model(), examples)
    single = Trainer(alone, data, TrainConfig(dims=(), steps=options.steps, lr=3e-3), task=task).run()
    baseline = evaluate(alone, data, task, [alone.space.full])

    small = model.extract(budget=0.5)
    target = options.out / "half.pt2"
    write(small, model.example_tensors, target, "pt2")
    chosen = model.space.at(0.5)
    reloaded = torch.export.load(target).module()
    with torch.no_grad():
        batch = torch.randn(5, 1, 8, 8)
        difference = (reloaded(batch) - small.eval()(batch)).abs().max().item()
    picture, _ = draw(evaluation, options.out / "evaluation.png")

    console.print(evaluation.table())
    full, worst = evaluation.full_row, min(evaluation.rows, key=evaluation.relative)
    assert full is not None
    alone_score = baseline.score(baseline.rows[0])
    ratio = model.cost(chosen).flops / model.cost(model.space.full).flops
    console.print(f"full network in the family      {evaluation.score(full):.4f}  ({family.seconds:.0f} s for all 16)")
    console.print(f"the same network trained alone  {alone_score:.4f}  ({single.seconds:.0f} s for one)")
    console.print(f"weakest sub-network             {evaluation.relative(worst):.1%} of the full one ({worst.subnet})")
    console.print(f"extracted at half the FLOPs     {chosen}, {ratio:.1%} of the FLOPs: {target}")
    console.print(f"its file against the module     largest difference {difference:.1g}")
    say(f"picture: {picture}")


if __name__ == "__main__":
    main()
