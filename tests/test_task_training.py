"""Every kind of task through data, training and evaluation, and the whole walk of commands for segmentation."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from cli_calls import call, errors, works
from PIL import Image
from torch import Tensor, nn
from training_models import LENGTH, make_model

from sortify import Data, SortedModel, TrainConfig, Trainer, TrainingError, evaluate, load, load_data, sortify, task_for
from sortify.data.batches import Share, Stream
from sortify.tasks.masked import MaskedLanguageModelling
from sortify.training.update import SortedUpdate

RNG = numpy.random.default_rng


class Segments(nn.Module):
    """[B, 1, 8, 8] to [B, 3, 4, 4]: residual blocks with batch-norm, and half the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1))
            for _ in range(2)
        )
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x)
        return out


def segments() -> SortedModel:
    """A sorted model that segments."""
    torch.manual_seed(0)
    return sortify(Segments().eval(), (torch.randn(2, 1, 8, 8),))


def blocks(count: int, seed: int) -> tuple[Any, Any]:
    """Pictures [N, 8, 8] of four squares in three shades, and which shade each pixel has."""
    shades = RNG(seed).integers(0, 3, (count, 2, 2))
    masks = shades.repeat(4, 1).repeat(4, 2).astype(numpy.uint8)
    return (masks * 90 + RNG(seed + 1).integers(0, 20, masks.shape)).astype(numpy.uint8), masks


