"""The original beside a graph of it: rounding that a model amplifies is told from a fault by running in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compare import assert_close_outputs
from torch import Tensor, fx, nn
from zoo import ROW, randomize

from sortify import SortedModel, sortify
from sortify.errors import CaptureError, ProofError
from sortify.proof.original import Gradients, gap
from sortify.proof.proof import GRADIENTS
from sortify.rewriting.rewrite import rewrite


class Amplified(nn.Module):
    """What is left after a sum has lost its lower digits, enlarged: float32 gives little more than its rounding.

    The tracer sees the same sum added up in another order, as a kernel may do.
    """

    def __init__(self, factor: float = 1e5) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(24, 5)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.fc1(x))
        a, b = self.fc2(hidden), self.fc2(hidden * 0.3)
        left = (a + b) + 0.7 if not torch.compiler.is_exporting() else a + (b + 0.7)
        return self.head(torch.tanh((left - a - b - 0.7) * self.factor))


def identities(model: SortedModel) -> list[Any]:
    assert model.report is not None
    return [row for row in model.report.rows if row.name.startswith("identity")]


def test_amplified_rounding_is_compared_in_float64() -> None:
    model = sortify(randomize(Amplified(), 1), ROW())
    for row in identities(model):
        assert row.passed
        assert "float64; in float32" in row.note
        assert row.tolerance == 1e-10


def test_without_amplification_float32_decides() -> None:
    original = randomize(Amplified(1.0), 1)
    model = sortify(original, ROW())
    assert all(row.tolerance == 1e-5 and "float64" not in row.note for row in identities(model))
    assert_close_outputs(model(*ROW()), original(*ROW()), 1e-5)


def twisted(single: float, double: float) -> Callable[..., fx.GraphModule]:
    """A rewriting whose outputs are off by one amount in float32 and by another in float64."""

    def wrong(program: Any, plan: Any, mode: str, infos: Any) -> fx.GraphModule:
        module = rewrite(program, plan, mode, infos)
        for node in module.graph.nodes:
            if node.target is torch.ops.aten.tanh.default:
                node.target = lambda x: torch.tanh(x) + (double if x.dtype == torch.float64 else single)
        module.recompile()
        return module

    return wrong


@pytest.mark.parametrize(
    ("factor", "single", "double"),
    [(1.0, 1e-3, 0.0), (1e5, 0.0, 1e-4), (1e5, 1e3, 0.0)],
    ids=["exact in float64, and nothing amplifies", "wrong in float64", "further off than rounding goes"],
)
def test_a_fault_does_not_hide_behind_rounding(
    factor: float, single: float, double: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sortify.network.blueprint.rewrite", twisted(single, double))
    with pytest.raises(ProofError, match="identity"):
        sortify(randomize(Amplified(factor), 1), ROW())


def test_what_does_not_run_in_float64_is_compared_in_float32() -> None:
    class Half(Amplified):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) @ torch.eye(5)

    with pytest.raises(CaptureError, match="gives other outputs than the graph that torch"):
        sortify(randomize(Half(), 1), ROW())


class Bounded(nn.Module):
    """Clamps by limits that are infinite before anybody has measured them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 5)
        self.register_buffer("low", torch.tensor(-float("inf")))
        self.register_buffer("high", torch.tensor(float("inf")))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x).clamp(self.low, self.high)
        out: Tensor = self.fc2(hidden.relu())
        return out


def test_buffers_may_be_infinite() -> None:
    assert all(row.error == 0 for row in identities(sortify(Bounded(), ROW())))


class Watched(nn.Module):
    """Another function while it is traced, around a part that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out * 2 if torch.compiler.is_exporting() else out


def test_what_acts_otherwise_while_it_is_traced_goes_by_parts() -> None:
    original = randomize(Watched(), 1)
    model = sortify(original, ROW())
    assert [path for path, _ in model.captured_parts()] == ["body."]
    assert any("than the graph that torch.export makes of it" in str(frozen) for frozen in model.frozen)
    assert_close_outputs(model(*ROW()), original(*ROW()), 1e-5)


class Straight(torch.autograd.Function):
    """Rounds, and lets gradients through as if it had not (a straight-through estimator, arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Rounded(nn.Module):
    """Two blocks with rounding between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6))
        self.last = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Straight.apply(3 * self.first(x)))  # type: ignore[no-untyped-call]


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(*ROW()).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_a_backward_pass_of_its_own_stays_outside_of_the_graphs() -> None:
    original = randomize(Rounded(), 1)
    model = sortify(original, ROW())
    assert {path for path, _ in model.captured_parts()} == {"first.", "last."}
    assert any("trains in another way than the graph" in str(frozen) for frozen in model.frozen)
    expected = gradients_of(original)
    assert expected["first.0.weight"].abs().max() > 0
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected[name])


def test_for_evaluation_alone_it_is_captured_whole() -> None:
    model = sortify(randomize(Rounded(), 1), ROW(), training=False)
    assert [path for path, _ in model.captured_parts()] == [""]
    assert all(row.name != GRADIENTS for row in model.report.rows)  # type: ignore[union-attr]


def test_gradients_are_part_of_every_proof() -> None:
    rows = [row for row in sortify(randomize(Amplified(1.0), 1), ROW()).report.rows if row.name == GRADIENTS]  # type: ignore[union-attr]
    assert [row.passed for row in rows] == [True]


def test_the_gap_of_gradients_is_seen() -> None:
    one = [torch.tensor([1.0, 4.0]), torch.zeros(2)]
    assert gap(one, one) == 0
    assert gap(one, [torch.tensor([1.0, 4.0]), torch.tensor([0.0, 1.0])]) == 0.25
    assert gap([torch.zeros(2)], [torch.ones(2)]) == float("inf")
    assert gap([torch.zeros(2)], [torch.zeros(2)]) == gap([], []) == 0
    assert gap([torch.ones(1)], [torch.tensor([float("nan")])]) == float("inf")
    assert gap(one, [torch.tensor([1.0, float("nan")]), torch.zeros(2)]) == float("inf")


def test_gradients_in_bundles_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.rand(3, 2, requires_grad=True) for _ in range(5)]
    total = sum((weight**3).sum() for weight in weights[:4])
    whole = list(Gradients(total, weights, originals=True))
    monkeypatch.setattr("sortify.proof.original.BUNDLE", 7)
    bundled = Gradients(total, weights, originals=True)
    for _ in range(2):  # whoever asks again gets them again
        assert all(torch.equal(a, b) for a, b in zip(bundled, whole, strict=True))
    assert torch.equal(whole[0], 3 * weights[0] ** 2)
    assert not whole[4].any()


class SwitchesOn(nn.Module):
    """Wants the gradient of its input in training, as speech models do for recomputed blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not torch.compiler.is_compiling():
            x.requires_grad = True
        out: Tensor = self.down(self.up(x).relu())
        return out


def test_a_model_that_switches_the_gradients_of_its_inputs_on_is_proven() -> None:
    report = sortify(randomize(SwitchesOn(), 1), ROW()).report
    assert report is not None
    assert [row.passed for row in report.rows if row.name == GRADIENTS] == [True]
