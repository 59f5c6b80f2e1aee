"""Curves and charts: few points that hold every value, and marks that lie where their values are."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from sortify.reporting.charts import Line, Side, plot, scale
from sortify.reporting.curves import (
    History,
    Step,
    buckets,
    by_level,
    by_subnet,
    gathered,
    levels_of,
    read_history,
    smoothed,
    spread,
)

# --- curves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 149, 150, 151, 1000, 12_345])
def test_a_curve_holds_every_value(count: int) -> None:
    chance = torch.Generator().manual_seed(count)
    values = torch.rand(count, generator=chance).tolist()
    found = buckets([(2 * i, value) for i, value in enumerate(values)])
    assert len(found) <= 150
    assert (found[0].first, found[-1].last) == (0, 2 * (count - 1))
    assert all(one.last < other.first for one, other in itertools.pairwise(found))
    for own in found:
        part = values[own.first // 2 : own.last // 2 + 1]
        assert (own.low, own.high) == (min(part), max(part))
        assert own.mean == pytest.approx(sum(part) / len(part))
        assert min(values) <= own.smooth <= max(values)


def test_smoothing_keeps_what_is_straight_and_does_not_lag() -> None:
    assert smoothed([3.0] * 200) == pytest.approx([3.0] * 200)
    ramp = [float(i) for i in range(400)]
    assert smoothed(ramp)[100:300] == pytest.approx(ramp[100:300], abs=0.5)
    assert smoothed(ramp)[::-1] == pytest.approx([399 - value for value in smoothed(ramp)])
    assert smoothed([1.0, 2.0]) == [1.0, 2.0]
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.tensor(smoothed(noise)).std() < 0.2


def test_losses_are_told_by_sub_network_and_by_level(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    draws = [
        [["width=1 depth=1", 1.0], ["width=0.5 depth=1", 3.0]],
        [["width=1 depth=1", 2.0], ["3 units, 1 block", 9.0]],
    ]
    lines = [{"step": i, "loss": 1.0, "lr": 0.1, "draws": own} for i, own in enumerate(draws)]
    (tmp_path / "training" / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = read_history(tmp_path)
    assert history.steps[0] == Step(0, 1.0, 0.1, (("width=1 depth=1", 1.0), ("width=0.5 depth=1", 3.0)))
    assert by_subnet(history) == {
        "width=1 depth=1": [(0, 1.0), (1, 2.0)],
        "width=0.5 depth=1": [(0, 3.0)],
        "3 units, 1 block": [(1, 9.0)],
    }
    assert by_level(history) == {"width": {0.5: [(0, 3.0)], 1.0: [(0, 1.0), (1, 2.0)]}}
    assert history.flops is None
    assert not read_history(tmp_path / "nowhere").steps


def test_what_draws_cost_is_their_mean_over_all_steps_that_know_it() -> None:
    steps = [Step(0, 1.0, 0.1, (("a", 1.0),)), Step(1, 1.0, 0.1, (("a", 1.0),), 0.1)]
    steps += [Step(2, 1.0, 0.1, (("a", 1.0),) * 3, 0.5), Step(3, 1.0, 0.1, (), 0.9)]
    assert History(tuple(steps)).flops == pytest.approx((0.1 + 3 * 0.5) / 4)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("width=0.25 depth=1", {"width": 0.25, "depth": 1.0}),
        ("width=1e-05", {"width": 1e-5}),
        ("inner=0.25..1 (12 axes, mean 0.6)", {}),
        ("37 units, 2 blocks", {}),
        ("", {}),
    ],
)
def test_levels_are_read_from_words(name: str, found: dict[str, float]) -> None:
    assert levels_of(name) == found


def test_of_many_levels_some_are_drawn_with_both_ends() -> None:
    assert spread([1, 2, 3], 6) == [1, 2, 3]
    found = spread([i / 16 for i in range(1, 17)], 6)
    assert (len(found), found[0], found[-1]) == (6, 1 / 16, 1.0)
    assert found == sorted(set(found))


def test_of_many_sizes_each_goes_with_the_nearest_level() -> None:
    losses = {0.25: [(0, 1.0), (5, 2.0)], 0.3: [(3, 4.0)], 0.7: [(1, 3.0)], 1.0: [(2, 5.0)]}
    assert gathered(losses, [0.25, 1.0]) == {0.25: [(0, 1.0), (3, 4.0), (5, 2.0)], 1.0: [(1, 3.0), (2, 5.0)]}


# --- charts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [(0.0, 1.0), (-3.0, -2.0), (5.0,), (0.0,), (1e-9, 1e9), (99.1, 99.2), (1e12, 3e12)])
@pytest.mark.parametrize("log", [False, True])
def test_a_scale_holds_its_values_and_ticks(values: tuple[float, ...], log: bool) -> None:
    found = scale(values, Side("x", log=log), 50.0, 450.0)
    assert all(50 - 1e-6 <= found(value) <= 450 + 1e-6 for value in values)
    ticks = found.ticks(5)
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))
    assert all(50 - 1e-6 <= found(tick) <= 450 + 1e-6 for tick in ticks)


def test_points_lie_where_their_values_are() -> None:
    line = Line("a", ((0.0, 1.0), (1.0, 3.0), (2.0, 2.0)), "c0", ("<one>", "two", "three"), "steps")
    svg = plot("a < b", [line], Side("x"), Side("y"))
    places = [tuple(map(float, found)) for found in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert [a for a, _ in places] == sorted(a for a, _ in places)
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.2)
    assert places[1][1] < places[2][1] < places[0][1]
    assert "&lt;one&gt;" in svg
    assert 'aria-label="a &lt; b"' in svg
    corners = re.findall(r' d="M([^"]*)"', svg)[0].split("L")
    assert len(corners) == 5  # a step keeps its height up to the next point
