"""Ways to train a family, side by side: at equal updates and at equal compute, several seeds, mean and spread.

A small ResNet at four widths on scikit-learn's digits, or on any pictures in a file (x_train, y_train, x_test, y_test),
such as Fashion-MNIST. One row per way to train:

- every size trained by itself;
- all widths in every step (Slimmable networks, arXiv 1812.08928), and the sandwich (US-Nets, arXiv 1903.05134) with and
  without its distillation;
- random draws, 1, 2 and 4 a step (SortedNet, arXiv 2309.00255);
- further recipes of this library.

"Equal updates" gives all the same optimiser steps. "Equal compute" gives all the FLOPs of the full network trained
alone for that many steps: who trains small sub-networks gets more steps. By itself every size gets its share of them.

    python examples/study.py --page docs/study.md
    python examples/study.py --data fashion_mnist.npz --steps 600 --page docs/study-fashion.md

Runs that stand in the results file are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from sortify import (
    SortedModel,
    SortedUpdate,
    TrainConfig,
    Trainer,
    evaluate,
    load_data,
    make_objective,
    make_sampler,
    sortify,
    task_for,
)

WIDTHS = (0.25, 0.5, 0.75, 1.0)
LEVELS = (("width", WIDTHS),)
EQUAL = ("updates", "compute")
ALONE = "each size by itself"


@dataclass(frozen=True)
class Recipe:
    """A way to train: its name in the table, and what differs from the common settings."""

    name: str
    sampler: str = "random"
    count: int = 1
    options: dict[str, Any] = field(default_factory=dict)


RECIPES = (
    Recipe("all widths each step", "round-robin", 4, {"share_batch": True}),
    Recipe("sandwich", "sandwich", 4),
    Recipe("sandwich, distilled from the largest", "sandwich", 4, {"objective": "distill", "teacher": 1.0}),
    Recipe("random, 1 a step", "random", 1),
    Recipe("random, 2 a step", "random", 2),
    Recipe("random, 4 a step", "random", 4),
    Recipe("weighted, 1 a step", "weighted", 1),
    Recipe("by cost, 1 a step", "by-cost", 1),
    Recipe("stratified, 2 a step", "stratified", 2),
    Recipe("weighted, 2 a step, chain", "weighted", 2, {"objective": "chain"}),
    Recipe("stratified, 2 a step, chain", "stratified", 2, {"objective": "chain"}),
    Recipe("stratified, 4 a step, chain", "stratified", 4, {"objective": "chain"}),
    Recipe("sandwich, chain", "sandwich", 4, {"objective": "chain"}),
)


class Block(nn.Module):
    """A residual block, as in ResNet (arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """Two stages; pictures of 16 pixels and more are halved by the stem."""

    def __init__(self, side: int, channels: int, classes: int, width: int) -> None:
        super().__init__()
        step = 2 if side >= 16 else 1
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, step, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = nn.Sequential(Block(width, width))
        self.stage2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width))
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


