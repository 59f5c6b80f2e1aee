"""Capture of modules as users bring them: each works, or is refused in one clear line; none is changed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compare import assert_close_outputs, assert_same_tensors
from torch import Tensor, nn

from sortify import SortedModel, sortify
from sortify.capture.capture import capture, examples_to_prove
from sortify.capture.prepare import mode_of
from sortify.errors import CaptureError, InputError

SINGLE = 1e-6


def rows(samples: int = 3, width: int = 8) -> Tensor:
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(3))


def tokens(samples: int = 3, length: int = 6) -> Tensor:
    return torch.randint(0, 30, (samples, length), generator=torch.Generator().manual_seed(3))


def notes(model: SortedModel) -> list[str]:
    return [frozen.why for frozen in model.frozen if frozen.where == "capture"]


class MLP(nn.Module):
    """Two layers; the tests below bend its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc2(torch.relu(self.fc1(x)))


# -- inputs and outputs -------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Scores:
    logits: Tensor
    sizes: dict[str, Tensor]


@dataclasses.dataclass
class Pair:
    left: Tensor
    right: Tensor


class GivesDataclass(MLP):
    def forward(self, x: Tensor) -> Scores:
        y = super().forward(x)
        return Scores(y, {"norm": y.norm(dim=-1)})


class TakesDataclass(MLP):
    def forward(self, pair: Pair) -> Tensor:
        return super().forward(pair.left + pair.right)


class TakesLists(MLP):
    def forward(self, xs: list[Tensor], more: dict[str, list[Tensor]]) -> list[Tensor]:
        return [super(TakesLists, self).forward(x) for x in [*xs, *more["rest"]]]


class TakesPlainValues(MLP):
    def forward(self, x: Tensor, kind: str, times: int = 1, shift: Tensor | None = None) -> Tensor:
        h = torch.relu(self.fc1(x)) * times
        return self.fc2(h if kind == "wide" else -h)


class TakesKeywords(MLP):
    def forward(self, *, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)) * (1.0 if mask is None else mask))


class TakesAnything(MLP):
    def forward(self, *xs: Tensor, **more: Tensor) -> Tensor:
        return super().forward(sum([*xs, *more.values()]))


