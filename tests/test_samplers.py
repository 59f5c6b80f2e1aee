"""Samplers: which sub-networks a step trains."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from training_models import make_model

from sortify.errors import TrainingError
from sortify.space.space import Space, Subnet
from sortify.training import samplers
from sortify.training.samplers import (
    SAMPLERS,
    RandomSampler,
    levels_for,
    make_sampler,
    register_sampler,
)
from sortify.training.samplers_guided import PERIOD, BoundedSampler
from sortify.training.sampling import Levels, Sampler, corner

SPACE = make_model("mlp").space
LEVELS = levels_for(SPACE, ("width", "depth"))


def draws(sampler: Sampler, seed: int, steps: int) -> list[list[Subnet]]:
    generator = torch.Generator().manual_seed(seed)
    return [sampler.draw(generator, step) for step in range(steps)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_repeats_itself_from_the_same_seed_only(name: str) -> None:
    sampler = make_sampler(name, SPACE, LEVELS, 4, 10)
    assert draws(sampler, 1, 8) == draws(sampler, 1, 8)
    assert (draws(sampler, 1, 8) != draws(sampler, 2, 8)) == (name != "round-robin")


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_sampler_draws_as_many_as_asked_from_the_levels(name: str, count: int) -> None:
    members = set(SPACE.grid(**dict(LEVELS)))
    for drawn in draws(make_sampler(name, SPACE, LEVELS, count, 20), 0, 20):
        assert len(drawn) == count
        assert set(drawn) <= members


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_key_of_the_table_is_the_samplers_own_name(name: str) -> None:
    assert SAMPLERS[name].name == name
    assert len(make_sampler(name, SPACE, LEVELS, steps=10).draw(torch.Generator(), 0)) == SAMPLERS[name].usual_count


def test_random_draws_are_uniform_and_independent() -> None:
    drawn = [subnet for step in draws(make_sampler("random", SPACE, LEVELS, 4), 3, 1000) for subnet in step]
    counts = torch.tensor([drawn.count(member) for member in SPACE.grid(**dict(LEVELS))]).double()
    expected = 4000 / 16
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 37.7  # 0.1 % of uniform draws exceed it, 15 degrees of freedom
    assert float(((torch.full((16,), 200.0) - expected) ** 2 / expected).sum()) > 37.7


def test_random_leaves_groups_that_are_not_trained_full() -> None:
    drawn = draws(make_sampler("random", SPACE, levels_for(SPACE, ("width",)), 1), 0, 50)
    assert {subnet.depths for step in drawn for subnet in step} == {SPACE.full.depths}


def test_sandwich_holds_both_ends_in_every_step() -> None:
    for drawn in draws(make_sampler("sandwich", SPACE, LEVELS, 4), 0, 10):
        assert drawn[:2] == [SPACE.full, corner(SPACE, LEVELS, 0)]
    assert make_sampler("sandwich", SPACE, LEVELS, 1).draw(torch.Generator(), 0) == [SPACE.full]


def test_no_group_to_train_means_the_full_model() -> None:
    assert make_sampler("random", SPACE, (), 2).draw(torch.Generator(), 0) == [SPACE.full] * 2


@pytest.mark.parametrize(
    ("dims", "levels", "expected"),
    [
        (("width",), None, (("width", (0.25, 0.5, 0.75, 1.0)),)),
        (("width", "depth"), 2, (("width", (0.5, 1.0)), ("depth", (0.5, 1.0)))),
        (("width", "depth"), {"depth": 1}, (("width", (0.25, 0.5, 0.75, 1.0)), ("depth", (1.0,)))),
        (("width",), {"width": [1.0, 0.3, 0.3]}, (("width", (0.3, 1.0)),)),
        ((), None, ()),
    ],
)
def test_levels(dims: tuple[str, ...], levels: object, expected: object) -> None:
    assert levels_for(SPACE, dims, levels) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dims", "levels", "message"),
    [
        (("length",), None, "no elastic 'length'; it has width"),
        (("width", "width"), None, "named twice"),
        (("width",), 0, "must be 1 or more, got 0"),
        (("width",), {"depth": 2}, "levels are given for 'depth', which is not trained"),
        (("width",), {"width": [0.0, 1.0]}, "fractions above 0 and up to 1"),
        (("width",), {"width": []}, "fractions above 0 and up to 1"),
    ],
)
def test_wrong_levels_are_refused(dims: tuple[str, ...], levels: object, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        levels_for(SPACE, dims, levels)  # type: ignore[arg-type]


def test_wrong_names_and_counts_are_refused() -> None:
    with pytest.raises(TrainingError, match="unknown sampler 'best'; there are bounded, by-cost, by-loss, progressive"):
        make_sampler("best", SPACE, LEVELS)
    with pytest.raises(TrainingError, match="must be 1 or more, got 0"):
        make_sampler("random", SPACE, LEVELS, 0)


class Nothing:
    name = "nothing"


def test_round_robin_takes_each_combination_once_a_round() -> None:
    for count in (1, 4):
        drawn = [s for step in draws(make_sampler("round-robin", SPACE, LEVELS, count), 0, 32 // count) for s in step]
        first, second = drawn[:16], drawn[16:]
        assert set(first) == set(second) == set(SPACE.grid(**dict(LEVELS)))
        assert first != second


def test_round_robin_refuses_what_no_training_gets_through() -> None:
    sampler = make_sampler(
        "round-robin", make_model("mlp", depth=4).space.untied("width"), levels_for(SPACE, ("width",), 40)
    )
    with pytest.raises(TrainingError, match=r"goes through 1,048,576 combinations of levels at most, here are [\d,]+"):
        sampler.draw(torch.Generator(), 0)


def test_stratified_draws_spread_over_the_levels_of_each_group() -> None:
    for drawn in draws(make_sampler("stratified", SPACE, LEVELS, 4), 0, 50):
        for group, fractions in LEVELS:
            assert sorted(dict(subnet.fractions)[group] for subnet in drawn) == list(fractions)
    independent = draws(make_sampler("random", SPACE, LEVELS, 4), 0, 50)
    assert any(len({dict(subnet.fractions)["width"] for subnet in drawn}) < 4 for drawn in independent)


def test_weighted_draws_take_the_largest_more_often() -> None:
    drawn = [dict(s.fractions) for step in draws(make_sampler("weighted", SPACE, LEVELS, 4), 3, 1000) for s in step]
    for group, fractions in LEVELS:
        shares = [sum(own[group] == fraction for own in drawn) / len(drawn) for fraction in fractions]
        assert shares == pytest.approx([1 / 4.5] * 3 + [1.5 / 4.5], abs=0.03)  # four standard deviations


def shares_of(sampler: Sampler, group: str) -> list[float]:
    """How often each level of a group is drawn."""
    drawn = [dict(subnet.fractions)[group] for step in draws(sampler, 3, 1000) for subnet in step]
    return [drawn.count(fraction) / len(drawn) for fraction in dict(LEVELS)[group]]


def test_draws_by_cost_come_as_often_as_the_network_costs() -> None:
    for group, fractions in LEVELS:
        costs = [SPACE.cost(SPACE.subnet(**{group: fraction})).flops for fraction in fractions]
        wanted = [cost / sum(costs) for cost in costs]
        found = shares_of(make_sampler("by-cost", SPACE, LEVELS, 4), group)
        assert found == pytest.approx(wanted, abs=0.03)
        assert found != pytest.approx([0.25] * 4, abs=0.03)


def test_draws_by_loss_follow_the_recent_losses_and_are_kept() -> None:
    sampler = make_sampler("by-loss", SPACE, LEVELS, 4)
    assert shares_of(sampler, "width") == pytest.approx([0.25] * 4, abs=0.03)
    for width, loss in ((0.25, 3.0), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0)):
        sampler.observe([(SPACE.subnet(width=width), loss)] * 200)  # type: ignore[attr-defined]
    assert shares_of(sampler, "width") == pytest.approx([3 / 6, 1 / 6, 1 / 6, 1 / 6], abs=0.03)
    again = make_sampler("by-loss", SPACE, LEVELS, 4)
    again.load_state_dict(sampler.state_dict())  # type: ignore[attr-defined]
    assert draws(again, 5, 20) == draws(sampler, 5, 20)
    assert draws(make_sampler("by-loss", SPACE, LEVELS, 4), 5, 20) != draws(sampler, 5, 20)


def test_progressive_draws_begin_with_the_full_network_and_open_level_by_level() -> None:
    sampler = make_sampler("progressive", SPACE, LEVELS, 8, steps=60)
    steps = draws(sampler, 0, 60)
    lowest = [min(dict(subnet.fractions)["width"] for subnet in drawn) for drawn in steps]
    assert set(steps[0]) == {SPACE.full}
    assert [min(lowest[: step + 1]) for step in (0, 9, 19, 29, 59)] == [1.0, 1.0, 0.75, 0.5, 0.25]
    with pytest.raises(TrainingError, match="needs the number of steps"):
        make_sampler("progressive", SPACE, LEVELS).draw(torch.Generator(), 0)


def test_bounded_draws_change_little_from_step_to_step_and_reach_all() -> None:
    levels = levels_for(SPACE, ("width", "depth"), {"width": 8, "depth": 4})
    sampler = make_sampler("bounded", SPACE, levels, 1)
    flops = [SPACE.cost(drawn[0]).flops for drawn in draws(sampler, 0, 10 * PERIOD)]
    jumps = [abs(one - other) for one, other in pairwise(flops)]
    free = [SPACE.cost(drawn[0]).flops for drawn in draws(make_sampler("random", SPACE, levels, 1), 0, 1000)]
    assert max(jumps) < 0.6 * max(abs(one - other) for one, other in pairwise(free))
    assert len(set(flops)) == len({SPACE.cost(member).flops for member in SPACE.grid(**dict(levels))})
    assert BoundedSampler.window(0, 100) == (90, 100)
    assert BoundedSampler.window(PERIOD // 2, 100) == (0, 10)


def test_bounded_draws_refuse_what_cannot_be_ordered() -> None:
    space = make_model("mlp", depth=4).space.untied("width")
    with pytest.raises(TrainingError, match=r"orders 16,384 combinations of levels at most, here are [\d,]+"):
        make_sampler("bounded", space, levels_for(space, ("width",), 40)).draw(torch.Generator(), 0)


@pytest.mark.parametrize("name", ["round-robin", "stratified", "weighted", "by-cost", "by-loss", "progressive"])
def test_untied_axes_are_drawn_on_their_own(name: str) -> None:
    model = make_model("mlp", depth=2)
    space = model.space.untied("inner")
    sampler = make_sampler(name, space, levels_for(space, ("width",), 2), 2, 10)
    found = {subnet for step in draws(sampler, 0, 40) for subnet in step}
    inner = [{size for axis, size in subnet.sizes if "inner" in axis} for subnet in found]
    assert any(len(sizes) > 1 for sizes in inner)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_size_is_drawn_by_every_sampler(name: str) -> None:
    levels = (("width", (0.5, 1.0)), ("depth", (0.5, 1.0)))
    space = SPACE.using(dict(levels), every=("width", "depth"))
    found = [subnet for step in draws(make_sampler(name, space, levels, 4, 100), 0, 100) for subnet in step]
    widths, depths = len({each.sizes for each in found}), {each.depths[0][1] for each in found}
    assert all(space.is_member(each) for each in found)
    assert depths == {2, 3, 4}
    assert widths > 12  # the levels alone have two, the axis of 32 units has 17


def test_a_sampler_of_ones_own_has_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "SAMPLERS", copy.copy(SAMPLERS))

    @samplers.register_sampler
    @dataclass(frozen=True)
    class Ends:
        name: ClassVar[str] = "ends"
        shares_batch: ClassVar[bool] = True
        usual_count: ClassVar[int] = 2
        space: Space
        levels: Levels
        count: int

        def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
            return [corner(self.space, self.levels, -(number % 2)) for number in range(self.count)]

    assert samplers.make_sampler("ends", SPACE, LEVELS).draw(torch.Generator(), 0) == [
        corner(SPACE, LEVELS, 0),
        SPACE.full,
    ]


def test_the_table_refuses_a_name_twice() -> None:
    with pytest.raises(ValueError, match="'random' exists already"):
        register_sampler(RandomSampler)
    with pytest.raises(ValueError, match="needs shares_batch, usual_count, draw; Nothing lacks them"):
        register_sampler(Nothing)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_command_line_and_its_page_name_every_sampler(name: str) -> None:
    root = Path(__file__).parents[1]
    for file in ("cli/train.py", "docs/commands.md"):
        assert name in (root / file).read_text("utf-8")
