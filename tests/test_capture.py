"""Capture: the sorted model behaves as the original does, in both modes, for other sizes, calls, dtypes and devices."""

from __future__ import annotations

import copy
import functools
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zoo_attention as attention
import zoo_conv as conv
import zoo_dense as dense
from compare import assert_close_outputs, assert_same_tensors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from zoo import IMAGE, ROW, Inputs, randomize

from sortify import SortedModel, sortify
from sortify.capture.capture import capture
from sortify.capture.prepare import Example
from sortify.errors import CaptureError, InputError

SINGLE = 1e-6
LLAMA = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def tokens(samples: int, length: int, vocabulary: int = 30) -> Tensor:
    """Token numbers, the same ones each time."""
    return torch.randint(0, vocabulary, (samples, length), generator=torch.Generator().manual_seed(3))


def rows(samples: int) -> Tensor:
    return torch.randn(samples, 8, generator=torch.Generator().manual_seed(3))


class Upcast(nn.Module):
    """A norm in float32 whatever the model's dtype, cast back to the input's; and a cast to the weight's dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x.to(self.fc1.weight.dtype))
        wide = x.float()
        x = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        return self.fc2(x + torch.ones(x.shape[-1], dtype=x.dtype, device=x.device))


class NoGradPart(nn.Module):
    """A moving average kept without gradients, and a part through which none flow."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 5)
        self.register_buffer("average", torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        moved = torch.relu(self.fc1(x))
        with torch.no_grad():
            still = torch.tanh(self.fc2(x))
            if self.training:
                self.average.mul_(0.9).add_(moved.mean(0), alpha=0.1)
        return self.head(moved + still * self.average)


Pair = namedtuple("Pair", ["first", "second"])


class Outputs(nn.Module):
    """Every kind of container, and a None."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.fc2(torch.relu(self.fc1(x)))
        return {"pair": Pair(y, y + 1), "list": [y * 2, (y, None)], "nothing": None}


class Choice(nn.Module):
    """A signature of all kinds, with plain values that the graph takes as they were."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(
        self, x: Tensor, shift: Tensor | None = None, *, scale: float = 2.0, use_cache: bool | None = None
    ) -> Tensor:
        y = self.fc2(torch.relu(self.fc1(x))) * scale
        return y if shift is None else y + shift


MODELS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "batch_norm": (dense.BatchNormMLP, ROW()),
    "drop_path": (functools.partial(dense.Stack, dense.DropPathBlock), ROW()),
    "auxiliary": (conv.AuxiliaryHead, IMAGE()),
    "tied": (attention.TiedLM, (tokens(3, 6),)),
    "model_output": (dense.ModelOutputNet, ROW()),
    "outputs": (Outputs, ROW()),
    "choice": (Choice, {"x": rows(3)}),
    "keywords": (dense.KeywordInputs, {"tokens": tokens(3, 6, 20), "mask": torch.ones(3, 6, dtype=torch.bool)}),
    "upcast": (Upcast, ROW()),
    "no_grad": (NoGradPart, ROW()),
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)), {"input_ids": tokens(2, 6), "use_cache": False}),
}


@functools.cache
def converted(name: str) -> tuple[nn.Module, SortedModel]:
    build, inputs = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        original = randomize(build(), seed=11)
    return original, sortify(original, inputs)


def pair(name: str) -> tuple[nn.Module, SortedModel]:
    """The original and the sorted model in eval mode, both with tensors of their own."""
    return tuple(copy.deepcopy(module).eval() for module in converted(name))  # type: ignore[return-value]


