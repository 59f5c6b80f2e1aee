"""Evaluation: scores, costs, the front, the file, and the picture."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from training_models import make_model
from training_script import make_data

from sortify import load
from sortify.data.load import Data, load_data
from sortify.errors import BudgetError, DataError
from sortify.evaluate import (
    Evaluation,
    Row,
    evaluate,
    fingerprint,
    quantity,
    read_evaluation,
    with_front,
    write_evaluation,
)
from sortify.reporting.picture import draw, heat_map, make_figure
from sortify.space.space import Subnet
from sortify.tasks.classes import Classification
from sortify.tasks.registry import task_for
from sortify.training.config import TrainConfig
from sortify.training.train import Trainer


def subnet(width: float, depth: float = 1.0, **more: float) -> Subnet:
    fractions = {"width": width, "depth": depth, **more}
    sizes = (("hidden", round(32 * width)), *((name, round(8 * value)) for name, value in more.items()))
    return Subnet(sizes, (("blocks", round(4 * depth)),), tuple(fractions.items()))


def made(scores: dict[Subnet, tuple[int, float]]) -> Evaluation:
    """An evaluation of given FLOPs and scores."""
    rows = [Row(s, {"loss": 1.0, "accuracy": score}, flops // 2, flops) for s, (flops, score) in scores.items()]
    return Evaluation("accuracy", "classification", "nothing", subnet(1.0), 1000, "f").of(rows)


def grid(widths: int, depths: int) -> Evaluation:
    """An evaluation of a whole grid, scores rising with size."""
    members = [subnet((w + 1) / widths, (d + 1) / depths) for d in range(depths) for w in range(widths)]
    found = {}
    for member in members:
        width, depth = dict(member.fractions)["width"], dict(member.fractions)["depth"]
        member = replace(member, sizes=(("hidden", round(1000 * width)),), depths=(("blocks", round(100 * depth)),))
        found[member] = (int(1e9 * width**2 * depth), 0.6 + 0.35 * (width * depth) ** 0.3)
    return made(found)


# --- the front -------------------------------------------------------------------------------------------------------


def slow_front(rows: tuple[Row, ...], evaluation: Evaluation) -> list[bool]:
    """The definition, row by row."""
    score = evaluation.score
    return [
        not any(
            other.flops <= row.flops
            and score(other) >= score(row)
            and (other.flops, score(other)) != (row.flops, score(row))
            for other in rows
        )
        for row in rows
    ]


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_its_definition_says(seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    flops, scores = torch.randint(1, 8, (2, 12), generator=chance).tolist()
    found = {subnet((i + 1) / 32): (f, s / 8) for i, (f, s) in enumerate(zip(flops, scores, strict=True))}
    evaluation = made(found)
    assert [row.front for row in evaluation.rows] == slow_front(evaluation.rows, evaluation)
    assert evaluation.front
    assert evaluation.best in evaluation.front


def test_a_wrong_front_is_seen() -> None:
    evaluation = made({subnet(0.5): (5, 0.9), subnet(1.0): (9, 0.8)})
    assert [row.front for row in evaluation.rows] == [True, False]
    wrong = tuple(replace(row, front=True) for row in evaluation.rows)
    assert [row.front for row in wrong] != slow_front(wrong, evaluation)
    assert with_front([], evaluation.score) == ()


def test_scores_are_compared_with_the_full_models() -> None:
    evaluation = made({subnet(0.5): (250, 0.6), subnet(1.0): (1000, 0.8)})
    assert evaluation.relative(evaluation.rows[0]) == pytest.approx(0.75)
    assert evaluation.full_row == evaluation.rows[1]
    assert math.isnan(made({subnet(0.5): (250, 0.6)}).relative(evaluation.rows[0]))
    negative = made({subnet(0.5): (250, -0.5), subnet(1.0): (1000, -0.4)})
    assert math.isnan(negative.relative(negative.rows[0]))


def test_scores_beyond_one_are_no_percentages() -> None:
    shares, decibels = made({subnet(1.0): (1000, 0.83)}), made({subnet(0.5): (250, 0.5), subnet(1.0): (1000, 23.4)})
    for evaluation, share, text in ((shares, True, "83.00%"), (decibels, False, "23.4")):
        console = Console(width=160, record=True, quiet=False, file=io.StringIO())
        console.print(evaluation.table())
        assert evaluation.in_percent is share
        assert text in console.export_text()
        assert ("(%)" in make_figure(evaluation).axes[0].get_ylabel()) is share


# --- measuring -------------------------------------------------------------------------------------------------------


def test_an_evaluation_measures_what_running_each_sub_network_gives() -> None:
    model, data = make_model("mlp"), load_data("digits")
    task = task_for(data, model)
    model.activate(width=0.5)
    before, state = model.active, torch.get_rng_state()
    evaluation = evaluate(model, data, task)
    assert (model.active, model.training) == (before, False)
    assert torch.equal(state, torch.get_rng_state())
    assert [row.subnet for row in evaluation.rows] == model.space.members()
    x = torch.cat([x for x, _ in data.test])
    y = torch.cat([y for _, y in data.test])
    for row in evaluation.rows:
        with model.using(row.subnet), torch.no_grad():
            logits = model(x)
        assert row.metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == y).double().mean()))
        assert row.metrics["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, y)), abs=1e-5)
        cost = model.cost(row.subnet)
        assert (row.params, row.flops) == (cost.params, cost.flops)
    assert evaluation.full_flops == model.cost(model.space.full).flops


def test_batch_norm_is_recalibrated_for_every_sub_network() -> None:
    model = make_model("bn")
    data = load_data("digits", model=model)
    levels: dict[str, Any] = {"levels": 2, "sampler": "sandwich", "lr": 5e-3}
    Trainer(model, data, TrainConfig(epochs=8, **levels)).run()
    evaluation = evaluate(model, data, Classification())
    assert min(evaluation.score(row) for row in evaluation.rows) > 0.7
    assert set(model.statistics) == set(model.space.members())
    again = evaluate(model, data, Classification())
    assert again == evaluation


def test_training_leaves_the_statistics_of_every_trained_sub_network(tmp_path: Path) -> None:
    model, data = make_model("bn"), make_data("bn", 8)
    Trainer(model, data, TrainConfig(steps=3, levels=2), directory=tmp_path).run()
    assert set(model.statistics) == set(model.space.grid(width=2, depth=2))
    Trainer(model, data, TrainConfig(steps=3, levels=2, recalibrate=0)).run()
    assert not model.statistics


def test_language_modelling_is_measured_in_tokens() -> None:
    model, data = make_model("lm"), make_data("lm", 8)
    evaluation = evaluate(model, data, task_for(data, model), [model.space.full])
    assert evaluation.metric == "token_accuracy"
    metrics = evaluation.rows[0].metrics
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


def test_there_must_be_something_to_measure() -> None:
    model = make_model("mlp")
    with pytest.raises(DataError, match="no sub-networks to evaluate"):
        evaluate(model, load_data("digits"), Classification(), [])
    with pytest.raises(DataError, match="no targets to measure"):
        evaluate(model, Data([], [], "classification"), Classification())  # type: ignore[arg-type]


# --- the file --------------------------------------------------------------------------------------------------------


def test_an_evaluation_survives_json() -> None:
    evaluation = grid(4, 3)
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))) == evaluation


@pytest.mark.parametrize("damage", [{"format": 2}, {"rows": [{}]}, {"rows": 3}, {"full": None}, {"metric": None}])
def test_what_is_no_evaluation_is_refused(damage: dict[str, Any]) -> None:
    stored = {**grid(2, 2).to_json(), **damage}
    if damage == {"metric": None}:
        del stored["metric"]
    with pytest.raises(DataError, match="evaluation"):
        Evaluation.from_json(stored)


def test_the_csv_file_holds_every_row_of_the_json_file(tmp_path: Path) -> None:
    model, data = make_model("mlp"), load_data("digits")
    found = evaluate(model, data, Classification(), model.space.grid(width=2, depth=2), directory=tmp_path)
    with (tmp_path / "evaluation.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(found.rows) == 4
    for line, row in zip(lines, found.rows, strict=True):
        assert line["subnet"] == str(row.subnet)
        assert {name: float(line[name]) for name in found.groups} == dict(row.subnet.fractions)
        assert {name: float(line[name]) for name in row.metrics} == dict(row.metrics)
        assert float(line["relative"]) == found.relative(row)
        assert (int(line["params"]), int(line["flops"])) == (row.params, row.flops)
        assert float(line["flops_share"]) == row.flops / found.full_flops
        assert line["front"] == ("true" if row.front else "false")
    assert {line["front"] for line in lines} == {"true", "false"}


def test_the_csv_file_leaves_empty_what_a_row_does_not_have() -> None:
    odd = Subnet((("a,b", 3),), (), (("a,b", 0.5),))
    found = made({odd: (250, 0.6), subnet(0.5): (500, 0.7)})
    first, second, third = csv.reader(io.StringIO(found.to_csv()))
    assert first[:4] == ["subnet", "a,b", "width", "depth"]
    assert second[:4] == [str(odd), "0.5", "", ""]
    assert third[:4] == ["width=0.5 depth=1", "", "0.5", "1.0"]
    assert second[first.index("relative")] == third[first.index("relative")] == ""


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model, data = make_model("mlp"), load_data("digits")
    whole = evaluate(model, data, Classification())
    measured: list[Subnet] = []

    def stop(done: int, total: int, row: Row) -> None:
        measured.append(row.subnet)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, Classification(), directory=tmp_path, progress=stop)
    kept = read_evaluation(tmp_path / "evaluation.json")
    assert kept is not None
    assert [row.subnet for row in kept.rows] == measured == model.space.members()[:5]
    poisoned = replace(kept, rows=(replace(kept.rows[0], metrics={"loss": 0.0, "accuracy": 0.5}), *kept.rows[1:]))
    write_evaluation(poisoned, tmp_path / "evaluation.json")
    rest = evaluate(model, data, Classification(), directory=tmp_path)
    assert rest.rows[0].metrics["accuracy"] == 0.5
    assert [row.metrics for row in rest.rows[1:]] == [row.metrics for row in whole.rows[1:]]
    assert read_evaluation(tmp_path / "evaluation.json") == rest


def test_rows_of_other_weights_or_data_are_measured_again(tmp_path: Path) -> None:
    model, data = make_model("mlp"), load_data("digits")
    first = evaluate(model, data, Classification(), [model.space.full], directory=tmp_path)
    with torch.no_grad():
        model.tensors["head.bias"][0] += 5
    second = evaluate(model, data, Classification(), [model.space.full], directory=tmp_path)
    assert second.fingerprint != first.fingerprint
    assert second.rows[0].metrics != first.rows[0].metrics
    assert fingerprint(model, "a") != fingerprint(model, "b")


def test_a_damaged_file_is_measured_anew(tmp_path: Path) -> None:
    model, data = make_model("mlp"), load_data("digits")
    (tmp_path / "evaluation.json").write_text('{"format": 1, "rows": [')
    found = evaluate(model, data, Classification(), [model.space.full], directory=tmp_path)
    assert read_evaluation(tmp_path / "evaluation.json") == found


# --- what people see -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.00k"),
        (1234, "1.23k"),
        (45_600_000, "45.6M"),
        (999_600, "1.00M"),
        (7e15, "7P"),
    ],
)
def test_quantities(value: float, text: str) -> None:
    assert quantity(value) == text


def test_the_table_shows_every_row_and_marks_the_front() -> None:
    evaluation = made({subnet(0.5, 0.5): (250, 0.6), subnet(1.0, 0.5): (900, 0.5), subnet(1.0): (1000, 0.8)})
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(evaluation.table())
    console.file.close()
    lines = [line.split() for line in console.export_text().splitlines() if "%" in line]
    assert lines[1:] == [
        ["1", "1", "500", "1.00k", "100.0%", "80.00%", "100.0%", "1.0000", "*"],
        ["1", "0.5", "450", "900", "90.0%", "50.00%", "62.5%", "1.0000"],
        ["0.5", "0.5", "125", "250", "25.0%", "60.00%", "75.0%", "1.0000", "*"],
    ]


def test_the_heat_map_puts_width_across_and_depth_up() -> None:
    evaluation = made({subnet(0.5, 0.5): (1, 0.1), subnet(1.0, 0.5): (2, 0.2), subnet(1.0, 1.0): (4, 0.4)})
    found = heat_map(evaluation)
    assert found is not None
    assert (found.across, found.up, found.columns, found.lines) == ("width", "depth", (0.5, 1.0), (0.5, 1.0))
    assert found.cells[0] == (0.1, 0.2)
    assert math.isnan(found.cells[1][0])
    assert found.cells[1][1] == 0.4


def test_of_three_groups_the_cell_shows_the_largest_in_the_third() -> None:
    found = heat_map(
        made(
            {
                subnet(0.5, 0.5, heads=1.0): (2, 0.2),
                subnet(0.5, 0.5, heads=0.5): (1, 0.1),
                subnet(1.0, 1.0, heads=0.5): (3, 0.3),
            }
        )
    )
    assert found is not None
    assert (found.across, found.up) == ("width", "depth")
    assert found.cells[0][0] == 0.2
    assert heat_map(made({subnet(1.0): (1, 0.5)})) is None


EVALUATIONS = {
    "grid": grid(4, 4),
    "large grid": grid(16, 10),
    "one group": grid(6, 1),
    "depth only": grid(1, 5),
    "one row": made({subnet(1.0): (10, 0.5)}),
    "no full model": made({subnet(0.5): (10, 0.5), subnet(0.25): (5, 0.5)}),
    "no fractions": made({Subnet((("hidden", 3),), ()): (10, 0.5), Subnet((("hidden", 4),), ()): (12, 0.6)}),
}


def texts(figure: Figure) -> list[Any]:
    """The visible texts of a figure with their places, tick labels included."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    found = []
    for panel in figure.axes:
        ticks = [*panel.xaxis._update_ticks(), *panel.yaxis._update_ticks()]  # type: ignore[attr-defined]
        labels = [*(tick.label1 for tick in ticks), *panel.texts]  # those in view only
        labels += [panel.xaxis.label, panel.yaxis.label]
        found += [text for text in labels if text.get_text() and text.get_visible()]
        found += [text for text in (panel.title, panel._left_title) if text.get_text()]  # type: ignore[attr-defined]
    return [text.get_window_extent(renderer) for text in found]


