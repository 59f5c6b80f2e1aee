"""The choice within a budget: the best of all where they can be counted, close to it where they cannot."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_levels import LAYERED, layered

from sortify.errors import BudgetError
from sortify.space.search import BLOCK, Choices, best_choice, within
from sortify.space.space import Space

LAW = settings(derandomize=True, deadline=None, max_examples=25, database=None)


def choices_of(space: Space) -> Choices:
    return Choices(space.knobs, space.full.values, space._costs)


def all_of(choices: Choices) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(knob.distinct)) for knob in choices.knobs)))


SMALL = choices_of(layered(3).using({"width": 3, "heads": 2, "depth": 3}, untied=["inner", "heads"]))
MIDDLE = choices_of(layered(4).untied("inner", "depth"))
SEVERAL = choices_of(layered(8).using({"width": 4, "depth": (1.0,)}, untied=["inner"]))


def test_blocks_hold_every_choice_once() -> None:
    for choices in (SMALL, SEVERAL):
        found = np.concatenate([values.copy() for _, values in choices.blocks()])
        assert np.array_equal(found, choices.values(all_of(choices)))
        assert choices.numbered(choices.count - 1) == all_of(choices)[-1]
    assert SEVERAL.count > BLOCK


@LAW
@given(st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_the_best_of_all_is_found(flops: float, params: float) -> None:
    candidates = all_of(SMALL)
    costs = SMALL.table(candidates)
    bounds = {"flops": int(flops * costs.flops.max()), "params": int(params * costs.params.max())}
    fitting = [i for i, each in enumerate(within(costs, bounds)) if each]
    found = best_choice(SMALL, bounds)
    assert (found is None) == (not fitting)
    if found is not None:
        own = SMALL.table([found])[0]
        assert (own.flops, own.params) == max((costs[i].flops, costs[i].params) for i in fitting)


@pytest.mark.parametrize("choices", [MIDDLE, SEVERAL], ids=["middle", "several"])
@pytest.mark.parametrize("metric", ["flops", "params"])
def test_climbing_comes_within_one_percent_of_the_best(choices: Choices, metric: str) -> None:
    whole = getattr(choices.table([tuple(len(knob.distinct) - 1 for knob in choices.knobs)])[0], metric)
    for share in np.linspace(0.1, 1.0, 19):
        bounds = {metric: int(share * whole)}
        best, climbed = best_choice(choices, bounds), best_choice(choices, bounds, exhaustive=0)
        assert (best is None) == (climbed is None)
        if best is not None and climbed is not None:
            reached = getattr(choices.table([climbed])[0], metric)
            assert reached <= bounds[metric]
            assert reached >= 0.99 * getattr(choices.table([best])[0], metric), share


def test_a_huge_space_is_used_up() -> None:
    space = layered(24).untied("inner", "heads")
    assert space.count > 10**20
    whole = space.cost(space.full)
    for share in (0.2, 0.37, 0.5, 0.9):
        chosen = space.at(share)
        assert 0.99 * share * whole.flops <= space.cost(chosen).flops <= share * whole.flops
        assert space.is_member(chosen)
    assert space.at(1.0) == space.full
    with pytest.raises(BudgetError, match="smallest reachable is"):
        space.at(0.001)


def test_several_budgets_hold_together() -> None:
    whole = LAYERED.cost(LAYERED.full)
    chosen = LAYERED.at(["50% flops", f"{whole.params // 3} params"])
    costs = {member: LAYERED.cost(member) for member in LAYERED.members()}
    fitting = [c for c in costs.values() if c.flops <= whole.flops // 2 and c.params <= whole.params // 3]
    assert LAYERED.cost(chosen) in fitting
    assert LAYERED.cost(chosen).flops == max(cost.flops for cost in fitting)


def test_measured_scores_choose_among_those_that_fit() -> None:
    members = LAYERED.members()
    scores = {member: -abs(LAYERED.cost(member).flops / LAYERED.cost(LAYERED.full).flops - 0.3) for member in members}
    chosen = LAYERED.at(0.6, scores=scores)
    assert chosen == max(
        (m for m in members if LAYERED.cost(m).flops <= 0.6 * LAYERED.cost(LAYERED.full).flops), key=scores.__getitem__
    )
    assert LAYERED.cost(chosen).flops < LAYERED.cost(LAYERED.at(0.6)).flops
    cheapest = min(members, key=lambda member: LAYERED.cost(member).flops)
    assert LAYERED.at(0.6, scores=dict.fromkeys(members, 0.5)) == cheapest
    assert LAYERED.at(0.2, scores={LAYERED.full: 1.0}) == LAYERED.at(0.2)


@pytest.mark.parametrize("wrong", ["0.001", "7 flops", "3 params"])
def test_what_is_out_of_reach_names_the_smallest(wrong: str) -> None:
    with pytest.raises(
        BudgetError, match=r"too small: the smallest reachable is .* with width=0.25 heads=0.25"
    ) as caught:
        LAYERED.at(["50%", wrong])
    assert "0.5 of" not in str(caught.value)
