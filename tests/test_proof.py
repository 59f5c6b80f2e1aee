"""Proof: wrong rules, wrong rewrites and wrong answers are caught, and only what is wrong is given up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo_conv as conv
from compare import assert_close_outputs
from torch import Tensor, fx, nn
from zoo import IMAGE, ROW, randomize

from sortify import SortedModel, convert, sortify
from sortify.axes.rules import RULES
from sortify.axes.rules.pointwise import pointwise, same_shape
from sortify.errors import CaptureError, ProofError
from sortify.proof import proof, trials
from sortify.rewriting.rewrite import rewrite


class Three(nn.Module):
    """Three hidden widths in a row, and what a subclass does to the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, 5)

    def mixed(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        return self.head(torch.tanh(self.fc3(self.mixed(x))))


class Flipped(Three):
    def mixed(self, x: Tensor) -> Tensor:
        return x.flip(-1)


class Summed(Three):
    def mixed(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


class Rolled(Three):
    def mixed(self, x: Tensor) -> Tensor:
        return x.roll(3, -1)


class Joined(nn.Module):
    """Two equal widths side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(16, 24)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.cat([torch.tanh(self.left(x)), torch.relu(self.right(x))], -1))


def swapped_cat(call: Any) -> Any:
    """Ties each segment to the wrong one."""
    left, right = (call.dims_of(tensor) for tensor in call["tensors"])
    return RULES_AS_THEY_ARE["aten.cat.default"](_Swapped(call, {left: right, right: left}))


class _Swapped:
    """A call whose tensors trade their dimensions."""

    def __init__(self, call: Any, other: dict[Any, Any]) -> None:
        self._call, self._other = call, other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __getitem__(self, name: str) -> Any:
        return self._call[name]

    def dims_of(self, value: Any) -> Any:
        return self._other[self._call.dims_of(value)]


RULES_AS_THEY_ARE = dict(RULES)


def with_rule(monkeypatch: pytest.MonkeyPatch, op: str, rule: Callable[..., Any], module: nn.Module) -> SortedModel:
    monkeypatch.setitem(RULES, op, rule)
    return sortify(randomize(module, 3), ROW())


def sizes(model: SortedModel) -> dict[str, int]:
    """The size of each axis, by the name of the layer that makes it."""
    return {axis.parameters[0].split(".")[0]: axis.size for axis in model.axes.values()}


# -- wrong rules --------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, Callable[..., Any], type[nn.Module]]] = {
    "a reversal declared pointwise": ("aten.flip.default", same_shape, Flipped),
    "a running sum declared pointwise": ("aten.cumsum.default", pointwise, Summed),
    "a rotation declared pointwise": ("aten.roll.default", same_shape, Rolled),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_rule_is_caught_and_costs_only_its_axis(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, rule, network = WRONG[wrong]
    model = with_rule(monkeypatch, op, rule, network())
    assert sizes(model) == {"fc1": 16, "fc3": 12}
    given_up = {frozen.where: frozen.why for frozen in model.frozen if "failed its proof" in frozen.why}
    assert set(given_up) == {"fc2.weight dimension 0", "fc2.bias dimension 0", "fc3.weight dimension 1"}
    assert all("fc2" in why and "permuting it changed the outputs" in why for why in given_up.values())
    report = model.verify()
    assert report.passed
    assert any("2 axes" in row.note for row in report.rows if row.name == "permutation")
    small = model.space.smallest
    with model.using(small):
        assert_close_outputs(model(*ROW()), model.extract(subnet=small)(*ROW()), 1e-6)


@pytest.mark.parametrize("wrong", WRONG)
def test_the_same_networks_need_no_proof_with_the_right_rules(wrong: str) -> None:
    _, _, network = WRONG[wrong]
    model = sortify(randomize(network(), 3), ROW())
    assert {"fc1": 16, "fc3": 12}.items() <= sizes(model).items()
    assert not any("failed its proof" in frozen.why for frozen in model.frozen)


def test_a_rule_that_ties_the_wrong_parts_costs_both_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sortify(randomize(Joined(), 3), ROW())
    assert sizes(right) == {"stem": 16, "left": 24, "right": 24}
    model = with_rule(monkeypatch, "aten.cat.default", swapped_cat, Joined())
    assert sizes(model) == {"stem": 16}
    given_up = [frozen.where for frozen in model.frozen if "failed its proof" in frozen.why]
    assert {where.split(".")[0] for where in given_up} == {"left", "right", "head"}
    assert model.verify().passed


def test_a_wrong_rule_in_a_part_that_only_training_has_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Auxiliary(Three):
        def __init__(self) -> None:
            super().__init__()
            self.aux1, self.aux2 = nn.Linear(24, 20), nn.Linear(20, 5)

        def forward(self, x: Tensor) -> Any:
            y = torch.relu(self.fc2(torch.relu(self.fc1(x))))
            out = self.head(torch.tanh(self.fc3(y)))
            return (out, self.aux2(self.aux1(y).flip(-1))) if self.training else out

    model = with_rule(monkeypatch, "aten.flip.default", same_shape, Auxiliary())
    assert sizes(model) == {"fc1": 16, "fc2": 24, "fc3": 12}
    assert {f.where.split(".")[0] for f in model.frozen if "failed its proof" in f.why} == {"aux1", "aux2"}
    assert any(row.name == "permutation (train)" for row in model.verify().rows)


def test_a_rule_that_forgets_a_size_costs_its_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Permuting does not show it, cutting does: the norm keeps its full size."""

    class Normed(Three):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(24)

        def mixed(self, x: Tensor) -> Tensor:
            return self.norm(x)

    right = RULES["aten.layer_norm.default"]

    def forgetful(call: Any) -> Any:
        dims = right(call)
        call.literals.clear()
        return dims

    model = with_rule(monkeypatch, "aten.layer_norm.default", forgetful, Normed())
    assert sizes(model) == {"fc1": 16, "fc3": 12}
    reasons = {frozen.why for frozen in model.frozen if "failed its proof" in frozen.why}
    assert len(reasons) == 1
    assert "cutting it" in reasons.pop()
    assert model.verify().passed


class ZeroHead(Flipped):
    """A fresh head: all outputs are zero, whatever comes before it."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def test_zeros_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "aten.flip.default", same_shape)
    module = ZeroHead()
    model = sortify(module, ROW())
    assert sizes(model) == {"fc1": 16, "fc3": 12}
    assert float(module.head.weight.detach().abs().max()) == 0.0
    assert float(model.state_dict()["head.weight"].abs().max()) == 0.0


# -- wrong rewrites -----------------------------------------------------------------------------------------------


def with_op(old: Any, new: Any, mode: str) -> Callable[..., fx.GraphModule]:
    """A rewriting that also puts one op for another."""

    def wrong(program: Any, plan: Any, when: str, infos: Any) -> fx.GraphModule:
        module = rewrite(program, plan, when, infos)
        for node in module.graph.nodes:
            if node.target is old and when == mode:
                node.target = new
        module.recompile()
        return module

    return wrong


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_wrong_rewrite_is_refused(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    aten = torch.ops.aten
    monkeypatch.setattr("sortify.network.blueprint.rewrite", with_op(aten.tanh.default, aten.sigmoid.default, mode))
    with pytest.raises(ProofError, match=rf"Three: identity \({mode}\) failed: error .*allowed 1e-05") as refusal:
        sortify(Three(), ROW())
    assert "\n" not in str(refusal.value)


def test_a_wrong_write_to_a_buffer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(program: Any, plan: Any, mode: str, infos: Any) -> fx.GraphModule:
        module = rewrite(program, plan, mode, infos)
        for node in module.graph.nodes:
            if node.target is torch.ops.aten.batch_norm.default:
                node.update_arg(6, 0.5)
        module.recompile()
        return module

    monkeypatch.setattr("sortify.network.blueprint.rewrite", wrong)
    with pytest.raises(ProofError, match=r"identity \(train\)"):
        sortify(conv.UNet(), IMAGE())


def test_a_wrong_extraction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = proof.cut

    def wrong(*args: Any) -> torch.Tensor:
        return right(*args) + 0.1

    monkeypatch.setattr(proof, "cut", wrong)
    with pytest.raises(ProofError, match=r"slice = extraction"):
        sortify(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)), ROW())


# -- the report ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> SortedModel:
    return sortify(randomize(Three(), 3), ROW())


def test_report_has_a_row_for_each_check(model: SortedModel) -> None:
    report = model.verify()
    names = [row.name for row in report.rows]
    assert names[:3] == ["identity (train)", "identity (eval)", "permutation"]
    assert {"slice = extraction (half)", "slice = extraction (full)"} <= set(names)
    assert report.passed
    assert all(row.passed for row in report.rows)
    assert all(row.tolerance == (1e-10 if row.name == "permutation" else 1e-5) for row in report.rows)


def test_one_failed_row_fails_the_report() -> None:
    good, bad, unknown = (proof.Check("x", error, 1e-5) for error in (0.0, 1e-4, math.nan))
    assert proof.Report((good,)).passed
    assert not proof.Report((good, bad)).passed
    assert not unknown.passed


def test_verify_changes_nothing(model: SortedModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random, active, training = torch.get_rng_state(), model.activate(width=0.5), model.training
    assert model.verify().passed
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.active, model.training) == (active, training)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.activate()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_verify_after_a_move(dtype: torch.dtype) -> None:
    model = sortify(randomize(Three(), 3), ROW()).to(dtype)
    report = model.verify()
    assert report.passed, report


def test_bisection_finds_several(model: SortedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = list(model.axes)
    wrong = {axes[0], axes[2]}

    def error_of(*args: Any) -> Callable[[Any], float]:
        return lambda names: float(bool(wrong & set(names)))

    monkeypatch.setattr(proof, "permutation_error", error_of)
    found = proof.failing_axes(model.blueprint, model.tensors, model.example_tensors)
    assert set(found) == wrong


class OwnDtype(nn.Module):
    """Makes a tensor in the default dtype, so it runs in that dtype alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).relu()) + x.sum(-1, keepdim=True) @ torch.ones(1, 5)


