"""Samplers: which sub-networks a step trains."""

from __future__ import annotations

import pytest
import torch
from training_models import make_model

from sortify.errors import TrainingError
from sortify.samplers import SAMPLERS, RandomSampler, Sampler, corner, levels_for, make_sampler, register
from sortify.space import Subnet

SPACE = make_model("mlp").space
LEVELS = levels_for(SPACE, ("width", "depth"))


def draws(sampler: Sampler, seed: int, steps: int) -> list[list[Subnet]]:
    generator = torch.Generator().manual_seed(seed)
    return [sampler.draw(generator, step) for step in range(steps)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_repeats_itself_from_the_same_seed_only(name: str) -> None:
    sampler = make_sampler(name, SPACE, LEVELS, 4)
    assert draws(sampler, 1, 8) == draws(sampler, 1, 8)
    assert draws(sampler, 1, 8) != draws(sampler, 2, 8)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_sampler_draws_as_many_as_asked_from_the_levels(name: str, count: int) -> None:
    members = set(SPACE.grid(**dict(LEVELS)))
    for drawn in draws(make_sampler(name, SPACE, LEVELS, count), 0, 20):
        assert len(drawn) == count
        assert set(drawn) <= members


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_key_of_the_table_is_the_samplers_own_name(name: str) -> None:
    assert SAMPLERS[name].name == name
    assert len(make_sampler(name, SPACE, LEVELS).draw(torch.Generator(), 0)) == SAMPLERS[name].usual_count


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
    with pytest.raises(TrainingError, match="unknown sampler 'best'; there are random, sandwich"):
        make_sampler("best", SPACE, LEVELS)
    with pytest.raises(TrainingError, match="must be 1 or more, got 0"):
        make_sampler("random", SPACE, LEVELS, 0)


def test_the_table_refuses_a_name_twice() -> None:
    with pytest.raises(ValueError, match="'random' exists already"):
        register(RandomSampler)