def arrays(path: Path, make: Callable[[int, int], tuple[Any, Any]]) -> str:
    """Write an .npz file of what `make(count, seed)` gives."""
    (x_train, y_train), (x_test, y_test) = make(96, 0), make(48, 9)
    numpy.savez(path / "data.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return str(path / "data.npz")


def means(count: int, seed: int) -> tuple[Any, Any]:
    """Float pictures, and one number each."""
    x = RNG(seed).normal(size=(count, 1, 8, 8)).astype(numpy.float32)
    return x, x[:, 0, :2].sum((1, 2)) / 4 + 5


def bright(count: int, seed: int) -> tuple[Any, Any]:
    """Float pictures, and for each quarter whether it is bright."""
    labels = RNG(seed).integers(0, 2, (count, 4))
    return labels.repeat(16, 1).reshape(count, 1, 8, 8).astype(numpy.float32) - 0.5, labels


def text(path: Path) -> str:
    """Write a text in which each letter tells the next."""
    (path / "data.txt").write_text("the quick brown fox " * 200)
    return str(path / "data.txt")


def runs(path: Path) -> str:
    """Write a text in runs of one letter, as long as a sample of the models here."""
    letters = RNG(0).integers(97, 123, 300)
    (path / "data.txt").write_text("".join(chr(letter) * LENGTH for letter in letters))
    return str(path / "data.txt")


def table(path: Path) -> str:
    """Write a folder of two tables of texts with labels."""
    for part, count in (("train", 64), ("test", 32)):
        with (path / f"{part}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["id", "text", "label"])
            rows.writerows([n, "good, very good" if n % 3 else "bad", "yes" if n % 3 else "no"] for n in range(count))
    return str(path)


OWN = """
from sortify import OwnTask

def criterion(output, target):
    return (output.view(target.shape) - target).square()

def closeness(output, target):
    return 1 / (1 + criterion(output, target).mean())

task = OwnTask(criterion, {"closeness": closeness})
"""


@dataclass(frozen=True)
class Case:
    """One task: its model, data and name; how far loss must fall and score rise."""

    name: str
    model: Callable[[], SortedModel]
    data: Callable[[Path], str]
    task: str | None = None
    falls: float = 0.5
    score: float = 0.9


CASES = [
    Case("segmentation", segments, lambda path: arrays(path, blocks)),
    Case("regression", lambda: make_model("mlp-still", classes=1), lambda path: arrays(path, means), score=0.5),
    Case("multi-label", lambda: make_model("mlp-still", classes=4), lambda path: arrays(path, bright)),
    Case("masked-lm", lambda: make_model("lm-still"), runs, "masked-lm", score=0.6),
    Case("language-modelling", lambda: make_model("lm-still"), text),
    Case("classification", lambda: make_model("text-still", classes=2), table),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_lowers_the_loss_and_evaluation_tells_the_score(case: Case, tmp_path: Path) -> None:
    model = case.model()
    data = load_data(case.data(tmp_path), model=model, batch_size=16, task=case.task)
    task = task_for(data, model)
    assert task.name == case.name
    config = TrainConfig(steps=80, lr=0.01, accumulate=2, levels=2, save_minutes=None, device="cpu")
    before = evaluate(model, data, task, [model.space.full], recalibrate_batches=4)
    result = Trainer(model, data, config, progress=False).run()
    assert sum(result.losses[-8:]) < case.falls * sum(result.losses[:8])
    after = evaluate(model, data, task, recalibrate_batches=4)
    again = evaluate(model, data, task, recalibrate_batches=4)
    assert after.rows == again.rows
    assert after.full_row is not None
    assert before.full_row is not None
    assert after.full_row.metrics["loss"] < case.falls * before.full_row.metrics["loss"]
    assert after.score(after.full_row) > max(case.score, before.score(before.full_row))
    assert after.metric == task.metric


def test_a_task_of_ones_own_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_training_task.py").write_text(OWN)
    model = make_model("mlp-still", classes=64)
    x = torch.from_numpy(bright(64, 0)[0])
    loader = torch.utils.data.DataLoader(x, batch_size=16)  # type: ignore[arg-type]
    data = Data(loader, loader)
    try:
        task = task_for(data, model, "my_training_task:task")
    finally:
        sys.modules.pop("my_training_task", None)
    config = TrainConfig(steps=60, lr=0.01, levels=2, save_minutes=None, device="cpu")
    result = Trainer(model, data, config, task=task, progress=False).run()
    assert result.losses[-1] < 0.5 * result.losses[0]
    row = evaluate(model, data, task, [model.space.full]).full_row
    assert row is not None
    assert row.metrics["closeness"] > 0.8


# --- masks are functions of the place --------------------------------------------------------------------------------


class Stopped(Exception):
    """Stands for a power cut."""


def masked_trainer(path: Path, directory: Path, task: str = "masked-lm") -> Trainer:
    if not (directory / "sortify.json").exists():
        make_model("lm").save(directory)
    model = load(directory)
    data = load_data(text(path), model=model, batch_size=8, task=task)
    config = TrainConfig(steps=8, lr=0.01, accumulate=2, save_steps=3, save_minutes=None, device="cpu")
    return Trainer(model, data, config, directory=directory, progress=False)


def test_a_resumed_training_hides_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = masked_trainer(tmp_path, tmp_path / "whole").run()
    trainer, real = masked_trainer(tmp_path, tmp_path / "broken"), SortedUpdate.__call__

    def broken(self: SortedUpdate, *args: Any, **kwargs: Any) -> Any:
        if self.step == 5:
            raise Stopped
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SortedUpdate, "__call__", broken)
        with pytest.raises(Stopped):
            trainer.run()
    with pytest.raises(TrainingError, match="resume needs the settings it began with; changed: task"):
        masked_trainer(tmp_path, tmp_path / "broken", "language-modelling").run(resume=True)
    torch.manual_seed(123)  # what a new process would not have
    resumed = masked_trainer(tmp_path, tmp_path / "broken").run(resume=True)
    assert resumed.losses == whole.losses[3:]
    one, other = (load(tmp_path / name).state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_hide_what_one_hides_and_the_next_epoch_hides_others(tmp_path: Path) -> None:
    model = make_model("lm")
    data = load_data(text(tmp_path), model=model, batch_size=8, task="masked-lm")
    task = task_for(data, model)
    assert isinstance(task, MaskedLanguageModelling)
    streams = [Stream(data.train, 3, share) for share in (Share(), Share(0, 2), Share(1, 2))]
    per_epoch, seen = len(data.train), []
    for _ in range(2 * per_epoch):
        whole, first, second = (task.split(stream.take(), stream.last_seed) for stream in streams)
        assert torch.equal(whole[1], torch.cat([first[1], second[1]]))
        ids = [part[0].kwargs["input_ids"] for part in (whole, first, second)]
        assert torch.equal(ids[0], torch.cat(ids[1:]))
        seen.append(whole[1])
    assert not torch.equal(seen[0], seen[per_epoch])


# --- commands --------------------------------------------------------------------------------------------------------

FACTORY = """
import torch
from test_task_training import Segments

def net():
    torch.manual_seed(0)
    return Segments(), (torch.randn(2, 1, 8, 8),)

def tokens():
    from training_models import plain_model, example
    return plain_model("lm"), example("lm")
"""


def picture_folder(path: Path) -> Path:
    """Write pictures with masks: PNG pictures of another size, masks with a palette."""
    for part, count, seed in (("train", 32, 0), ("val", 16, 9)):
        pictures, masks = blocks(count, seed)
        for name in ("images", "masks"):
            (path / part / name).mkdir(parents=True)
        for index, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            Image.fromarray(picture).resize((16, 16), Image.Resampling.NEAREST).save(
                path / part / "images" / f"{index}.jpg"
            )
            coloured = Image.fromarray(mask).resize((16, 16), Image.Resampling.NEAREST).convert("P")
            coloured.putdata(mask.repeat(2, 0).repeat(2, 1).flatten().tolist())
            coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
            coloured.save(path / part / "masks" / f"{index}.png")
    return path


def test_the_walk_of_commands_for_segmentation(tmp_path: Path) -> None:
    (tmp_path / "segment_factory.py").write_text(FACTORY)
    folder = picture_folder(tmp_path / "pictures")
    works(tmp_path, "convert", "segment_factory:net")
    works(tmp_path, "order", "--by", "taylor", "--data", folder, "--batches", "2", "--batch-size", "8")
    train = ("--data", folder, "--levels", "2", "--steps", "40", "--lr", "0.01", "--batch-size", "8")
    assert "segmentation on " in works(tmp_path, "train", *train, "--recalibrate", "2").stdout
    shown = works(tmp_path, "evaluate", "--data", folder, "--recalibrate", "2").stdout
    assert "mean" in shown
    assert "segmentation on" in shown
    result = call(tmp_path, "evaluate", "--data", folder, "--task", "masked-lm")
    assert result.exit_code == 1
    assert errors(result) == [
        "error: masked-lm expects a model output [batch, positions, vocabulary], got shape [2, 3, 4, 4]; say --task "
        "NAME or package.module:function for one of your own"
    ]


def test_commands_take_a_task_by_name(tmp_path: Path) -> None:
    (tmp_path / "segment_factory.py").write_text(FACTORY)
    data = text(tmp_path)
    works(tmp_path, "convert", "segment_factory:tokens")
    given = ("--data", data, "--task", "masked-lm", "--batch-size", "8")
    works(tmp_path, "order", "--by", "taylor", "--batches", "2", *given)
    assert "masked-lm on " in works(tmp_path, "train", "--levels", "2", "--steps", "3", *given).stdout
    told = works(tmp_path, "evaluate", *given)
    assert "masked-lm on" in told.stdout
    assert errors(told) == []
    assert errors(works(tmp_path, "evaluate", "--data", data)) == [
        "warning: sorted was trained for masked-lm and is measured as language-modelling; say --task as in training"
    ]
