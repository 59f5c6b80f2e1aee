"""Accuracy of a trained ResNet-20 cut to smaller widths without training, by order of its units.

    python examples/order_resnet20.py --weights resnet20.th --data cifar10.npz [--images 2000] [--page docs/order.md]

WEIGHTS is a ResNet-20 of the public repository github.com/akamaster/pytorch_resnet_cifar10; DATA holds x_train,
y_train, x_test, y_test as bytes `[N, 32, 32, 3]` and class numbers. For each order (as it is, magnitude, activation,
taylor) the same weights are cut to each width, and measured as they are and with batch-norm statistics measured anew.
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

from sortify import SortedModel, sortify

ORDERS = ("as it is", "magnitude", "activation", "taylor")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = list[tuple[Tensor, Tensor]]


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


def measured(
    weights: Path, train: Batches, test: Batches, widths: list[float]
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
    parser.add_argument("--page", type=Path, help="write the table here, too")
    options = parser.parse_args()
    started = time.monotonic()
    with np.load(options.data) as data:
        count = 128 * options.batches
        train = batches(as_in_training(data["x_train"][:count]), data["y_train"][:count], 128)
        test = batches(data["x_test"][: options.images], data["y_test"][: options.images], 250)
    head = ["order", "statistics", *(f"{width:g}" for width in options.widths)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    print(*lines, sep="\n", flush=True)
    for order, statistics, row in measured(options.weights, train, test, options.widths):
        lines.append(f"| {order} | {statistics} | {' | '.join(f'{value:.2f}' for value in row)} |")
        print(lines[-1], flush=True)
    if options.page is not None:
        options.page.write_text(page(lines, options), encoding="utf-8")
    print(f"{time.monotonic() - started:.0f} s")


def page(lines: list[str], options: argparse.Namespace) -> str:
    """The table with what it shows and the command that makes it."""
    text = (
        "# Importance order\n\n"
        f"Accuracy in percent of a trained ResNet-20 on {options.images:,} test images of CIFAR-10. All widths"
        " are cut to a fraction, and nothing is\ntrained. `order` is that of the units (`model.order`),"
        " `statistics` are the batch-norms': of the full network, or measured anew\non"
        f" {128 * options.batches:,} training images (crops and mirrored ones,"
        " as in its training), which also measure\nactivation and taylor."
    )
    command = (
        "python examples/order_resnet20.py --weights WEIGHTS --data DATA"
        f" --images {options.images} --batches {options.batches}"
        f" --widths {' '.join(f'{width:g}' for width in options.widths)} --page PAGE"
    )
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return "\n\n".join([text, "\n".join(lines), f"Made by `{command}` ({versions}).\n"])


if __name__ == "__main__":
    main()
