"""The space of sub-networks: levels, grids, chains, samples, budgets, and the order among them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sortify.costs.cost import CostModel, Term
from sortify.depth import Block, Chain, Region
from sortify.errors import AxesError, BudgetError
from sortify.graph.dims import parse
from sortify.plan import Axis, Plan
from sortify.space.space import Space, Subnet, Trained

LAW = settings(derandomize=True, deadline=None, max_examples=100, database=None)


def _axis(name: str, kind: str, size: int, group: str) -> Axis:
    return Axis(name, kind, size, (), ("weight",), group)


def _chain(name: str, blocks: int) -> Chain:
    region = Region("a", "b", ("b",))
    return Chain(name, tuple(Block(f"{name}.{i}", {"train": region, "eval": region}) for i in range(blocks)))


def make_space(*, heads: bool = True, depth: bool = True, trained: Trained | None = None) -> Space:
    """A width of 32 and one of 10, 4 heads, chains of 4 and 2 blocks; each part can be left out."""
    axes = [_axis("hidden", "hidden", 32, "width"), _axis("ffn", "inner", 10, "width")]
    axes += [_axis("heads", "heads", 4, "heads")] if heads else []
    chains = (_chain("layers", 4), _chain("tail", 2)) if depth else ()
    terms = [Term("params", 1, (parse("hidden:32"), parse("ffn:10"))), Term("flops", 7, (parse("hidden:32"),))]
    terms += [Term("flops", 100, (parse("heads:4"),))] if heads else []
    owners = [(c, i) for c, chain in enumerate(chains) for i in range(len(chain.blocks))]
    terms += [Term("flops", 50, (parse("ffn:10"),), ((owner,),)) for owner in owners]
    terms += [Term("activation_bytes", 4, (parse("hidden:32"),))]
    plan = Plan(tuple(axes), chains, (), {}, {"train": (), "eval": ()})
    return Space(plan, CostModel(terms, [axis.name for axis in axes]), trained)


SPACE = make_space()
fractions = st.sampled_from([i / 16 for i in range(1, 17)])
subnets = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["width", "heads", "depth", "hidden", "ffn", "layers", "tail"], fractions)
).map(lambda chosen: SPACE.subnet(**chosen))


# -- one sub-network


def test_groups_are_those_of_the_plan() -> None:
    assert SPACE.groups == ("width", "heads", "depth")
    assert make_space(heads=False).groups == ("width", "depth")
    assert make_space(heads=False, depth=False).groups == ("width",)


def test_fractions_of_groups_axes_and_chains() -> None:
    subnet = SPACE.subnet(width=0.5, heads=0.25, depth=0.5)
    assert dict(subnet.sizes) == {"hidden": 16, "ffn": 5, "heads": 1}
    assert dict(subnet.depths) == {"layers": 2, "tail": 1}
    assert subnet.values == (16, 5, 1, 2, 1)
    own = SPACE.subnet(width=0.5, ffn=1.0, tail=1.0, depth=0.25)
    assert own.values == (16, 10, 4, 1, 2)
    assert SPACE.full.values == (32, 10, 4, 4, 2)
    assert SPACE.smallest.values == SPACE.subnet(width=0.25, heads=0.25, depth=0.25).values


def test_no_axis_vanishes_and_halves_round_up() -> None:
    assert SPACE.subnet(width=0.01).values[:2] == (1, 1)
    assert dict(SPACE.subnet(width=0.25).sizes)["ffn"] == 3
    assert dict(SPACE.subnet(depth=0.125).depths)["layers"] == 1


@pytest.mark.parametrize("wrong", [{"width": 0.0}, {"width": 1.5}, {"depth": -1.0}, {"hidden": float("nan")}])
def test_a_fraction_outside_the_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(AxesError, match="expected a fraction above 0 and at most 1"):
        SPACE.subnet(**wrong)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AxesError, match="'widht' is no group, axis or chain of this model; groups: width, heads, dep"):
        SPACE.subnet(widht=0.5)
    with pytest.raises(AxesError, match="'heads' is no group"):
        make_space(heads=False).subnet(heads=0.5)
    with pytest.raises(AxesError, match="'kernel' is no group"):
        SPACE.grid(kernel=3)


def test_text_for_people() -> None:
    assert str(SPACE.subnet(width=0.5, depth=0.75)) == "width=0.5 heads=1 depth=0.75"
    assert str(Subnet((("hidden", 3),), (("layers", 2),))) == "3 units, 2 blocks"


def test_equal_sizes_are_equal_sub_networks() -> None:
    """Two fractions that round to the same sizes."""
    one, other = SPACE.subnet(depth=0.5), SPACE.subnet(depth=0.51)
    assert one == other
    assert hash(one) == hash(other)
    assert one.fractions != other.fractions


@LAW
@given(subnets)
def test_json_and_back(subnet: Subnet) -> None:
    again = Subnet.from_json(json.loads(json.dumps(subnet.to_json())))
    assert again == subnet
    assert again.fractions == subnet.fractions
    assert again.values == subnet.values


def test_trained_levels_survive_json() -> None:
    trained = Trained((("width", (0.5, 1.0)), ("depth", (0.25, 1.0))))
    assert Trained.from_json(json.loads(json.dumps(trained.to_json()))) == trained


# -- the order among them


@LAW
@given(subnets, subnets, subnets)
def test_nesting_is_a_partial_order(a: Subnet, b: Subnet, c: Subnet) -> None:
    assert a.contains(a)
    assert SPACE.full.contains(a)
    assert not (a.contains(b) and b.contains(a)) or a == b
    assert not (a.contains(b) and b.contains(c)) or a.contains(c)


@LAW
@given(subnets, subnets)
def test_a_larger_sub_network_costs_at_least_as_much(a: Subnet, b: Subnet) -> None:
    large = Subnet(_larger(a.sizes, b.sizes), _larger(a.depths, b.depths))
    for small in (a, b):
        assert large.contains(small)
        mine, theirs = SPACE._costs(large.values), SPACE._costs(small.values)
        assert mine.params >= theirs.params
        assert mine.flops >= theirs.flops
        assert mine.activation_bytes >= theirs.activation_bytes


def _larger(a: tuple[tuple[str, int], ...], b: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    return tuple((name, max(x, y)) for (name, x), (_, y) in zip(a, b, strict=True))


def test_sub_networks_of_other_models_are_not_contained() -> None:
    other = make_space(heads=False)
    assert not SPACE.full.contains(other.full)
    assert SPACE.smallest in SPACE
    assert other.full not in SPACE
    assert Subnet((("hidden", 33), ("ffn", 10), ("heads", 4)), (("layers", 4), ("tail", 2))) not in SPACE
    assert "width=0.5" not in SPACE


# -- many at once


def test_grid_is_the_product_of_levels_each_once() -> None:
    grid = SPACE.grid(width=4, heads=[0.5, 1.0], depth=2)
    assert len(grid) == 4 * 2 * 2
    assert grid[-1] == SPACE.full
    assert len(set(grid)) == len(grid)
    assert {dict(s.sizes)["hidden"] for s in grid} == {8, 16, 24, 32}
    assert {dict(s.sizes)["heads"] for s in grid} == {2, 4}
    assert SPACE.grid(width=[0.5, 1.0]) == [SPACE.subnet(width=0.5), SPACE.full]


def test_grid_merges_levels_of_equal_sizes() -> None:
    with pytest.warns(UserWarning, match="heads has 4 different levels, not 16"):
        grid = SPACE.grid(heads=16)
    assert len(grid) == 4
    assert grid[-1] == SPACE.full


@pytest.mark.parametrize("levels", [0, -2])
def test_a_grid_needs_a_level(levels: int) -> None:
    with pytest.raises(AxesError, match="expected at least one level"):
        SPACE.grid(width=levels)


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_a_chain_is_nested_from_smallest_to_full(count: int) -> None:
    chain = SPACE.chain(count)
    assert len(chain) <= count
    assert chain[-1] == SPACE.full
    assert count == 1 or chain[0] == SPACE.smallest
    assert all(large.contains(small) and large != small for small, large in pairwise(chain))


def test_members_are_the_trained_levels() -> None:
    assert len(SPACE.members()) == 4 * 4 * 4
    trained = make_space(trained=Trained((("width", (0.5, 1.0)), ("depth", (0.5, 1.0)))))
    fractions = [(0.5, 0.5), (0.5, 1.0), (1.0, 0.5), (1.0, 1.0)]
    assert trained.members() == [trained.subnet(width=width, depth=depth) for width, depth in fractions]
    assert trained.smallest.values == trained.subnet(width=0.5, depth=0.5).values


def test_samples_are_uniform_and_independent_over_groups() -> None:
    """Each of the 64 combinations of levels about equally often, and every draw repeatable."""
    draws = 6400
    generator = torch.Generator().manual_seed(0)
    found = Counter(SPACE.sample(generator) for _ in range(draws))
    assert set(found) == set(SPACE.members())
    assert all(60 < times < 145 for times in found.values())


def test_samples_repeat_with_the_generator() -> None:
    first, second = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    drawn = [SPACE.sample(first) for _ in range(5)]
    assert drawn == [SPACE.sample(second) for _ in range(5)]
    assert len(set(drawn)) > 1


def test_samples_keep_to_given_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    found = {SPACE.sample(generator, width=[0.5, 1.0]) for _ in range(50)}
    assert found == {SPACE.subnet(width=0.5), SPACE.full}


# -- budgets


@pytest.mark.parametrize("metric", ["flops", "params", "activation_bytes"])
@pytest.mark.parametrize("budget", [0.3, 0.5, 0.75, 1.0])
def test_a_budget_gives_the_largest_member_within(budget: float, metric: str) -> None:
    chosen = SPACE.at(budget, metric)
    whole = getattr(SPACE._costs(SPACE.full.values), metric)
    costs = {member: getattr(SPACE._costs(member.values), metric) for member in SPACE.members()}
    assert chosen in costs
    assert costs[chosen] <= budget * whole
    assert costs[chosen] == max(cost for cost in costs.values() if cost <= budget * whole)


def test_the_whole_budget_gives_the_full_network() -> None:
    assert SPACE.at(1.0) == SPACE.full
    assert SPACE.at(1.0, "params") == SPACE.full


def test_budgets_choose_among_what_was_trained() -> None:
    space = make_space(trained=Trained((("width", (0.5, 1.0)),)))
    assert space.at(0.99, "params") == space.subnet(width=0.5)


def test_a_budget_out_of_reach_names_the_smallest() -> None:
    share = SPACE._costs(SPACE.smallest.values).params / SPACE._costs(SPACE.full.values).params
    with pytest.raises(BudgetError, match=rf"smallest reachable is {share:.4f} \(24\) with width=0.25"):
        SPACE.at(0.01, "params")


@pytest.mark.parametrize("budget", [0.0, -0.5, float("nan")])
def test_a_budget_is_above_nothing(budget: float) -> None:
    with pytest.raises(BudgetError, match="expected a fraction of the full network above 0"):
        SPACE.at(budget)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(BudgetError, match="metric 'speed': expected one of params, flops, activation_bytes"):
        SPACE.at(0.5, "speed")
