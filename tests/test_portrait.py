"""The picture before training: lines of costs, chains with what lives in their blocks, and the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_calls import call
from torch import Tensor, nn

from sortify import SortedModel, draw_model, sortify
from sortify.reporting.portrait import chains_of, cost_lines, labels, outside, told


class Block(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, inner), nn.Linear(inner, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.as_tensor(self.down(self.up(x).relu()))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 5)
        self.blocks = nn.Sequential(*(Block(16) for _ in range(14)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.last(self.blocks(self.first(x))))


@pytest.fixture(scope="module")
def model() -> SortedModel:
    torch.manual_seed(0)
    return sortify(Net(), (torch.rand(2, 8),))


def test_lines_are_the_costs_of_sub_networks(model: SortedModel) -> None:
    lines = {line.name: line for line in cost_lines(model)}
    assert set(lines) == {"width", "depth", "all together"}
    full = model.cost(model.space.full)
    for name, cut in (("width", {"width": 0.5}), ("all together", {"width": 0.5, "depth": 0.5})):
        half = model.cost(model.space.subnet(**cut))
        place = lines[name].fractions.index(0.5)
        assert lines[name].flops[place] == half.flops / full.flops
        assert lines[name].params[place] == half.params / full.params
    assert all(line.flops[-1] == line.params[-1] == 1 for line in lines.values())


def test_chains_tell_what_lives_in_each_block_and_what_passes_through(model: SortedModel) -> None:
    (strip,) = chains_of(model)
    assert [[axis.size for axis in axes] for _, axes in strip.blocks] == [[16]] * 14
    assert [(axis.kind, axis.size) for axis in strip.stream] == [("hidden", 12)]
    assert strip.kept == 7
    half = dict(model.space.subnet(width=0.5, depth=0.5).sizes)
    assert told([*strip.stream, *strip.blocks[0][1], *strip.blocks[0][1]], half) == "hidden 12 → 6\ninner 2 x 16 → 8"
    assert outside(model, [strip]) == []
    assert [axis.kind for axis in outside(model, [])] == ["hidden", *["inner"] * 14]


def test_labels_are_as_short_as_they_can_be() -> None:
    assert labels(["a.layer_0", "a.layer_11"]) == ["0", "11"]
    assert labels(["a.0", "a.1"]) == ["0", "1"]
    assert labels(["a.attention", "a.feed"]) == ["attention", "feed"]
    assert labels(["a.x1", "a.y2"]) == ["x1", "y2"]
    assert labels(["a.block"]) == ["block"]


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_the_picture_is_written(model: SortedModel, tmp_path: Path, ending: str, start: bytes) -> None:
    path = draw_model(model, tmp_path / f"model.{ending}")
    assert path.read_bytes().startswith(start)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_picture_says_nothing_of_when_and_by_what_it_was_made(model: SortedModel, tmp_path: Path) -> None:
    assert "metadata" not in draw_model(model, tmp_path / "model.svg").read_text("utf-8")


def test_the_command_draws(model: SortedModel, tmp_path: Path) -> None:
    model.save(tmp_path / "sorted")
    result = call(tmp_path, "inspect", "--picture", "model.svg")
    assert result.exit_code == 0, result.output
    assert "saved: model.svg" in result.output
    assert (tmp_path / "model.svg").stat().st_size > 1000


def test_an_unknown_kind_of_picture_is_one_line(model: SortedModel, tmp_path: Path) -> None:
    model.save(tmp_path / "sorted")
    result = call(tmp_path, "inspect", "--picture", "model.doc")
    assert result.exit_code == 1
    assert "model.doc" in result.stderr
    assert not (tmp_path / "model.doc").exists()
