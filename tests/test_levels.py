"""Levels: which sizes there are, what moves together, and that one factor of a product is the one that is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sorted_zoo import blueprint_of, found
from test_space import SPACE, _axis, _chain, make_space
from torch import Tensor, nn

from sortify.costs.cost import CostModel, Term
from sortify.errors import AxesError
from sortify.graph.dims import active, full, parse
from sortify.plan import Plan
from sortify.space.levels import Column, Columns, Trained, columns_of
from sortify.space.space import Space, Subnet

LAW = settings(derandomize=True, deadline=None, max_examples=200, database=None)


def layered(blocks: int = 6, size: int = 64) -> Space:
    """A stream, an inner width and heads for each of several layers, and a chain of these."""
    axes = [_axis("hidden", "hidden", size, "width")]
    axes += [_axis(f"layers.{i}.inner", "inner", 4 * size, "width") for i in range(blocks)]
    axes += [_axis(f"layers.{i}.heads", "heads", 8, "heads") for i in range(blocks)]
    terms = []
    for i in range(blocks):
        for metric, weight in (("params", 1), ("flops", 20), ("activation_bytes", 4)):
            needs = (((0, i),),)
            terms.append(Term(metric, weight, (parse(f"hidden:{size}"), parse(f"layers.{i}.inner:{4 * size}")), needs))
            terms.append(Term(metric, weight * (i + 5), (parse(f"hidden:{size}"), parse(f"layers.{i}.heads:8")), needs))
    plan = Plan(tuple(axes), (_chain("layers", blocks),), (), {}, {"train": (), "eval": ()})
    return Space(plan, CostModel(terms, [axis.name for axis in axes]))


LAYERED = layered()


# -- what moves together


def test_by_default_groups_move_together() -> None:
    assert [knob.name for knob in LAYERED.knobs] == ["width", "heads", "depth"]
    assert LAYERED.count == 4 * 4 * 4
    assert len(LAYERED.knobs[0].columns) == 7


@pytest.mark.parametrize("name", ["inner", "layers.*.inner"])
def test_untied_axes_move_on_their_own(name: str) -> None:
    free = LAYERED.untied(name)
    assert [knob.name for knob in free.knobs] == ["width", *(f"layers.{i}.inner" for i in range(6)), "heads", "depth"]
    assert free.count == 4 * 4**6 * 4 * 4
    drawn = [free.sample(torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert any(len({size for axis, size in each.sizes if "inner" in axis}) > 1 for each in drawn)
    assert all(free.is_member(each) for each in drawn)
    assert not all(LAYERED.is_member(each) for each in drawn)
    assert free.tied.count == LAYERED.count


def test_a_huge_space_is_not_listed() -> None:
    free = layered(40).untied("width", "heads")
    with pytest.raises(AxesError, match=r"members, too many to list: draw with sample\(\), choose with at\(\)"):
        free.members()
    assert len(free.landmarks()) == 64
    assert all(free.is_member(each) for each in free.landmarks())


def test_the_most_particular_name_counts() -> None:
    space = LAYERED.using({"width": (0.5, 1.0), "inner": (0.25, 1.0), "layers.[01].*": (0.75,), "layers.1.inner": 1})
    small = dict(space.smallest.sizes)
    assert small["hidden"] == 32
    assert small["layers.0.inner"] == 192
    assert small["layers.0.heads"] == 6
    assert small["layers.1.inner"] == 256
    assert small["layers.2.inner"] == 64
    assert small["layers.2.heads"] == 8
    assert space.smallest.depths == (("layers", 6),)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.untied("inter"), "'inter' is no group, axis or chain of this model"),
        (lambda s: s.using({"depth": 2}, untied=["inner"]), "untie='inner': these axes stay full"),
        (lambda s: s.using({"width": (0.0, 1.0)}), "expected a fraction above 0"),
        (lambda s: s.using({"width": ()}), "expected at least one level"),
        (lambda s: s.using({"wid*": 2}), "is no group"),
        (lambda s: s.using(multiple=0), "multiple=0: expected a whole number from 1"),
    ],
)
def test_wrong_settings_are_refused(call: object, message: str) -> None:
    with pytest.raises(AxesError, match=message):
        call(LAYERED)  # type: ignore[operator]


def test_text_tells_many_axes_in_short() -> None:
    subnet = LAYERED.untied("inner").smallest
    assert str(subnet) == "width=0.25 heads=0.25 depth=0.25 inner=0.25 (6 axes, mean 0.25)"
    mixed = LAYERED.subnet(**{"layers.0.inner": 0.5, "layers.3.inner": 0.25})
    assert str(mixed) == "width=1 heads=1 depth=1 layers.0.inner=0.5 layers.3.inner=0.25"
    assert Subnet.from_json(mixed.to_json()) == mixed


def test_settings_survive_json() -> None:
    trained = Trained((("width", (0.5, 1.0)), ("layers.*.inner", (0.25, 1.0))), ("inner",), 8)
    assert Trained.from_json(trained.to_json()) == trained


# -- rounding


@LAW
@given(st.integers(1, 300), st.floats(0.01, 1.0), st.sampled_from([1, 2, 8, 16, 64]))
def test_sizes_are_rounded_to_the_nearest_multiple(size: int, fraction: float, multiple: int) -> None:
    found = Column("a", "inner", "width", size).size(fraction, multiple)
    assert 1 <= found <= size
    assert found >= min(size, multiple)
    assert found % multiple == 0 or found == size
    assert found in (size, multiple) or abs(found - fraction * size) <= multiple / 2 + 0.5


@LAW
@given(st.integers(1, 300), st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.sampled_from([1, 8, 64]))
def test_a_larger_fraction_is_never_smaller(size: int, one: float, other: float, multiple: int) -> None:
    column = Column("a", "inner", "width", size)
    small, large = sorted((one, other))
    assert column.size(small, multiple) <= column.size(large, multiple) <= column.size(1.0, multiple) == size


def test_heads_and_blocks_are_not_rounded() -> None:
    space = LAYERED.using(multiple=16)
    assert dict(space.subnet(width=0.3, heads=0.4, depth=0.5).sizes)["layers.0.heads"] == 3
    assert dict(space.subnet(width=0.3).sizes)["hidden"] == 16
    assert space.subnet(width=0.3, depth=0.5).depths == (("layers", 3),)


def test_a_multiple_is_one_of_the_tensor_dimension() -> None:
    """An axis of 4 per group, in 32 groups: every size is a multiple of 8 already."""
    axes = (_axis("a", "channels", 4, "width"), _axis("b", "inner", 12, "width"))
    shapes = {"weight": (parse("(32 * a:4)"), parse("(2 * b:12)")), "other": (parse("b:12"),)}
    plan = Plan(axes, (), (), shapes, {"train": (), "eval": ()})
    assert [column.unit for column in columns_of(plan)] == [32, 1]
    space = Space(plan, CostModel([], ["a", "b"])).using(multiple=8)
    assert space.subnet(width=0.5).values == (2, 8)


# -- grids


def test_a_grid_of_160() -> None:
    space = layered(12)
    grid = space.grid(width=16, depth=10)
    assert len(set(grid)) == 160
    assert grid[-1] == space.full
    assert len({each.depths for each in grid}) == 10


@pytest.mark.parametrize("count", [2, 3, 5, 7, 9, 10, 11, 13])
def test_levels_are_as_many_as_sizes_allow(count: int) -> None:
    """A chain of 10 blocks has at most 10 lengths; a width of 13 units has 13, evenly spaced or not."""
    plan = Plan((_axis("a", "inner", 13, "width"),), (_chain("c", 10),), (), {}, {"train": (), "eval": ()})
    columns = Columns(plan)
    assert len({columns.all[0].size(f) for f in columns.even("width", count, 1)}) == count
    depths = {columns.all[1].size(f) for f in columns.even("depth", count, 1)}
    assert len(depths) == min(count, 10)
    assert max(depths) == 10


# -- one factor of a product is the one that a user means


class GroupNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 32, 3), nn.GroupNorm(8, 32), nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.last = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1, groups=4), nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.mix(torch.relu(self.first(x))))
        return self.last(x.unflatten(1, (4, 8)).transpose(1, 2).flatten(1, 2))


@pytest.mark.parametrize("build", [GroupNormed, Shuffled])
def test_half_the_width_of_a_product_is_half(build: type[nn.Module]) -> None:
    _, blueprint = blueprint_of(build(), (torch.rand(2, 3, 6, 6),))
    halves(blueprint.space, blueprint.plan)


@pytest.mark.parametrize("name", ["tiny_vit", "group_norm", "qkv_per_head", "grouped_query_expand", "resnext"])
def test_half_is_half_in_every_dimension(name: str) -> None:
    halves(found(name)[1].space, found(name)[1].plan)


def halves(space: Space, plan: Plan) -> None:
    """At half of all groups no dimension of any tensor is less than half, rounding aside."""
    sizes = dict(space.subnet(**dict.fromkeys(space.groups, 0.5)).sizes)
    dims = [dim for shape in plan.shapes.values() for dim in shape]
    shares = [active(dim, sizes) / full(dim) for dim in dims]
    assert min(shares) >= 0.5
    assert any(share < 1 for share in shares)


def test_a_quarter_would_be_seen() -> None:
    axes = (_axis("a", "inner", 4, "width"), _axis("b", "inner", 8, "width"))
    plan = Plan(axes, (), (), {"weight": (parse("(a:4 * b:8)"),)}, {"train": (), "eval": ()})
    with pytest.raises(AssertionError):
        halves(Space(plan, CostModel([], ["a", "b"])), plan)


def test_trained_settings_are_what_budgets_choose_from() -> None:
    trained = Trained((("width", (0.5, 1.0)),), (), 8)
    assert dict(make_space(trained=trained).subnet(width=0.5).sizes) == {"hidden": 16, "ffn": 8, "heads": 4}
    assert SPACE.subnet(width=0.5) not in make_space(trained=trained).members()


# -- every size


def drawn(space: Space, count: int = 3000) -> list[Subnet]:
    generator = torch.Generator().manual_seed(5)
    return [space.sample(generator) for _ in range(count)]


def test_every_size_between_the_levels_is_drawn_and_no_other() -> None:
    space = LAYERED.using({"hidden": (0.25, 1.0), "inner": (0.5, 1.0), "depth": 3}, every=("hidden", "depth"))
    found = drawn(space)
    assert {dict(each.sizes)["hidden"] for each in found} == set(range(16, 65))
    assert {dict(each.sizes)["layers.0.inner"] for each in found} == {128, 256}
    assert {dict(each.depths)["layers"] for each in found} == {2, 3, 4, 5, 6}
    assert {dict(each.sizes)["layers.0.heads"] for each in found} == {8}
    assert space.count == 49 * 2 * 5
    counts = [sum(dict(each.sizes)["hidden"] == size for each in found) for size in range(16, 65)]
    assert min(counts) > 3000 / 49 / 2
    assert max(counts) < 3000 / 49 * 2


def test_every_size_that_rounding_allows() -> None:
    space = LAYERED.using({"hidden": (0.25, 1.0), "heads": (0.25, 1.0)}, multiple=12, every=("hidden", "heads"))
    assert {dict(each.sizes)["hidden"] for each in drawn(space)} == {12, 24, 36, 48, 60, 64}
    assert {dict(each.sizes)["layers.0.heads"] for each in drawn(space)} == set(range(2, 9))
    assert space.subnet(hidden=0.25) in space.members()


def test_axes_that_move_at_once_have_every_size_that_any_of_them_has() -> None:
    space = LAYERED.using({"width": (0.5, 1.0)}, every=("width",))
    found = {(dict(each.sizes)["hidden"], dict(each.sizes)["layers.3.inner"]) for each in drawn(space, 4000)}
    assert {inner for _, inner in found} == set(range(128, 257))
    assert {hidden for hidden, _ in found} == set(range(32, 65))
    assert all(abs(4 * hidden - inner) <= 2 for hidden, inner in found)
    untied = space.untied("inner")
    sizes = [dict(each.sizes) for each in drawn(untied, 50)]
    assert any(own["layers.0.inner"] != own["layers.1.inner"] for own in sizes)
    assert untied.count == 33 * 129**6


def test_any_size_between_the_levels_is_a_member_and_the_levels_are_the_landmarks() -> None:
    grid = LAYERED.using({"width": (0.25, 0.5, 1.0), "depth": (0.5, 1.0)})
    space = grid.using(every=("width", "depth"))
    assert space.landmarks() == grid.members()
    assert space.untied("inner").landmarks() == grid.members()
    assert set(grid.members()) <= set(space.members())
    assert len(space.members()) == space.count > 4 * grid.count
    assert all(space.is_member(each) for each in drawn(space, 200))
    assert space.is_member(space.subnet(width=0.631, depth=0.7))
    assert not grid.is_member(space.subnet(width=0.631, depth=0.7))
    assert not space.is_member(space.subnet(width=0.2))
    for name in ("smallest", "full"):
        assert getattr(space, name) == getattr(grid, name)


@pytest.mark.parametrize("budget", [0.15, 0.3, 0.43, 0.61, 0.87])
def test_budgets_come_closer_with_every_size(budget: float) -> None:
    grid = LAYERED.using({"width": (0.25, 0.5, 1.0), "depth": (0.5, 1.0)})
    space = grid.using(every=("width", "depth"))
    allowed = budget * space.cost(space.full).flops
    coarse, fine = (each.cost(each.at(budget)).flops for each in (grid, space))
    assert coarse <= fine <= allowed
    assert fine > 0.98 * allowed


def test_the_record_of_every_size_is_kept() -> None:
    trained = Trained((("width", (0.25, 1.0)),), multiple=4, every=("width",))
    assert Trained.from_json(trained.to_json()) == trained
    old = {name: value for name, value in trained.to_json().items() if name != "every"}
    assert Trained.from_json(old).every == ()
    space = Space(LAYERED._plan, LAYERED.exact, trained)
    assert space.is_member(space.using(every=()).subnet(width=0.4375))
    assert not space.using(every=()).is_member(space.subnet(width=0.4375))


@pytest.mark.parametrize(
    ("levels", "every", "text"),
    [
        ({"width": 4}, ("depth",), "every='depth': these axes stay full, give them levels"),
        ({"width": 4}, ("hidden",), "every: only some of the axes of 'width', which move at once"),
        ({"width": 4}, ("nothing",), "'nothing' is no group, axis or chain"),
    ],
)
def test_every_size_of_what_cannot_have_it_is_refused(
    levels: dict[str, int], every: tuple[str, ...], text: str
) -> None:
    with pytest.raises(AxesError, match=text):
        LAYERED.using(levels, every=every)