def seeded(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(5)
    return module(*args, **kwargs)


# -- both modes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["batch_norm", "drop_path", "no_grad"])
def test_training_steps_leave_the_same_weights_and_buffers(name: str) -> None:
    original, model = pair(name)
    before = copy.deepcopy(original.state_dict())
    for module in (original, model):
        optimizer = torch.optim.SGD(module.train().parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(5)
        for step in range(3):
            optimizer.zero_grad()
            module(rows(4 + step)).square().mean().backward()
            optimizer.step()
    assert_close_outputs(dict(model.state_dict()), dict(original.state_dict()), SINGLE)
    assert not torch.equal(next(iter(before.values())), next(iter(model.state_dict().values())))
    assert_close_outputs(model.eval()(rows(3)), original.eval()(rows(3)), SINGLE)


def test_batch_norm_statistics_move_in_training_alone() -> None:
    _, model = pair("batch_norm")
    before = copy.deepcopy(model.state_dict())
    model(rows(4))
    assert_same_tensors(model.state_dict(), before)
    model.train()(rows(4))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "running_" in name or "num_batches" in name}


def test_dropout_and_drop_path_draw_the_same_numbers() -> None:
    original, model = pair("drop_path")
    outputs = [seeded(module.train(), rows(16)) for module in (original, model)]
    assert_close_outputs(outputs[1], outputs[0], SINGLE)
    assert not torch.allclose(model(rows(16)), model(rows(16)))
    assert torch.equal(model.eval()(rows(16)), model(rows(16)))


def test_each_mode_has_its_own_output_structure() -> None:
    original, model = pair("auxiliary")
    (x,) = IMAGE()
    assert isinstance(model(x), Tensor)
    outputs = seeded(model.train(), x)
    assert isinstance(outputs, tuple)
    assert_close_outputs(outputs, seeded(original.train(), x), SINGLE)
    assert isinstance(model.eval()(x), Tensor)


# -- sizes, outputs, calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 2, 7])
@pytest.mark.parametrize("name", ["batch_norm", "drop_path", "outputs", "no_grad"])
def test_any_batch_size(name: str, samples: int) -> None:
    original, model = pair(name)
    assert_close_outputs(model(rows(samples)), original(rows(samples)), SINGLE)
    if samples > 1 or name != "batch_norm":
        outputs = [seeded(module.train(), rows(samples)) for module in (original, model)]
        assert_close_outputs(outputs[1], outputs[0], SINGLE)


@pytest.mark.parametrize(("samples", "length"), [(1, 1), (1, 6), (2, 3), (5, 16)])
@pytest.mark.parametrize("name", ["tied", "llama"])
def test_any_sequence_length(name: str, samples: int, length: int) -> None:
    original, model = pair(name)
    x = tokens(samples, length)
    assert_close_outputs(model(x), original(x, use_cache=False) if name == "llama" else original(x), SINGLE)


def test_output_object_keeps_its_class() -> None:
    original, model = pair("model_output")
    out, expected = model(rows(3)), original(rows(3))
    assert type(out) is dense.NetOutput
    assert_close_outputs(out, expected, SINGLE)
    assert out.logits is out["logits"] is out[0]
    assert isinstance(out.layers, tuple)
    assert out.to_tuple()[1] is out.probabilities


def test_transformers_output_keeps_its_class() -> None:
    original, model = pair("llama")
    out = model(tokens(2, 6))
    assert type(out) is CausalLMOutputWithPast
    assert out.past_key_values is None
    assert list(out) == ["logits"]
    assert_close_outputs(out.logits, original(tokens(2, 6), use_cache=False).logits, SINGLE)


def test_containers_come_back_as_they_were() -> None:
    original, model = pair("outputs")
    out = model(rows(3))
    assert list(out) == ["pair", "list", "nothing"]
    assert type(out["pair"]) is Pair
    assert out["list"][1][1] is None
    assert_close_outputs(out, original(rows(3)), SINGLE)


def test_calls_by_position_by_name_and_with_defaults() -> None:
    original, model = pair("choice")
    expected = original(rows(3))
    for out in (
        model(rows(3)),
        model(x=rows(3)),
        model(rows(3), None),
        model(rows(3), scale=2.0),
        model(x=rows(3), shift=None, use_cache=None),
    ):
        assert_close_outputs(out, expected, SINGLE)


def test_use_cache_false_may_be_given_or_left_out() -> None:
    _, model = pair("llama")
    x = tokens(2, 6)
    assert_close_outputs(model(input_ids=x), model(x, use_cache=False), 0.0)
    with pytest.raises(InputError, match=r"use_cache.*was False.*got True"):
        model(x, use_cache=True)


class Unknown:
    """An output that no tracer knows, as a cache is."""


class HandsOutACache(nn.Module):
    """Gives a cache away unless told not to, among other words, by a name that its signature does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor, **more: Any) -> dict[str, Any]:
        y = self.fc2(self.fc1(x).relu())
        return {"y": y, "cache": Unknown()} if more.get("use_cache", self.config.use_cache) else {"y": y}


def test_a_cache_that_the_signature_hides_is_declined() -> None:
    original = HandsOutACache().eval()
    model = sortify(original, (rows(2),)).eval()
    assert any("use_cache=False was chosen" in frozen.why for frozen in model.frozen)
    assert_close_outputs(model(rows(3)), original(rows(3), use_cache=False), 0.0)
    assert_close_outputs(model(rows(3), use_cache=False), model(rows(3)), 0.0)


class DeclinesItself(HandsOutACache):
    """Declines the cache itself, and passes on what it is given as well."""

    def forward(self, x: Tensor, **more: Any) -> dict[str, Any]:
        return super().forward(x, use_cache=False, **more)


def test_a_cache_that_is_declined_already_is_left_alone() -> None:
    original = DeclinesItself().eval()
    model = sortify(original, (rows(2),)).eval()
    assert not any("use_cache" in frozen.why for frozen in model.frozen)
    assert_close_outputs(model(rows(3)), original(rows(3)), 0.0)


WRONG_CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], str]] = {
    "nothing": ("batch_norm", (), {}, r"missing input 'x'"),
    "too many": ("batch_norm", (rows(2), rows(2)), {}, r"too many positional arguments.*at most 1.*got 2"),
    "unknown name": ("batch_norm", (rows(2),), {"y": 1}, r"unknown argument 'y'"),
    "twice": ("choice", (rows(2),), {"x": rows(2)}, r"'x' is given twice"),
    "width": ("batch_norm", (torch.randn(2, 9),), {}, r"'x': dimension 1 is fixed at 8.*got float32 \[2, 9\]"),
    "rank": ("batch_norm", (torch.randn(2, 3, 8),), {}, r"'x': expected 2 dimensions.*got float32 \[2, 3, 8\]"),
    "integers": ("batch_norm", (torch.ones(2, 8, dtype=torch.long),), {}, r"'x': expected float32.*got int64"),
    "floats": ("tied", (torch.randn(2, 8),), {}, r"'tokens': expected int64.*got float32"),
    "a list": ("batch_norm", ([[0.0] * 8],), {}, r"'x': expected float32 \[any, 8\], got .*list"),
    "None": ("batch_norm", (None,), {}, r"'x': expected float32 \[any, 8\], got None"),
    "a tensor not captured": ("choice", (rows(2), torch.zeros(5)), {}, r"'shift' was not given.*convert again"),
    "another constant": ("choice", (rows(2),), {"scale": 3.0}, r"'scale' was left at its default 2.0.*got 3.0"),
    "a tensor left out": ("keywords", (tokens(2, 6, 20),), {}, r"missing input 'mask'"),
}


@pytest.mark.parametrize("wrong", WRONG_CALLS)
def test_wrong_calls_are_refused_in_one_line(wrong: str) -> None:
    name, args, kwargs, text = WRONG_CALLS[wrong]
    _, model = converted(name)
    with pytest.raises(InputError, match=text) as refusal:
        model(*args, **kwargs)
    assert "\n" not in str(refusal.value)


# -- dtypes and devices -------------------------------------------------------------------------------------------

# Relative errors; both sides run the same operators on the same numbers.
DTYPES = {torch.float64: 1e-14, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["batch_norm", "upcast", "llama"])
def test_moves_to_another_dtype(name: str, dtype: torch.dtype) -> None:
    original, model = (module.to(dtype) for module in pair(name))
    x = tokens(2, 6) if name == "llama" else rows(3).to(dtype)
    out, expected = (module(x).logits if name == "llama" else module(x) for module in (model, original))
    assert out.dtype == dtype
    assert_close_outputs(out, expected, DTYPES[dtype])
    assert all(t.dtype == dtype for t in model.state_dict().values() if t.is_floating_point())


def test_short_forms_of_moves() -> None:
    for move in (nn.Module.double, nn.Module.bfloat16, nn.Module.half, lambda module: module.half().float()):
        original, model = map(move, pair("upcast"))
        x = rows(3).to(original.fc1.weight.dtype)
        assert_close_outputs(model(x), original(x), 1e-2)


@pytest.mark.parametrize("name", ["upcast", "llama"])
def test_norms_stay_in_single_precision_in_a_bfloat16_model(name: str) -> None:
    original, model = (module.bfloat16() for module in pair(name))
    x = tokens(2, 6) if name == "llama" else rows(64).bfloat16()
    assert_close_outputs(model(x), original(x, use_cache=False) if name == "llama" else original(x), 0.0)


def test_a_model_converted_in_bfloat16_can_be_moved_to_float32() -> None:
    original, _ = pair("upcast")
    model = sortify(original.bfloat16(), (rows(3).bfloat16(),))
    assert_close_outputs(model(rows(3).bfloat16()), original(rows(3).bfloat16()), 0.0)
    assert_close_outputs(model.float()(rows(3)), original.float()(rows(3)), SINGLE)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["batch_norm", "drop_path", "upcast", "llama"])
def test_autocast_on_cpu(name: str, training: bool) -> None:
    original, model = (module.train(training) for module in pair(name))
    x = tokens(2, 6) if name == "llama" else rows(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = (seeded(module, x) for module in (model, original))
    if name == "llama":
        out, expected = out.logits, expected.logits
    assert expected.dtype == torch.bfloat16
    # A cast to `x.dtype` has become a cast to the model's dtype, so ours rounds less often.
    assert_close_outputs(out.to(expected.dtype), expected, 2e-2)


def test_moves_to_the_meta_device() -> None:
    for name in ("batch_norm", "tied", "upcast"):
        _, model = pair(name)
        x = tokens(5, 7) if name == "tied" else rows(5)
        shape = model(x).shape
        out = model.to("meta")(x.to("meta"))
        assert out.device.type == "meta"
        assert out.shape == shape


def test_both_captures_share_their_tensors_after_a_move() -> None:
    original, model = (module.to(torch.float64) for module in pair("batch_norm"))
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    x = rows(6).double()
    for module in (original, model):
        seeded(module.train(), x)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == places
    assert_close_outputs(model.eval()(x), original.eval()(x), 1e-14)


# -- gradients, ties, files, copies -------------------------------------------------------------------------------


def test_no_gradient_leaves_a_region_without_gradients() -> None:
    original, model = pair("no_grad")
    for module in (original, model):
        x = rows(4).requires_grad_()
        module.train()(x).sum().backward()
        parameters = dict(module.named_parameters())
        grads = {name: parameter.grad for name, parameter in parameters.items()}
        assert grads["fc2.weight"] is None
        assert grads["fc1.weight"] is not None
    assert not model.state_dict(keep_vars=True)["average"].requires_grad


def test_frozen_parameters_stay_frozen() -> None:
    original = dense.MLP()
    original.fc1.weight.requires_grad_(False)
    model = sortify(original, ROW())
    model.train()(rows(3)).sum().backward()
    state = model.state_dict(keep_vars=True)
    assert not state["fc1.weight"].requires_grad
    assert state["fc1.weight"].grad is None
    assert state["fc1.bias"].grad is not None


def test_tied_weights_stay_tied() -> None:
    original, model = pair("tied")
    for module in (model, model.double(), copy.deepcopy(model)):
        state = module.state_dict(keep_vars=True)
        assert state["embedding.weight"] is state["head.weight"]
        assert len(list(module.parameters())) == len(list(original.parameters()))


def test_state_of_the_original_loads_strictly() -> None:
    for name in ("batch_norm", "tied", "llama"):
        original, model = pair(name)
        assert list(model.state_dict()) == list(original.state_dict())
        with torch.no_grad():
            for parameter in original.parameters():
                parameter.mul_(0.5)
        found = model.load_state_dict(original.state_dict())
        assert found.missing_keys == found.unexpected_keys == []
        assert_same_tensors(model.state_dict(), original.state_dict())
        x = rows(3) if name == "batch_norm" else tokens(2, 6)
        assert_close_outputs(model(x), original(x, use_cache=False) if name == "llama" else original(x), SINGLE)


def test_a_wrong_state_is_refused() -> None:
    _, model = pair("batch_norm")
    state = model.state_dict()
    state["net.9.weight"] = state.pop("net.0.weight")
    with pytest.raises(RuntimeError, match=r"Missing key.*net\.0\.weight(.|\n)*Unexpected key.*net\.9\.weight"):
        model.load_state_dict(state)


def test_state_inside_another_module() -> None:
    original, model = pair("batch_norm")
    outer, plain = nn.Sequential(model, nn.Linear(5, 2)), nn.Sequential(original, nn.Linear(5, 2))
    assert list(outer.state_dict()) == list(plain.state_dict())
    outer.load_state_dict(plain.state_dict())
    assert_close_outputs(outer(rows(3)), plain(rows(3)), SINGLE)


def test_a_copy_has_tensors_of_its_own() -> None:
    _, model = pair("batch_norm")
    expected = model(rows(3))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.activate(width=0.5)
    twin.train()(rows(3))
    assert model.active == model.space.full
    assert_close_outputs(model(rows(3)), expected, 0.0)


def test_the_given_module_and_the_random_state_are_left_alone() -> None:
    original = randomize(dense.BatchNormMLP(), seed=1).train()
    original.net[1].eval()
    original.net[4].weight.requires_grad_(False)
    state, flags = copy.deepcopy(original.state_dict()), [module.training for module in original.modules()]
    wanted = [parameter.requires_grad for parameter in original.parameters()]
    attributes = {path: set(vars(module)) for path, module in original.named_modules()}
    random = torch.get_rng_state()
    model = sortify(original, ROW())
    assert torch.equal(torch.get_rng_state(), random)
    model.train()(rows(3)).sum().backward()
    assert_same_tensors(original.state_dict(), state)
    assert [module.training for module in original.modules()] == flags
    assert [parameter.requires_grad for parameter in original.parameters()] == wanted
    assert all(parameter.grad is None for parameter in original.parameters())
    assert {path: set(vars(module)) for path, module in original.named_modules()} == attributes
    assert model.training


# -- what a capture says ------------------------------------------------------------------------------------------


class Decides(nn.Module):
    """What it does depends on its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


class FixedBatch(nn.Module):
    """Works for three samples alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 5)
        self.register_buffer("offset", torch.ones(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x + self.offset)))


def test_a_model_that_cannot_be_captured_is_refused_in_one_line() -> None:
    with pytest.raises(CaptureError, match=r"Decides cannot be captured .*train mode.*data-dependent") as refusal:
        sortify(Decides(), ROW())
    assert "\n" not in str(refusal.value)


def test_wrong_example_inputs_are_refused() -> None:
    with pytest.raises(CaptureError, match="expected a tuple of positional inputs or a dict"):
        sortify(dense.MLP(), "x")  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match=r"MLP itself does not run on the example inputs"):
        sortify(dense.MLP(), (torch.randn(3, 9),))
    with pytest.raises(InputError, match="unknown argument 'y'"):
        sortify(dense.MLP(), {"y": torch.randn(3, 8)})


def test_a_batch_size_that_cannot_change_is_noted_and_checked() -> None:
    model = sortify(FixedBatch(), ROW())
    with pytest.raises(InputError, match=r"dimension 0 is fixed at 3"):
        model(rows(4))
    assert any("the batch size) is fixed at 3" in frozen.why for frozen in model.frozen if frozen.where == "capture")


def test_dtype_literals_follow_the_model_only_where_the_original_does() -> None:
    captured = capture(converted("upcast")[0], ROW())
    graph = captured.programs["eval"].graph
    literals = [value for node in graph.nodes for value in (*node.args, *node.kwargs.values())]
    assert literals.count(torch.float32) == 1
    dtype = next(node for node in graph.nodes if node.name == "dtype")
    assert len(dtype.users) == 3


def test_an_example_of_one_sample_leaves_the_batch_free() -> None:
    original = dense.MLP()
    model = sortify(original, (rows(1),))
    for samples in (1, 4):
        assert_close_outputs(model(rows(samples)), original(rows(samples)), SINGLE)


def test_inputs_may_be_given_in_any_order_of_names() -> None:
    original = conv.FiLM()
    x, condition = torch.randn(3, 3, 8, 8), torch.randn(3, 6)
    model = sortify(original, {"vector": condition, "image": x})
    assert_close_outputs(model(x, condition), original(x, condition), SINGLE)


class TakenNames(nn.Module):
    """Modules and tensors by names that sorted models use themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.space, self.report = nn.Linear(8, 16), nn.Linear(16, 5)
        self.signature = nn.Parameter(torch.rand(16))
        self.register_buffer("blueprint", torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.report(self.space(x).relu() * self.signature + self.get_buffer("blueprint"))
        return out


def test_names_of_our_own_may_be_names_of_the_original() -> None:
    original = TakenNames().eval()
    model = sortify(original, (rows(2),)).eval()
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in original.named_parameters()]
    assert model.state_dict().keys() == original.state_dict().keys()
    assert_close_outputs(model(rows(3)), original(rows(3)), SINGLE)
    assert dict(model.named_modules())["space"].weight.shape == (16, 8)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        dict(twin.named_parameters())["signature"].zero_()
    assert_close_outputs(model(rows(3)), original(rows(3)), SINGLE)
    assert not torch.equal(twin(rows(3)), model(rows(3)))
    small = model.extract(subnet=model.space.smallest)
    assert_close_outputs(model.double()(rows(3).double()), original.double()(rows(3).double()), SINGLE)
    assert dict(small.named_parameters())["report.weight"].shape == (5, 4)


class Grows(nn.Module):
    """A size that becomes an expression twice as long with every step, and decides what is done."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.body = steps, nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1]
        for step in range(self.steps):
            size = size + size // (step + 2)
        return x + self.body(x) * (2 if size > 10**6 else 1)


@pytest.mark.parametrize(("steps", "open_"), [(2, True), (8, False)])
def test_sizes_that_grow_into_endless_expressions_are_fixed(steps: int, open_: bool) -> None:
    original = nn.Sequential(Grows(steps), nn.Identity())
    captured = capture(original, (torch.randn(3, 6, 4),), {"input": (1,)})
    assert captured.signature.specs[0].shape == (None, None if open_ else 6, 4)
    told = [note for note in captured.notes if "conditions on the sizes inside grow beyond 80 operations" in note]
    assert [note.partition(": con")[0] for note in told] == (
        [] if open_ else ["input 'input': dimension 1 is fixed at 6"]
    )


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
        return self.body(x) + shift


@pytest.mark.parametrize("samples", [2, 4])
def test_what_all_samples_share_keeps_its_batch_of_one(samples: int) -> None:
    original, shift = Shifted().eval(), torch.randn(1, 8)
    model = sortify(original, Example((torch.randn(samples, 8),), {"shift": shift}))
    assert [spec.shape for spec in model.signature.specs] == [(None, 8), (1, 8)]
    x = torch.randn(5, 8)
    assert_close_outputs(model(x, shift=shift), original(x, shift=shift), 0.0)
