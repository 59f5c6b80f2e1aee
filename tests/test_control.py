"""What users can ask for otherwise: fixed and freed axes, opaque modules, own rules; and what they are told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_attention as attention
from compare import assert_close_outputs
from torch import nn

from sortify import AxesError, Call, SortedModel, load, register_rule, sortify
from sortify.axes.reasons import NATURE, REMEDIES, remedy
from sortify.axes.rules import RULES

ROW = (torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)),)


class Attention(nn.Module):
    """One layer of two heads of four."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).view(x.shape[0], 3, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Attention() for _ in range(3))
        self.head = nn.Linear(8, 5)
        self.unused = nn.Linear(7, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def made(**control: Any) -> SortedModel:
    torch.manual_seed(0)
    return sortify(Net().eval(), ROW, **control)


def runs_everywhere(model: SortedModel) -> None:
    """The smallest sub-network equals its extraction."""
    small = model.extract(subnet=model.space.smallest)
    with model.using(model.space.smallest):
        assert_close_outputs(model(*ROW), small(*ROW), 1e-5)


# -- fix and free -----------------------------------------------------------------------------------------------------


def test_a_fixed_axis_is_gone_and_the_reason_names_the_pattern() -> None:
    assert "hidden" in made().axes
    model = made(fix="hidden")
    assert "hidden" not in model.axes
    told = [frozen for frozen in model.frozen if frozen.where == "head.weight dimension 1"]
    assert [frozen.why for frozen in told] == ["the caller fixed it: fix='hidden'"]
    assert "fix=" in told[0].remedy
    runs_everywhere(model)


def test_parameters_and_blocks_can_be_named_too() -> None:
    model = made(fix=["layers.1.qkv.*", "layers.2*"])
    assert "layers.0.heads" in model.axes
    assert "layers.1.heads" not in model.axes
    assert "hidden" not in model.axes  # the named parameters carry it
    assert [block.name for chain in model.chains.values() for block in chain.blocks] == ["layers.0", "layers.1"]
    runs_everywhere(model)


def test_head_dim_is_elastic_when_freed_and_a_group_of_its_own() -> None:
    assert "head_dim" not in made().space.groups
    model = made(free="*.head_dim")
    freed = [axis for axis in model.axes.values() if axis.kind == "head_dim"]
    assert len(freed) == 3  # one product makes queries, keys and values
    assert {axis.group for axis in freed} == {"head_dim"}
    assert "head_dim" in model.space.groups
    assert model.report is not None
    assert model.report.passed
    runs_everywhere(model)


def test_what_is_left_full_tells_the_pattern_that_frees_it() -> None:
    told = {frozen.remedy for frozen in made().frozen if "stays full by default" in frozen.why}
    patterns = [re.fullmatch(r"free='(.+)'", text) for text in told]
    assert all(patterns)
    model = made(free=[found[1] for found in patterns if found])
    assert not any("stays full by default" in frozen.why for frozen in model.frozen)


@pytest.mark.parametrize("option", ["fix", "free", "opaque"])
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest(option: str) -> None:
    with pytest.raises(AxesError, match=rf"{option}='layers\.9\.\*nothing' matches nothing in this model; there is "):
        made(**{option: "layers.9.*nothing"})


# -- opaque modules ---------------------------------------------------------------------------------------------------


def test_nothing_inside_an_opaque_module_is_elastic() -> None:
    model = made(opaque=["layers.1"])
    carried = {name for axis in model.axes.values() for name in axis.parameters}
    assert not any(name.startswith("layers.1.") for name in carried)
    assert any(name.startswith("layers.0.") for name in carried)
    told = [frozen for frozen in model.frozen if frozen.where.startswith("layers.1.qkv.weight")]
    assert {frozen.why for frozen in told} == {"its module is opaque"}
    assert {frozen.module for frozen in told} <= {"layers.1.norm", "layers.1.qkv", "layers.1", "layers.1.out"}
    runs_everywhere(model)


# -- rules of one's own -----------------------------------------------------------------------------------------------


@torch.library.custom_op("sortify_tests::scaled", mutates_args=())
def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor


@scaled.register_fake
def _(x: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("sortify_tests::weighted", mutates_args=())
def weighted(x: torch.Tensor) -> torch.Tensor:
    return x * torch.arange(x.shape[-1])


@weighted.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def __init__(self, op: Any) -> None:
        super().__init__()
        self.one, self.two, self.op = nn.Linear(8, 16), nn.Linear(16, 5), op

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.op(self.one(x).relu()))


def same(call: Call) -> Any:
    return call.dims("x")


@pytest.fixture(autouse=True)
def _table_as_it_was() -> Iterator[None]:
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


def test_an_op_without_a_rule_is_named_with_place_and_remedy() -> None:
    with pytest.raises(AxesError, match=r"nothing in this model is elastic: .*sortify_tests\.scaled\.default.*no rule"):
        sortify(Custom(lambda x: scaled(x, 2.0)), ROW)
    model = sortify(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8), Custom(lambda x: scaled(x, 2.0))), ROW)
    told = next(frozen for frozen in model.frozen if frozen.op == "sortify_tests.scaled.default")
    assert told.why == "this op has no rule"
    assert told.module == "3"
    assert Path(told.source.rpartition(":")[0]).name == Path(__file__).name
    assert "register_rule" in told.remedy


