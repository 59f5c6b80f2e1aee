"""What training does at random and no graph can hold is left out, and said; and training left out by the caller."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compare import assert_close_outputs
from torch import Tensor, nn

from sortify import SortedModel, load, sortify
from sortify.capture.capture import capture
from sortify.capture.prepare import LeftOut
from sortify.errors import CaptureError

SINGLE = 1e-6


def rows(samples: int = 3, width: int = 8) -> Tensor:
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(3))


def notes(model: SortedModel) -> list[str]:
    return [frozen.why for frozen in model.frozen if frozen.where == "capture"]


class LayerDrop(nn.Module):
    """In training each layer is skipped with some probability."""

    def __init__(self, drawn: Callable[[], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.out, self.drawn = nn.Linear(8, 5), drawn

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if self.training and self.drawn() < 0.5:
                continue
            x = x + layer(x).relu()
        out: Tensor = self.out(x)
        return out


@pytest.mark.parametrize(
    "drawn", [lambda: torch.rand([]), lambda: torch.rand(1), lambda: torch.rand(()).item(), lambda: torch.rand(1, 1)]
)
def test_layers_that_training_skips_at_random_are_always_run(drawn: Callable[[], Any]) -> None:
    original = LayerDrop(drawn)
    model = sortify(original, (rows(),))
    assert "parts that training skips at random are always run" in notes(model)
    assert [len(chain.blocks) for chain in model.chains.values()] == [3]
    assert_close_outputs(model.eval()(rows()), original.eval()(rows()), SINGLE)
    assert torch.equal(model.train()(rows()), model.eval()(rows()))


def test_a_decision_about_the_inputs_is_still_refused() -> None:
    with pytest.raises(CaptureError, match="data-dependent"):
        sortify(LayerDrop(lambda: 0.0 * torch.ones(1).sigmoid()), (rows(),))


class MasksOutside(nn.Module):
    """In training, or always, some rows are hidden, drawn without torch; the layers behind it know nothing of that."""

    def __init__(self, drawn: Callable[[int], Any], always: bool = False) -> None:
        super().__init__()
        self.drawn, self.always = drawn, always
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.always:
            x = x * (torch.tensor(self.drawn(len(x))) > 0.1)
        out: Tensor = self.out(self.layers(x))
        return out


@pytest.mark.parametrize("drawn", [lambda n: np.random.rand(n, 1), lambda n: [[random.random()] for _ in range(n)]])
def test_numbers_drawn_outside_torch_are_left_out_of_training(drawn: Callable[[int], Any]) -> None:
    """Only of the module that draws them: the dropout of another one stays."""
    before = np.random.get_state()[1].tobytes(), random.getstate()  # type: ignore[index, union-attr]
    original = nn.Sequential(MasksOutside(drawn), nn.Dropout(0.5))
    model = sortify(original, (rows(),))
    assert all(module.training for module in original.modules())
    assert (np.random.get_state()[1].tobytes(), random.getstate()) == before  # type: ignore[index, union-attr]
    assert any("numbers of 0: drawn by NumPy or Python's random" in text for text in notes(model))
    assert model.report is not None
    assert model.report.left_out == LeftOut(held_back=("0",))
    assert_close_outputs(model.eval()(rows()), original.eval()(rows()), SINGLE)
    assert not torch.equal(model.train()(rows()), model.eval()(rows()))


def test_numbers_drawn_outside_torch_in_any_mode_are_not_frozen_into_a_graph() -> None:
    original = MasksOutside(lambda n: np.random.rand(n, 1), always=True)
    with pytest.raises(CaptureError, match=r"draws numbers by NumPy or Python's random \((train|eval) mode\)"):
        capture(original, (rows(),))
    model = sortify(original, (rows(),))
    assert set(model.parts) == {"layers"}  # type: ignore[attr-defined]


class CannotTrain(nn.Module):
    """Training hangs on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.rise, self.out, self.drop = nn.Linear(8, 16), nn.Linear(16, 5), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and float(x.detach().sum()) > 1e9:
            x = -x
        out: Tensor = self.out(self.drop(self.rise(x).relu()))
        return out


def test_evaluation_alone_can_be_captured(tmp_path: Path) -> None:
    original = CannotTrain()
    with pytest.raises(CaptureError, match="train mode"):
        sortify(original, (rows(),))
    model = sortify(original, (rows(),), training=False)
    assert type(model) is SortedModel
    assert any(text.startswith("training=False") for text in notes(model))
    assert model.report is not None
    assert model.report.passed
    model.save(tmp_path / "saved")
    for one in (model, load(tmp_path / "saved")):
        assert_close_outputs(one.eval()(rows()), original.eval()(rows()), SINGLE)
        assert torch.equal(one.train()(rows()), one.eval()(rows()))
    half = model.space.subnet(width=0.5)
    with model.train().using(half):
        found = model(rows())
    assert_close_outputs(found, model.extract(subnet=half)(rows()), SINGLE)


def test_without_training_the_rest_of_what_is_told_stays() -> None:
    original = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    model = sortify(original, (rows(),), training=False)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model.train()(rows())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


class SeedsItself(nn.Module):
    """Noise in training from a generator that the model seeds anew in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            torch.seed()
            x = x + torch.rand_like(x)
        out: Tensor = self.layers(x)
        return out


def test_a_model_that_never_gives_the_same_twice_goes_by_parts() -> None:
    model = sortify(SeedsItself(), (rows(),))
    assert set(model.parts) == {"layers"}  # type: ignore[attr-defined]
    assert any("other outputs when it is called again" in frozen.why for frozen in model.frozen)