CALLS: dict[str, tuple[type[MLP], tuple[Any, ...], dict[str, Any]]] = {
    "dataclass out": (GivesDataclass, (rows(),), {}),
    "dataclass in": (TakesDataclass, (Pair(rows(), rows() + 1),), {}),
    "lists": (TakesLists, ([rows(), rows(4)], {"rest": [rows(2)]}), {}),
    "plain values": (TakesPlainValues, (rows(), "wide", 2, None), {}),
    "keyword only": (TakesKeywords, (), {"x": rows(), "mask": torch.full((3, 1), 2.0)}),
    "keyword None": (TakesKeywords, (), {"mask": None, "x": rows()}),
    "any number": (TakesAnything, (rows(), rows() + 1), {}),
    "any names": (TakesAnything, (), {"a": rows(), "b": rows() + 1}),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_and_outputs_of_every_form(name: str) -> None:
    build, args, kwargs = CALLS[name]
    original = build().eval()
    model = sortify(original, args or kwargs)
    out = model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    expected = original(*args, **kwargs)
    assert type(out) is type(expected)
    assert_close_outputs(out, expected, SINGLE)
    with model.using(width=0.5), pytest.raises(AssertionError):
        assert_close_outputs(model(*args, **kwargs), expected, SINGLE)


# -- open dimensions ----------------------------------------------------------------------------------------------


class FixedPositions(nn.Module):
    """Two token inputs; the second one's length is tied to a table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 16), nn.Linear(16, 30)
        self.table = nn.Parameter(torch.randn(6, 16))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.head(self.embed(first).mean(1) + (self.embed(second) + self.table).mean(1))


class LooksUpLength(FixedPositions):
    """The tracer refuses to look up an open size in a table, instead of settling it."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.head(self.embed(first).mean(1) + self.embed(second).mean(1) * {6: 2.0}[second.shape[1]])


class FixedBatch(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(3, 8))


class FixedInTraining(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(3, 8) if self.training else x)


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


class FixedImage(Pixels):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize("build", [FixedPositions, LooksUpLength])
def test_one_sequence_is_given_up_and_the_rest_stays_open(build: type[FixedPositions]) -> None:
    original = build().eval()
    model = sortify(original, (tokens(), tokens()))
    assert [text.partition(":")[2].partition(" is")[0] for text in notes(model)] == [
        " dimension 1 (the sequence length)"
    ]
    assert notes(model)[0].startswith("input 'second': dimension 1 (the sequence length) is fixed at 6")
    args = tokens(2, 9), tokens(2, 6)
    assert_close_outputs(model(*args), original(*args), SINGLE)
    with pytest.raises(InputError, match=r"input 'second': dimension 1 is fixed at 6.*got int64 \[2, 9\]"):
        model(tokens(2, 9), tokens(2, 9))


@pytest.mark.parametrize("build", [FixedBatch, FixedInTraining])
def test_a_batch_that_either_mode_fixes_is_fixed_and_told(build: type[MLP]) -> None:
    model = sortify(build(), (rows(),))
    assert notes(model) == ["input 'x': dimension 0 (the batch size) is fixed at 3"]
    with pytest.raises(InputError, match=r"dimension 0 is fixed at 3"):
        model(rows(6))


def test_image_sizes_are_open_where_asked() -> None:
    original = Pixels().eval()
    images = torch.randn(2, 3, 8, 8)
    with pytest.raises(InputError, match="fixed at 8"):
        sortify(original, (images,)).eval()(torch.randn(2, 3, 9, 12))
    model = sortify(original, (images,), dynamic={"x": (2, 3)})
    other = torch.randn(1, 3, 9, 12)
    assert_close_outputs(model(other), original(other), SINGLE)
    assert model.report is not None
    assert model.report.passed


@pytest.mark.parametrize(
    ("dynamic", "proven"), [({"x": (2, 3)}, (256, 256)), ({"x": (2,)}, (256, 300)), (None, (280, 300))]
)
def test_large_images_are_proven_on_a_corner(dynamic: Any, proven: tuple[int, int]) -> None:
    captured = capture(Pixels(), (torch.randn(2, 3, 280, 300),), dynamic)
    (found,) = examples_to_prove(captured, Pixels())
    assert tuple(found.shape[2:]) == proven


def test_image_sizes_that_cannot_be_open_are_told() -> None:
    model = sortify(FixedImage(), (torch.randn(2, 3, 8, 8),), dynamic={"x": (2, 3)})
    assert notes(model) == [f"input 'x': dimension {dim} is fixed at 8" for dim in (2, 3)]


@pytest.mark.parametrize(
    ("dynamic", "text"), [({"y": (2,)}, "'y' is no input tensor; there are x"), ({"x": (4,)}, "dimensions 0 to 3")]
)
def test_open_dimensions_that_do_not_exist_are_refused(dynamic: dict[str, tuple[int, ...]], text: str) -> None:
    with pytest.raises(CaptureError, match=text):
        sortify(Pixels(), (torch.randn(2, 3, 8, 8),), dynamic=dynamic)


# -- what a forward changes ---------------------------------------------------------------------------------------


class ChangesInput(MLP):
    def forward(self, x: Tensor) -> Tensor:
        x.add_(1.0)
        return self.fc2(torch.relu_(self.fc1(x)))


class CountsCalls(MLP):
    """A buffer that changes in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) + self.calls


class ReplacesBuffer(MLP):
    """A moving average that is a new tensor after every training step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        if self.training:
            self.average = 0.9 * self.average + 0.1 * h.detach().mean(0)
        return self.fc2(torch.relu(h - self.average))


class KeepsLast(MLP):
    def forward(self, x: Tensor) -> Tensor:
        self.last = torch.relu(self.fc1(x))
        return self.fc2(self.last)


@pytest.mark.parametrize("build", [ChangesInput, CountsCalls, KeepsLast])
def test_forwards_that_change_things_change_the_same_things(build: type[MLP]) -> None:
    original, given = build().eval(), rows()
    before = copy.deepcopy(original.state_dict())
    model = sortify(original, (given,))
    assert torch.equal(given, rows())
    assert_same_tensors(original.state_dict(), before)
    assert not hasattr(original, "last")
    ours, theirs = rows(), rows()
    for _ in range(2):
        assert_close_outputs(model(ours), original(theirs), SINGLE)
    assert torch.equal(ours, theirs)
    assert_same_tensors(dict(model.state_dict()), dict(original.state_dict()))


def test_buffers_that_are_replaced_in_training_are_replaced() -> None:
    original = ReplacesBuffer().train()
    model = sortify(original, (rows(),))
    for _ in range(2):
        assert_close_outputs(model(rows()), original(rows()), SINGLE)
    assert original.average.abs().sum() > 0
    assert_close_outputs(dict(model.state_dict()), dict(original.state_dict()), SINGLE)


def test_modes_and_attributes_come_back() -> None:
    module = nn.Sequential(KeepsLast(), nn.Dropout())
    module[1].eval()
    with mode_of(module, True):
        assert module[1].training
        module(rows())
        assert isinstance(module[0].last, Tensor)
    assert module[0].training
    assert not module[1].training
    assert not hasattr(module[0], "last")


# -- parameters ---------------------------------------------------------------------------------------------------


class StoredView(MLP):
    def __init__(self) -> None:
        super().__init__()
        self.part = self.fc1.weight[:8]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x @ self.part.t())[:, :5]


class ViewInForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat, self.head = nn.Parameter(torch.randn(2 * 16 * 8)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.flat.view(2, 16, 8)
        return self.head(torch.relu(x @ first.t() + x @ second.t()))


class Adapter(nn.Module):
    """A frozen linear layer with a trainable low-rank addition (LoRA, arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


def adapted() -> nn.Module:
    model = MLP()
    model.fc1, model.fc2 = Adapter(model.fc1), Adapter(model.fc2)  # type: ignore[assignment]
    return model


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def parametrized() -> nn.Module:
    model = MLP()
    nn.utils.parametrize.register_parametrization(model.fc1, "weight", Doubled())
    return model


def orthogonal() -> nn.Module:
    model = MLP()
    nn.utils.parametrizations.orthogonal(model.fc1)
    return model


def run_once() -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 5))
    model(rows())
    return model


@pytest.mark.parametrize("build", [ViewInForward, adapted, parametrized, orthogonal, run_once, MLP().bfloat16])
def test_parameters_of_every_make_keep_names_and_gradients(build: Callable[[], nn.Module]) -> None:
    original = build()
    x = rows().to(next(original.parameters()).dtype)
    model = sortify(original, (x,))
    for module in (original, model):
        module(x).square().mean().backward()
    assert list(model.state_dict()) == list(original.state_dict())
    ours, theirs = (dict(module.named_parameters()) for module in (model, original))
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        mine = ours[name]
        assert mine.requires_grad == parameter.requires_grad
        if parameter.grad is not None:
            assert_close_outputs(mine.grad, parameter.grad, SINGLE)
    assert model.axes


def shared_memory() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5))
    model[2].weight = nn.Parameter(model[1].weight.data)
    return model


def test_parameters_that_share_memory_unseen_are_told() -> None:
    assert "2.weight and 1.weight share memory but are two parameters" in notes(sortify(shared_memory(), (rows(),)))[0]


def test_tied_parameters_stay_tied() -> None:
    module = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 5))
    module[3].weight = module[1].weight
    model = sortify(module, (rows(),))
    assert notes(model) == []
    assert len(list(model.parameters())) == len(list(module.parameters()))


# -- wrappers and hooks -------------------------------------------------------------------------------------------


def compiled_in_place() -> nn.Module:
    model = MLP()
    model.compile(backend="eager")
    return model


WRAPPED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "compiled": (lambda: torch.compile(MLP(), backend="eager"), "OptimizedModule was taken off"),
    "parallel": (lambda: nn.DataParallel(MLP()), "DataParallel was taken off"),
    "both": (lambda: nn.DataParallel(torch.compile(MLP(), backend="eager")), "OptimizedModule was taken off"),
    "compiled in place": (compiled_in_place, ""),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_taken_off_and_names_are_those_inside(name: str) -> None:
    build, text = WRAPPED[name]
    original = build().eval()
    model = sortify(original, (rows(),))
    assert any(text in note for note in notes(model)) or not text
    assert list(model.state_dict()) == list(MLP().state_dict())
    assert_close_outputs(model(rows()), original(rows()), SINGLE)


def test_hooks_are_recorded_and_told() -> None:
    original = MLP().eval()
    original.fc1.register_forward_hook(lambda module, args, output: output * 2)
    original.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    original.fc2.register_full_backward_hook(lambda module, before, after: None)
    model = sortify(original, (rows(),))
    assert_close_outputs(model(rows()), original(rows()), SINGLE)
    assert "what forward hooks of the model, fc1 do is recorded, the hooks are gone" in notes(model)
    assert "backward hooks of fc2 are left out" in notes(model)


# -- refused ------------------------------------------------------------------------------------------------------


def half_without_data() -> nn.Module:
    model = MLP()
    model.fc2.to("meta")
    return model


class Branches(MLP):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        if h.sum() > 0:
            h = h * 2
        return self.fc2(h)


REFUSED: dict[str, tuple[Callable[[], Any], tuple[Any, ...], str]] = {
    "no module": (lambda: abs, (rows(),), "expected a torch.nn.Module, got builtin_function_or_method"),
    "no sizes yet": (
        lambda: nn.Sequential(nn.LazyLinear(16)),
        (rows(),),
        "parameter 0.weight has no size yet: run the model once",
    ),
    "scripted": (lambda: torch.jit.script(MLP()), (rows(),), "MLP is a torch.jit module.*give the original"),
    "two devices": (half_without_data, (rows(),), r"several devices \(fc1.weight on cpu, fc2.weight on meta\)"),
    "inputs without data": (MLP, (rows().to("meta"),), "example inputs have no data"),
    "another dtype": (lambda: MLP().bfloat16(), (rows(),), "MLP itself does not run on the example inputs"),
    "another width": (MLP, (rows(3, 9),), "MLP itself does not run on the example inputs"),
    "nothing given": (MLP, (), "itself does not run on the example inputs.*missing 1 required"),
    "a stored view": (StoredView, (rows(),), "attribute part is a view of parameter fc1.weight"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_refusals_are_one_clear_line(name: str) -> None:
    build, inputs, text = REFUSED[name]
    with pytest.raises(CaptureError, match=text) as refusal:
        sortify(build(), inputs)
    assert "\n" not in str(refusal.value)


def test_a_refusal_names_the_users_line_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError, match=r"Branches cannot be captured.*\(.*test_robustness\.py:\d+\)"):
        capture(Branches(), (rows(),))
    assert capfd.readouterr() == ("", "")


class KeepsInEval(nn.Module):
    """In evaluation mode what hangs on the weights alone is computed once and kept, until training goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(8, 12), nn.Linear(12, 5)
        self.scale = nn.Parameter(torch.ones(12))
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> KeepsInEval:
        super().train(mode)
        if mode:
            self.kept = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            scale = self.scale.exp()
        else:
            if "scale" not in self.kept:
                self.kept["scale"] = self.scale.exp()
            scale = self.kept["scale"]
        out: Tensor = self.out(self.fc(x) * scale)
        return out


@pytest.mark.parametrize("ran_before", [False, True])
def test_what_a_model_keeps_in_evaluation_is_neither_captured_nor_changed(ran_before: bool) -> None:
    original = KeepsInEval().eval()
    expected = original(rows()) if ran_before else None
    kept = dict(original.kept)
    model = sortify(original, (rows(),)).eval()
    assert original.kept == kept
    assert_close_outputs(original(rows()), expected if expected is not None else original(rows()), 0.0)
    assert_close_outputs(model(rows()), original(rows()), SINGLE)
    with torch.no_grad():
        dict(model.named_parameters())["scale"].fill_(3.0)
        original.train().eval().scale.fill_(3.0)
    assert_close_outputs(model(rows()), original(rows()), SINGLE)