def test_a_registered_rule_makes_it_elastic() -> None:
    assert register_rule("sortify_tests.scaled.default", same) is same
    model = sortify(Custom(lambda x: scaled(x, 2.0)), ROW)
    assert [axis.size for axis in model.axes.values()] == [16]
    runs_everywhere(model)


def test_a_wrong_rule_is_caught_by_the_proof() -> None:
    register_rule("sortify_tests.weighted.default", same)
    model = sortify(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8), Custom(weighted)), ROW)
    assert [axis.size for axis in model.axes.values()] == [8, 6] or [a.size for a in model.axes.values()] == [6, 8]
    assert any("failed its proof" in frozen.why and frozen.remedy == remedy(frozen.why) for frozen in model.frozen)


def test_registration_is_checked() -> None:
    with pytest.raises(AxesError, match=r"no\.such\.op is no op"):
        register_rule("no.such.op", same)
    with pytest.raises(AxesError, match="must take one argument"):
        register_rule("sortify_tests.scaled.default", lambda: None)  # type: ignore[arg-type]
    with pytest.raises(AxesError, match="has a rule; say replace=True"):
        register_rule("aten.relu.default", same)
    before = RULES["aten.relu.default"]
    register_rule(torch.ops.aten.relu.default, same, replace=True)
    assert RULES["aten.relu.default"] is same
    assert before is not same


class Shows(Net):
    """The network, and the stream inside it."""

    def forward(self, x: torch.Tensor) -> dict[str, Any]:  # type: ignore[override]
        stream = self.layers[0](self.inside(x))
        return {"scores": self.head(stream), "inner": [stream, stream.mean(1)]}


def test_outputs_may_be_freed_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = Shows().eval()
    kept = sortify(original, ROW)
    assert "hidden" not in {axis.kind for axis in kept.axes.values()}
    assert "it is a dimension of the output 'inner.0'" in {frozen.why for frozen in kept.frozen}
    model = sortify(original, ROW, free=["inner.*"]).eval()
    assert "hidden" in {axis.kind for axis in model.axes.values()}
    assert model.report is not None
    assert model.report.passed
    with model.using(width=0.5):
        half = model(*ROW)
    assert [t.shape[-1] for t in (half["scores"], *half["inner"])] == [5, 4, 4]
    assert_close_outputs(model(*ROW), original(*ROW), 1e-6)
    runs_everywhere(model)
    model.save(tmp_path / "m")
    assert load(tmp_path / "m").verify().passed
    with pytest.raises(AxesError, match=r"free='outer' matches nothing"):
        sortify(original, ROW, free="outer")


# -- reasons ----------------------------------------------------------------------------------------------------------


def test_every_reason_is_complete_and_survives_saving(tmp_path: Path) -> None:
    model = made()
    assert all(frozen.remedy for frozen in model.frozen if frozen.where != "capture")
    told = {frozen.where: frozen for frozen in model.frozen}
    assert told["unused.weight dimension 0"].why == "no op uses it"
    assert told["head.weight dimension 0"].why == "it is a dimension of the output"
    model.save(tmp_path / "m")
    assert load(tmp_path / "m").frozen == model.frozen


def test_remedies_go_by_how_the_reason_begins() -> None:
    assert remedy("kernel size") == NATURE
    for start, advice in REMEDIES.items():
        assert remedy(f"{start} of something") == advice


# -- the meta device --------------------------------------------------------------------------------------------------


def test_a_model_on_the_meta_device_is_converted_and_says_that_it_is_unproven() -> None:
    real = made()
    with torch.device("meta"):
        model = sortify(Net().eval(), ROW)
    assert model.axes == real.axes
    assert model.chains == real.chains
    assert model.cost(model.space.smallest) == real.cost(real.space.smallest)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.report is not None
    for report in (model.report, model.verify()):
        assert not report.passed
        assert "meta device" in report.rows[0].note


@pytest.mark.parametrize("kind", [attention.GroupedQuery, attention.GroupedQueryExpand])
@pytest.mark.parametrize("repeats", [2, 6])
def test_heads_of_grouped_queries_are_the_groups_however_many_heads_a_group_has(kind: Any, repeats: int) -> None:
    class Layer(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(16, heads=3, head_dim=4, repeats=repeats)

    model = sortify(Layer(), (torch.randn(2, 5, 16),))
    (axis,) = model.axes.values()
    assert (axis.kind, axis.size) == ("heads", 3)
    assert set(axis.parameters) == {"q.weight", "k.weight", "v.weight", "o.weight"}