class Study:
    """One network and one set of data, all ways to train."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        shape = self._shape()
        self.new = lambda: ResNet(shape[-1], shape[0], options.classes, options.width)
        self.model = sortify(self.new(), (torch.randn(2, *shape),))
        self.data = load_data(options.data, batch_size=options.batch_size, model=self.model)
        self.task = task_for(self.data, self.model)
        self.members = self.model.space.grid(width=WIDTHS)
        self.flops = [self.model.cost(member).flops for member in self.members]

    def _shape(self) -> tuple[int, ...]:
        if self.options.data == "digits":
            return (1, 8, 8)
        pixels = numpy.load(self.options.data)["x_test"]
        return (1, *pixels.shape[1:]) if pixels.ndim == 3 else (pixels.shape[-1], *pixels.shape[1:3])

    def runs(self) -> Iterator[tuple[str, str, int]]:
        """What to measure: way to train, what is equal, seed."""
        for seed in range(self.options.seeds):
            for equal in EQUAL:
                yield from ((name, equal, seed) for name in (ALONE, *(recipe.name for recipe in RECIPES)))

    def measure(self, name: str, equal: str, seed: int) -> dict[str, Any]:
        """Train and evaluate."""
        started = time.monotonic()
        if name == ALONE:
            share = 1.0 if equal == "updates" else self.flops[-1] / sum(self.flops)
            steps = round(self.options.steps * share)
            scores = [self._alone(width, steps, seed) for width in WIDTHS]
            cost = steps * sum(self.flops)
        else:
            recipe = next(recipe for recipe in RECIPES if recipe.name == name)
            steps, cost = self._steps(recipe, equal, seed)
            scores = self._family(recipe, steps, seed)
        return {
            "name": name,
            "equal": equal,
            "seed": seed,
            "steps": steps,
            "cost": cost / (self.options.steps * self.flops[-1]),
            "scores": scores,
            "seconds": time.monotonic() - started,
        }

    def _config(self, steps: int, seed: int, **options: Any) -> TrainConfig:
        settings = {"dims": ("width",), "lr": self.options.lr, "device": "cpu", "levels": {"width": WIDTHS}, **options}
        return TrainConfig(steps=steps, seed=seed, recalibrate=0, **settings)

    def _fresh(self, seed: int) -> SortedModel:
        torch.manual_seed(seed)
        self.model.load_state_dict(self.new().state_dict())
        self.model.activate()
        return self.model

    def _alone(self, width: float, steps: int, seed: int) -> float:
        model = self._fresh(seed)
        config = self._config(steps, seed, levels={"width": (width,)})
        Trainer(model, self.data, config, task=self.task).run()
        return self._scores([model.space.subnet(width=width)])[0]

    def _family(self, recipe: Recipe, steps: int, seed: int) -> list[float]:
        model = self._fresh(seed)
        config = self._config(steps, seed, sampler=recipe.sampler, accumulate=recipe.count, **recipe.options)
        Trainer(model, self.data, config, task=self.task).run()
        return self._scores(self.members)

    def _scores(self, members: list[Any]) -> list[float]:
        found = evaluate(self.model, self.data, self.task, members, recalibrate_batches=20)
        return [found.score(row) for member in members if (row := found.row(member)) is not None]

    def _steps(self, recipe: Recipe, equal: str, seed: int) -> tuple[int, int]:
        """How many optimiser steps, and the FLOPs that they take (one sample, forward)."""
        space = self.model.space
        sampler = make_sampler(recipe.sampler, space, LEVELS, recipe.count, self.options.steps)
        objective = make_objective(recipe.options.get("objective", "task"), space, LEVELS)
        update, spent, most = SortedUpdate(self.model, sampler, seed, objective=objective), 0, self.options.steps
        limit = most * self.flops[-1] if equal == "compute" else math.inf
        cost = dict(zip(self.members, self.flops, strict=True))
        while update.step < (most if equal == "updates" else 10**6):
            step = sum(cost[subnet] for subnet in update.draw())
            if spent + step > limit:
                break
            spent, update.step = spent + step, update.step + 1
        return update.step, spent


def page(study: Study, rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The results as Markdown."""
    told = [f"# Ways to train: {Path(options.data).stem}", "", *intro(study, options), ""]
    for equal in EQUAL:
        told += [f"## Equal {equal}", "", head(), "|" + " --- |" * (len(WIDTHS) + 4)]
        found = {
            name: [r for r in rows if r["name"] == name and r["equal"] == equal]
            for name in dict.fromkeys(row["name"] for row in rows)
        }
        best = max((m for name, own in found.items() if own and name != ALONE for m in [mean_score(own)]), default=0.0)
        told += [line(name, own, best) for name, own in found.items() if own]
        told += ["", *conclusion(equal, {name: own for name, own in found.items() if own}), ""]
    names = ("data", "steps", "batch_size", "width", "lr", "seeds")
    told_options = " ".join(f"--{n.replace('_', '-')} {shown(getattr(options, n))}" for n in names)
    command = f"python examples/study.py {told_options} --page PAGE"
    return "\n".join([*told, f"Made by `{command}` (torch {torch.__version__}).", ""])


