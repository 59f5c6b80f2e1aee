"""The report: it is complete at every stage, tells the numbers of the model, escapes what it is given, and asks for
nothing from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from cli_calls import call, errors, works
from html_page import faults, read
from test_evaluate import grid, made, subnet
from torch import nn
from training_models import make_model
from training_script import make_data

from sortify import SortedModel, load, sortify, write_report
from sortify.data.load import load_data
from sortify.evaluate import Evaluation, Row, evaluate, quantity, write_evaluation
from sortify.reporting import page
from sortify.reporting.describe import frozen_reasons
from sortify.space.space import Subnet
from sortify.tasks.classes import Classification
from sortify.training.config import TrainConfig
from sortify.training.train import Trainer

SECTIONS = ("evaluation", "training", "cost", "profile", "axes", "depth", "fixed")


# --- the checks can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        '<link rel="stylesheet" href="https://arxiv.org/a.css">',
        '<a href="page.html">x</a>',
        '<svg aria-label="x"><image href="//arxiv.org/a.png"/></svg>',
        '<img src="data:image/png;base64,AAAA">',
        '<svg aria-label="x"><rect fill="url(https://arxiv.org/a.svg#b)"/></svg>',
        '<p style="background: url(a.png)">x</p>',
        '<meta http-equiv="refresh" content="0">',
        '<p onclick="x()">x</p>',
        "<script>fetch('a')</script>",
        "<style>@import 'a.css';</style>",
        "<b><i></b></i>",
        "<p>",
        "<marquee>x</marquee>",
        '<p id="cost">x</p>',
        '<a href="#nowhere">x</a>',
        "<svg></svg>",
    ],
)
def test_a_wrong_page_is_seen(wrong: str, converted: Path) -> None:
    html = write_report(converted, converted / "again.html").read_text()
    assert faults(html) == []
    assert faults(html.replace("</main>", wrong + "</main>")) != []


def test_a_page_with_another_script_or_policy_is_seen(converted: Path) -> None:
    html = write_report(converted, converted / "again.html").read_text()
    assert faults(html.replace("Sortable", "Sorted")) != []
    assert faults(html.replace("default-src 'none'", "default-src *")) != []


# --- stages ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "model"
    make_model("mlp").save(folder)
    return folder


@pytest.fixture(scope="module")
def trained(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    shutil.copytree(converted, folder)
    settings = TrainConfig(steps=20, levels=2, sampler="sandwich", device="cpu")
    Trainer(load(folder), make_data("mlp", 8), settings, directory=folder, progress=False).run()
    return folder


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "model"
    shutil.copytree(trained, folder)
    model = load(folder)
    evaluate(model, load_data("digits"), Classification(), directory=folder)
    model.profile("cpu", subnets=6, seconds=0.01)
    model.save(folder)
    return folder


def test_a_converted_model_tells_what_it_is_and_what_gives_the_rest(converted: Path, tmp_path: Path) -> None:
    _, found = read(write_report(converted, tmp_path / "page.html"))
    model = load(converted)
    assert list(found.inside) == ["top", *SECTIONS]
    assert f"sortify train {converted} --data DATA" in found.says("training")
    assert f"sortify evaluate {converted} --data DATA" in found.says("evaluation")
    assert f"sortify profile {converted} gives it" in found.says("profile")
    full = model.cost(model.space.full)
    assert quantity(full.params) in found.says("top")
    (row,) = (cells for cells in found.rows["cost"] if cells[0] == "full")
    assert row[2] == quantity(full.params)
    assert row[4] == quantity(full.flops)
    axes = {cells[0]: cells for cells in found.rows["axes"]}
    for axis in model.axes.values():
        assert axes[axis.name][1:5] == [axis.kind, axis.group, "1", str(axis.size)]
        assert axes[axis.name][8] == f"{100 * model.share([axis.name]):.1f} %"
    assert "blocks: 4 blocks, half the depth keeps 2" in found.says("depth")
    for why, times in frozen_reasons(model):
        assert any(cells[:2] == [why, str(times)] for cells in found.rows["fixed"])
    assert sum(len(cells) == 6 for cells in found.rows["fixed"]) == len(model.frozen) + 1


def test_a_trained_model_shows_its_history(trained: Path, tmp_path: Path) -> None:
    html, found = read(write_report(trained, tmp_path / "page.html"))
    lines = [json.loads(line) for line in (trained / "training" / "history.jsonl").read_text().splitlines()]
    told = found.says("training")
    model = load(trained)
    assert f"20 optimiser steps on {json.loads((trained / 'training' / 'status.json').read_text())['data']}." in told
    names = {str(own): model.cost(own).flops / model.cost().flops for own in model.space.landmarks()}
    shares = [names[name] for line in lines for name, _ in line["draws"]]
    assert f"A draw cost {fmean(shares):.1%} of the full network's FLOPs in the mean." in told
    assert f"steps 0 to 0: {100 * fmean(shares[:4]):.3g} % of the full network's FLOPs" in html
    assert all(f"Loss by {group}" in told for group in ("width", "depth"))
    for line in lines:  # one point for each step, and what pointing at it tells
        assert f"steps {line['step']} to {line['step']}: mean {line['loss']:.4g}," in html
    draws = [name for line in lines for name, _ in line["draws"]]
    drawn = {cells[0]: int(cells[1]) for cells in found.rows["training"] if cells[0] in set(draws)}
    assert drawn == Counter(draws)
    assert any(cells == ["sampler", "sandwich"] for cells in found.rows["training"])
    assert "interrupted" not in told
    assert "Sub-networks of a step" not in told  # always as many
    assert "gives it" in found.says("evaluation")


def test_an_evaluated_model_shows_every_score_and_marks_the_front(evaluated: Path, tmp_path: Path) -> None:
    html, found = read(write_report(evaluated, tmp_path / "page.html"))
    stored = Evaluation.from_json(json.loads((evaluated / "evaluation.json").read_text()))
    rows = found.rows["evaluation"][1:]
    ordered = sorted(stored.rows, key=lambda row: -row.flops)
    assert len(rows) == len(ordered) == 4
    for cells, row in zip(rows, ordered, strict=True):
        assert cells[2:4] == [f"{100 * stored.score(row):.2f} %", f"{100 * stored.relative(row):.1f} %"]
        assert cells[-1] == ("★" if row.front else "")
        assert f"{row.subnet}: accuracy {100 * stored.score(row):.2f} %" in html
    assert html.count('<tr class="marked">') == len(stored.front) == sum(row.front for row in ordered)
    assert "the weights have changed" not in found.says("evaluation")
    profiled = load(evaluated).profiled
    assert profiled is not None
    assert all(any(str(row.subnet) == cells[0] for cells in found.rows["profile"]) for row in profiled.rows)
    assert "gives it" not in found.says("top") + found.says("profile") + found.says("training")


def test_scores_of_other_weights_are_told_to_be_so(evaluated: Path, tmp_path: Path) -> None:
    shutil.copytree(evaluated, tmp_path / "model")
    model = load(tmp_path / "model")
    with torch.no_grad():
        model.tensors["head.bias"][0] += 1
    model.save(tmp_path / "model")
    assert "the weights have changed" in read(write_report(tmp_path / "model"))[1].says("evaluation")


def test_an_interrupted_training_and_damaged_files_are_told(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    (folder / "training" / "state.pt").write_bytes(b"")
    (folder / "training" / "status.json").unlink()
    history = folder / "training" / "history.jsonl"
    lines = history.read_text().splitlines()
    foreign = [
        "3",
        "{}",
        '{"step": 7, "loss": "x"}',
        '{"step": 8, "loss": NaN}',
        '{"step": 9, "loss": 0, "draws": 3}',
    ]
    history.write_text("\n".join([*lines[:5], *foreign, lines[5][:20]]))
    (folder / "evaluation.json").write_text('{"format": 1')
    _, found = read(write_report(folder))
    assert "interrupted" in found.says("training")
    assert "5 optimiser steps" in found.says("training")
    assert "evaluation.json cannot be read" in found.says("evaluation")
    history.write_bytes(b"\xff\xfe")
    assert "were not written down" in read(write_report(folder))[1].says("training")


def test_a_model_in_memory_needs_a_path() -> None:
    with pytest.raises(ValueError, match=r"say where to: write_report\(model, 'report.html'\)"):
        write_report(make_model("mlp"))


def test_the_same_model_gives_the_same_page(evaluated: Path, tmp_path: Path) -> None:
    first, second = (write_report(evaluated, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second
    assert write_report(evaluated) == evaluated / "report.html"


@pytest.mark.parametrize(
    "evaluation",
    [
        grid(16, 10),
        grid(1, 5),
        grid(6, 1),
        made({subnet(1.0): (10, 0.5)}),
        made({subnet(0.5): (10, 0.5), subnet(0.25): (5, 0.5)}),
        made({Subnet((("hidden", 3),), ()): (10, 0.5), Subnet((("hidden", 4),), ()): (12, 0.6)}),
        made({subnet(0.5): (0, -3.5), subnet(1.0): (0, 1e9)}),
        made({subnet(1.0): (10, 0.0)}),
        made({}),
        made({subnet(i / 1000): (i, i / 1000) for i in range(1, 500)}),
    ],
    ids=["160", "depth", "width", "one", "no full", "no fractions", "no shares", "zero", "none", "many"],
)
def test_any_evaluation_can_be_shown(evaluation: Evaluation, tmp_path: Path) -> None:
    _, found = read(write_report(make_model("mlp"), tmp_path / "page.html", evaluation=evaluation))
    rows = found.rows.get("evaluation", [[]])[1:]
    assert len(rows) == min(len(evaluation.rows), page.MOST)
    assert ("and 99 more: evaluation.csv shows them" in found.says("evaluation")) == (len(evaluation.rows) == 499)
    assert "nan" not in found.says("evaluation").lower()


# --- hostile texts ---------------------------------------------------------------------------------------------------

HOSTILE = "</script></style></title></text></svg><script>alert('1&2')</script><img src=x onerror=\"a()\"> \x01{{ 7*7 }}"


IMAGE, BOLD = '<img src=x onerror="a()">', "<b>up&amp;"


class Block(nn.Module):
    """A residual block with a module whose name is markup."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(BOLD, nn.Linear(12, 16))
        self.down = nn.Linear(16, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.as_tensor(self.down(self.get_submodule(BOLD)(x).relu()))


class Hostile(nn.Module):
    """Such blocks inside a module whose name is markup, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 5)
        self.add_module(IMAGE, nn.Sequential(Block(), Block()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.last(self.get_submodule(IMAGE)(self.first(x))))


def test_names_that_are_markup_are_shown_as_text(tmp_path: Path) -> None:
    model = sortify(Hostile(), (torch.rand(2, 8),))
    folder = tmp_path / "<i>&amp; $(x)"
    model.save(folder)
    html, found = read(write_report(folder))
    assert any(IMAGE in axis for axis in model.axes)
    assert all(axis in found.says("axes") for axis in model.axes)
    assert any(f"{IMAGE}.0.{BOLD}" in frozen.where for frozen in model.frozen)
    assert f"{IMAGE}.0.{BOLD}" in found.says("fixed")
    assert "<img" not in html
    assert "<b>up" not in html
    assert f"sortify train '{folder}' --data DATA" in found.says("training")


def test_every_text_of_data_and_model_is_escaped(evaluated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(evaluated, folder)
    facts = json.loads((folder / "sortify.json").read_text())
    facts["source"] = HOSTILE
    (folder / "sortify.json").write_text(json.dumps(facts))
    draws = [[HOSTILE, 1.0], ["<b>=0.5", 2.0], ["<b>=1", 2.0]]
    step = {"step": 0, "epoch": 0, "loss": 1.0, "lr": 0.1, "draws": draws}
    steps = [step, {**step, "step": 1, "draws": draws[:1]}]
    (folder / "training" / "history.jsonl").write_text("".join(json.dumps(each) + "\n" for each in steps))
    (folder / "training" / "status.json").write_text(json.dumps({"config": {HOSTILE: HOSTILE}, "steps": 1}))
    odd = Subnet((("hidden", 16),), (("blocks", 2),), ((HOSTILE, 0.5), ("width", 0.5), ("depth", 1.0)))
    full = subnet(1.0)
    rows = [Row(each, {HOSTILE: 0.5, "loss": 1.0, "<u>": 2.0}, 5, 10) for each in (odd, full)]
    write_evaluation(Evaluation(HOSTILE, HOSTILE, HOSTILE, full, 10, "f").of(rows), folder / "evaluation.json")
    html, found = read(write_report(folder))
    text = "alert('1&2')"
    assert all(text in found.says(section) for section in ("top", "training", "evaluation"))
    assert found.says("top").count("{{ 7*7 }}") >= 1
    assert "Sub-networks of a step" in found.says("training")
    assert not any(raw in html for raw in ("<script>alert", "<img", "<u>", "<b>=", "</script></style>"))
    broken = html.replace("&lt;img", "<img").replace("&lt;script&gt;", "<script>")
    assert faults(broken) != []


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_page_that_cannot_be_made_leaves_the_one_before(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(converted, tmp_path / "page.html")
    before = path.read_bytes()

    def fails(*_: Any) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr("sortify.reporting.report.render", fails)
    with pytest.raises(RuntimeError, match="no ink"):
        write_report(converted, path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_the_command_writes_the_page_where_it_says(converted: Path, tmp_path: Path) -> None:
    shutil.copytree(converted, tmp_path / "sorted")
    assert works(tmp_path, "report").stdout == "saved: sorted/report.html\n"
    _, found = read(tmp_path / "sorted" / "report.html")
    assert "sortify train --data DATA gives it" in found.says("training")
    assert works(tmp_path, "report", "sorted", "-o", "new/page.html").stdout == "saved: new/page.html\n"
    read(tmp_path / "new" / "page.html")
    missing = call(tmp_path, "report", "nothing")
    assert missing.exit_code == 1
    (line,) = errors(missing)
    assert line.startswith("error: nothing")


def test_the_page_of_a_model_in_memory_is_that_of_its_folder(trained: Path, tmp_path: Path) -> None:
    model = load(trained)
    assert isinstance(model, SortedModel)
    _, alone = read(write_report(model, tmp_path / "a.html"))
    _, saved = read(write_report(trained, tmp_path / "b.html"))
    for section in ("cost", "axes", "depth", "fixed"):
        assert alone.says(section) == saved.says(section)
    assert "written down" in alone.says("training")
