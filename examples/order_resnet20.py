"""Accuracy of a trained ResNet-20 cut to smaller widths, by order of its units, before and after an epoch of training.

    python examples/order_resnet20.py --weights resnet20.th --data cifar10.npz [--images 2000] [--page docs/order.md]

WEIGHTS is a ResNet-20 of the public repository github.com/akamaster/pytorch_resnet_cifar10; DATA holds x_train,
y_train, x_test, y_test as bytes `[N, 32, 32, 3]` and class numbers. For each order (as it is, magnitude, activation,
taylor) the same weights are cut to each width, and measured as they are, with batch-norm statistics measured anew, and
after one epoch of sorted training on FINETUNE images, which draws one width for each step.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sortify import SortedModel, SortedUpdate, make_sampler, sortify

ORDERS = ("as it is", "magnitude", "activation", "taylor")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = list[tuple[Tensor, Tensor]]
HEAD = """# Importance order

A sub-network keeps the first units of every axis. In weights that were trained in the usual way, the first units are no
better than others, so cutting throws away good ones. `model.order(by=...)` or `sortify order` sorts the units of every
axis, the most important first. It permutes every tensor that carries the axis, so the full network computes the same,
which is checked; what smaller ones compute changes. Order before sorted training, not after: training makes the first
units the good ones.

- `magnitude`: the length of a unit's slice of each weight, relative to the mean of that weight's slices; needs no data.
- `activation`: the mean absolute output of the operations whose weights carry the axis, relative in the same way.
- `taylor`: the sum of |weight x gradient of the loss| over a unit's slices (arXiv 1906.10771).

With `blocks=True` (`--blocks`) the blocks of every chain are ranked too: by the length of their weights, by how much
they change what goes through them, or by weight x gradient. A smaller depth then gives up the least important blocks,
and those that stay run in their own order. Where an operation outside the blocks is run for them (a mask that all of
them read), its cost was counted with the first block that reads it: that block then stays first, and a line says so.

## A trained ResNet-20
"""


class Block(nn.Module):
    """Two convolutions; where the size changes, the shortcut skips pixels and is padded with zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` to `[N, outputs, H / stride, W / stride]`."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return torch.relu(y + x)


class ResNet20(nn.Module):
    """Three stages of three blocks (arXiv 1512.03385, section 4.2), with the names of the public weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, 32, 32]` to logits `[N, 10]`."""
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def original(weights: Path) -> nn.Module:
    """The trained network."""
    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    module = ResNet20()
    module.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return module.eval()


def batches(images: np.ndarray, labels: np.ndarray, size: int) -> Batches:
    """Normalised batches."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
    return list(zip(x.split(size), torch.from_numpy(labels).long().split(size), strict=True))


def as_in_training(images: np.ndarray) -> np.ndarray:
    """Crops of the images with a black border of 4 pixels, half of them mirrored: what the statistics were made of."""
    chance = np.random.default_rng(0)
    bordered = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    places = chance.integers(0, [9, 9, 2], (len(images), 3))
    crops = [x[top : top + 32, left : left + 32] for x, (top, left, _) in zip(bordered, places, strict=True)]
    return np.stack([x[:, ::-1] if mirrored else x for x, (_, _, mirrored) in zip(crops, places, strict=True)])


def accuracy(model: SortedModel, data: Batches) -> float:
    """The share of images whose class is right, in percent."""
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data)
    return 100 * right / sum(len(y) for _, y in data)


def train_sorted(model: SortedModel, data: Batches, widths: list[float], rate: float = 0.02) -> None:
    """One epoch: for each step one width at random, the rate falling to zero as a cosine."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(data))
    update = SortedUpdate(model, make_sampler("random", model.space, (("width", tuple(sorted(widths))),)))
    for x, y in data:
        update(lambda x=x, y=y: nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def measured(
    weights: Path, train: Batches, test: Batches, widths: list[float], tuning: Batches
) -> Iterator[tuple[str, str, list[float]]]:
    """Order, statistics, and the accuracy at each width."""
    for order in ORDERS:
        model = sortify(original(weights), (torch.zeros(2, 3, 32, 32) + train[0][0][:2],)).eval()
        if order != "as it is":
            done = model.order(order, train, len(train))
            print(f"{order}: outputs differ by {done.error:.1e}", flush=True)
        rows: dict[str, list[float]] = {"of the full network": [], "measured anew": []}
        for width in widths:
            with model.using(width=width):
                rows["of the full network"].append(accuracy(model, test))
                model.recalibrate(train, len(train))
                rows["measured anew"].append(accuracy(model, test))
        yield from ((order, statistics, row) for statistics, row in rows.items())
        if tuning:
            train_sorted(model, tuning, widths)
            trained = []
            for width in widths:
                with model.using(width=width):
                    model.recalibrate(train, len(train))
                    trained.append(accuracy(model, test))
            yield order, "after an epoch, measured anew", trained


def main() -> None:
    """Print the table; write it as a page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="the weights of a ResNet-20")
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--images", type=int, default=10000, help="number of test images")
    parser.add_argument(
        "--batches", type=int, default=20, help="batches of 128 training images, to order and recalibrate"
    )
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0, 0.875, 0.75, 0.625, 0.5, 0.25])
    parser.add_argument("--finetune", type=int, default=25600, help="training images of the epoch; 0 for none")
    parser.add_argument("--page", type=Path, help="write the table here, too")
    options = parser.parse_args()
    started = time.monotonic()
    with np.load(options.data) as data:
        count = 128 * options.batches
        train = batches(as_in_training(data["x_train"][:count]), data["y_train"][:count], 128)
        tuning = batches(as_in_training(data["x_train"][: options.finetune]), data["y_train"][: options.finetune], 128)
        test = batches(data["x_test"][: options.images], data["y_test"][: options.images], 250)
    head = ["order", "statistics", *(f"{width:g}" for width in options.widths)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    print(*lines, sep="\n", flush=True)
    for order, statistics, row in measured(
        options.weights, train, test, options.widths, tuning if options.finetune else []
    ):
        lines.append(f"| {order} | {statistics} | {' | '.join(f'{value:.2f}' for value in row)} |")
        print(lines[-1], flush=True)
    if options.page is not None:
        options.page.write_text(page(lines, options), encoding="utf-8")
    print(f"{time.monotonic() - started:.0f} s")


def page(lines: list[str], options: argparse.Namespace) -> str:
    """The table with what it shows and the command that makes it."""
    text = (
        f"{HEAD}\nAccuracy in percent of a trained ResNet-20 on {options.images:,} test images of CIFAR-10; all widths"
        " are cut to a fraction.\n`order` is that of the units, `statistics` are the batch-norms': of the full network,"
        f" or measured anew on {128 * options.batches:,}\ntraining images (crops and mirrored ones, as in training),"
        " which also measure activation and taylor."
    )
    if options.finetune:
        text += (
            f" The\nlast rows are those after one epoch of sorted training on {options.finetune:,} training images:"
            " for each batch of 128\none of these widths at random, SGD with a rate that falls from 0.02 to zero."
        )
    command = (
        "python examples/order_resnet20.py --weights WEIGHTS --data DATA"
        f" --images {options.images} --batches {options.batches} --finetune {options.finetune}"
        f" --widths {' '.join(f'{width:g}' for width in options.widths)} --page PAGE"
    )
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return "\n\n".join([text, "\n".join(lines), f"Made by `{command}` ({versions}).\n"])


if __name__ == "__main__":
    main()