def overlaps(boxes: list[Any]) -> int:
    return sum(
        one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1
        for index, one in enumerate(boxes)
        for other in boxes[:index]
    )


@pytest.mark.parametrize("name", EVALUATIONS)
def test_no_text_of_the_picture_lies_over_another_or_outside(name: str) -> None:
    figure = make_figure(EVALUATIONS[name])
    figure.draw_without_rendering()
    boxes = texts(figure)
    assert overlaps(boxes) == 0
    assert overlaps([*boxes, boxes[0]]) == 1
    width, height = figure.canvas.get_width_height()
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)


def test_the_picture_is_written_as_png_and_svg(tmp_path: Path) -> None:
    png, svg = draw(EVALUATIONS["grid"], tmp_path / "evaluation")
    with Image.open(png) as opened:
        assert opened.width > opened.height > 300
    assert svg.read_text().rstrip().endswith("</svg>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.png", "evaluation.svg"]
    first = svg.read_bytes()
    draw(EVALUATIONS["grid"], tmp_path / "evaluation")
    assert len(svg.read_bytes()) == len(first)


# --- budgets after an evaluation -------------------------------------------------------------------------------------


def test_after_an_evaluation_the_most_accurate_within_the_budget_is_chosen(tmp_path: Path) -> None:
    model, data = make_model("mlp"), load_data("digits")
    model.save(tmp_path)
    largest = model.choose(0.9)
    assert largest.subnet == model.space.at(0.9)
    assert largest.rule == "the largest within the budget of the default ones"
    found = evaluate(model, data, Classification(), directory=tmp_path)
    limit = 0.9 * found.full_flops
    best = max((row for row in found.rows if row.flops <= limit), key=lambda row: (found.score(row), -row.flops))
    chosen = model.choose(0.9)
    assert chosen.subnet == best.subnet != largest.subnet
    assert f"the best within the budget of {len(found.rows)} measured (accuracy " in chosen.rule
    again = load(tmp_path)
    assert again.choose(0.9) == chosen
    assert again.activate(budget=0.9) == chosen.subnet
    with again.using(budget="90%") as active:
        assert active.active == chosen.subnet
    small = {name: tuple(t.shape) for name, t in again.extract(budget=0.9).state_dict().items()}
    assert small == {name: tuple(t.shape) for name, t in again.extract(subnet=chosen.subnet).state_dict().items()}


def test_scores_of_other_weights_do_not_count(tmp_path: Path) -> None:
    model, data = make_model("mlp"), load_data("digits")
    evaluate(model, data, Classification(), directory=tmp_path)
    assert "measured" in model.choose(0.9).rule
    with torch.no_grad():
        model.tensors["head.bias"][0] += 5
    assert model.choose(0.9).subnet == model.space.at(0.9)
    assert "measured" not in model.choose(0.9).rule
    model.save(tmp_path)
    assert "measured" not in load(tmp_path).choose(0.9).rule
    (tmp_path / "evaluation.json").write_text("{")
    assert "measured" not in load(tmp_path).choose(0.9).rule


def test_a_budget_or_a_sub_network_not_both() -> None:
    model = make_model("mlp")
    with pytest.raises(BudgetError, match="one of them"):
        model.activate(budget=0.5, width=0.5)
    with pytest.raises(BudgetError, match="give a budget"):
        model.extract(budget=0.5, subnet=model.space.full)