def conclusion(equal: str, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Which family did best, beside what every size trained by itself comes to."""
    families = {name: mean_score(own) for name, own in found.items() if name != ALONE}
    if not families or ALONE not in found:
        return []
    best = max(families, key=families.__getitem__)
    text = (
        f"At equal {equal} the best family is *{best}*: {100 * families[best]:.2f} in the mean of all widths, against "
        f"{100 * mean_score(found[ALONE]):.2f} of sizes that are trained by themselves."
    )
    return textwrap.wrap(text, 118)


def shown(value: Any) -> str:
    """An option as one would type it, files by their names."""
    return Path(value).name if isinstance(value, str) else f"{value:g}"


def intro(study: Study, options: argparse.Namespace) -> list[str]:
    """What was done, in a few lines."""
    widths, size = ", ".join(f"{w:g}" for w in WIDTHS), sum(p.numel() for p in study.new().parameters())
    share = ", ".join(f"{flops / study.flops[-1]:.0%}" for flops in study.flops)
    text = (
        f"Accuracy in percent on the test pictures, mean of {options.seeds} seeds and their standard deviation, of a "
        f"ResNet ({size:,} parameters) at widths {widths} (FLOPs {share} of the full one). {options.steps} optimiser "
        f"steps, batches of {options.batch_size}, AdamW, largest rate {options.lr:g}, cosine; batch-norm statistics "
        "measured anew for each width. *Compute* is that of the training, in full networks trained alone for as many "
        "steps. The best mean of a family is bold."
    )
    return textwrap.wrap(text, 118)


def head() -> str:
    return "| | steps | compute | " + " | ".join(f"{width:g}" for width in WIDTHS) + " | mean |"


def mean_score(own: list[dict[str, Any]]) -> float:
    return statistics.mean(statistics.mean(row["scores"]) for row in own)


def line(name: str, own: list[dict[str, Any]], best: float) -> str:
    """One way to train."""
    columns = [[100 * row["scores"][place] for row in own] for place in range(len(WIDTHS))]
    means = [100 * statistics.mean(row["scores"]) for row in own]
    told = [spread(column) for column in columns] + [spread(means)]
    if mean_score(own) == best and name != ALONE:
        told[-1] = f"**{told[-1]}**"
    steps, cost = statistics.mean(row["steps"] for row in own), statistics.mean(row["cost"] for row in own)
    return f"| {name} | {steps:.0f} | {cost:.2f} | " + " | ".join(told) + " |"


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.2f}"


def known(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of these settings that were made already."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["settings"] == settings]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, or a file of pictures")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of equal updates")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/study.jsonl"), help="results, added to")
    parser.add_argument("--page", type=Path, help="where to write the tables")
    options = parser.parse_args()
    study = Study(options)
    names = ("data", "steps", "batch_size", "width", "lr")
    settings = {name: getattr(options, name) for name in names} | {"data": Path(options.data).stem}
    rows = known(options.out, settings)
    done = {(row["name"], row["equal"], row["seed"]) for row in rows}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with Progress(*columns) as bar:
        todo = list(study.runs())
        shown = bar.add_task("study", total=len(todo))
        for run in todo:
            bar.update(shown, description=run[0])
            if run not in done:
                rows.append({**study.measure(*run), "settings": settings})
                with options.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
            bar.advance(shown)
    order = {name: place for place, name in enumerate((ALONE, *(recipe.name for recipe in RECIPES)))}
    text = page(study, sorted(rows, key=lambda row: order.get(row["name"], len(order))), options)
    print(text)
    if options.page:
        options.page.write_text(text)


if __name__ == "__main__":
    main()