def test_a_model_that_does_not_run_in_float64_is_permuted_in_its_own_dtype() -> None:
    model = sortify(randomize(OwnDtype(), 3), ROW())
    row = next(row for row in model.verify().rows if row.name == "permutation")
    assert row.passed
    assert row.tolerance == 1e-5
    assert "it does not run in float64: " in row.note
    assert [axis.size for axis in model.axes.values()] == [16]


def test_axes_that_fail_only_together_are_all_given_up(model: SortedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def error_of(*args: Any) -> Callable[[Any], float]:
        return lambda names: float(len(list(names)) == 3)

    monkeypatch.setattr(proof, "permutation_error", error_of)
    found = proof.failing_axes(model.blueprint, model.tensors, model.example_tensors)
    assert set(found) == set(model.axes)


def test_perturbed_tensors_differ_everywhere_and_leave_the_given_ones(model: SortedModel) -> None:
    given = {
        "weight": nn.Parameter(torch.zeros(50)),
        "mean": torch.zeros(50),
        "variance": torch.ones(50),
        "count": torch.tensor(3),
    }
    given["table"] = torch.zeros(50)
    noisy = trials.perturbed(given, ["mean", "variance"])
    assert float(noisy["weight"].std()) > 1e-3
    assert float(noisy["mean"].std()) > 1e-3
    assert float(noisy["variance"].std()) > 1e-3
    assert float(noisy["variance"].min()) > 0
    assert noisy["count"].item() == 3
    assert noisy["count"] is not given["count"]
    assert float(given["weight"].detach().abs().max()) == 0.0
    assert not noisy["weight"].requires_grad
    assert torch.equal(noisy["table"], given["table"])


# -- wrong answers ------------------------------------------------------------------------------------------------

X = torch.linspace(-2.0, 2.0, 6).reshape(2, 3)
NAN = torch.where(X > 1.9, math.nan, X)
DIFFERENT: dict[str, tuple[Any, Any, float]] = {
    "equal": (X, X.clone(), 0.0),
    "equal in a structure": ({"a": [X, None], "b": (1, X)}, {"a": [X, None], "b": (1, X)}, 0.0),
    "NaN in the same places": (NAN, NAN.clone(), 0.0),
    "infinite in the same places": (X / X.clamp(min=0), X / X.clamp(min=0), 0.0),
    "no finite number": (X * math.inf, X * math.inf, math.inf),
    "an empty tensor beside": ((X, X[:0]), (X, X[:0]), 0.0),
    "no numbers in it": (torch.zeros(0, 3), torch.zeros(0, 3), 0.0),
    "a small error": (X, X + 2e-3, 1e-3),
    "an error in one place": (X, X + 2e-3 * (X > 1.9), 1e-3),
    "an error in the second tensor": ((X, X), (X, X + 2e-3), 1e-3),
    "another dtype, equal": (X, X.double(), 0.0),
    "shape": (X, X.T, math.inf),
    "shape that broadcasts": (X, X[:1], math.inf),
    "NaN in one": (X, NAN, math.inf),
    "NaN in the other": (NAN, X, math.inf),
    "infinite in one": (X, torch.where(X > 1.9, math.inf, X), math.inf),
    "fewer tensors": ((X, X), (X,), math.inf),
    "names": ({"a": X}, {"b": X}, math.inf),
    "dict for tuple": ({"a": X}, (X,), math.inf),
    "None for a tensor": ((X, None), (X, X), math.inf),
    "nesting": ([X, [X]], [[X], X], math.inf),
    "integers": (torch.tensor([1, 2]), torch.tensor([1, 3]), math.inf),
    "integers for floats": (torch.tensor([1.0]), torch.tensor([1]), math.inf),
    "a plain value": ((X, 1), (X, 2), math.inf),
    "nothing to compare": ((), (), math.inf),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_difference(case: str) -> None:
    expected, found, error = DIFFERENT[case]
    assert proof.difference(expected, found) == pytest.approx(error, rel=1e-3)


def test_difference_is_relative_to_the_expected_scale() -> None:
    assert proof.difference(X * 1000, X * 1000 + 2.0) == pytest.approx(1e-3, rel=1e-3)
    assert proof.difference(torch.zeros(3), torch.full((3,), 1e-4)) == pytest.approx(0.1)


def test_conversion_stops_when_nothing_can_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that fails for no axis is an error, not an endless loop."""
    failed = proof.Report((proof.Check("slice = extraction (half)", 1.0, 1e-5, "half"),))
    monkeypatch.setattr(convert.proof, "prove", lambda *args: failed)
    monkeypatch.setattr(convert.proof, "axes_that_do_not_slice", lambda *args: [])
    with pytest.raises(ProofError, match=r"slice = extraction \(half\) failed: error 1, allowed 1e-05 \(half\)"):
        sortify(Three(), ROW())


def test_a_tensor_without_data_equals_nothing() -> None:
    with torch._subclasses.FakeTensorMode():
        fake = torch.ones(3)
    assert proof.difference(fake, fake) == float("inf")
    assert proof.difference(torch.ones(3), fake) == float("inf")


# -- numbers that are not finite


class Growing(nn.Module):
    """Each layer keeps its input's scale; with weights a little larger the output overflows."""

    def __init__(self, layers: int = 40, width: int = 64, start: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.start = start
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.start
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_network_that_overflows_when_it_is_perturbed_is_perturbed_less() -> None:
    original = Growing(80).eval()
    x = 1e37 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    more = dict(trials.perturbed(dict(original.named_parameters())))
    assert original(x).isfinite().all()
    assert not torch.func.functional_call(original, more, (x,)).isfinite().all()
    model = sortify(original, (x,))
    assert model.report is not None
    assert model.report.passed


def test_a_model_that_gives_no_finite_number_is_told_so() -> None:
    with pytest.raises(CaptureError, match="no finite number on the example inputs"):
        sortify(Growing(2, start=float("nan")), (torch.randn(2, 64),))


class Noisy(Three):
    """Draws noise in evaluation too, as vocoders do."""

    def forward(self, x: Tensor) -> Tensor:
        started = x + torch.randn_like(x)
        return super().forward(started) + torch.rand(len(x), 5)


def test_models_that_draw_noise_are_proven() -> None:
    model = sortify(randomize(Noisy(), 3), ROW())
    assert model.report is not None
    assert model.report.passed
    assert len(model.plan.axes) == 3
