"""Extraction: a sub-network on its own, as a module and as files that need no sortify."""

from __future__ import annotations

import copy
import errno
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_dense as dense
from compare import assert_close_outputs, assert_same_tensors
from safetensors.torch import load_file, save_file
from torch import nn
from zoo import MODELS, ROW, call, repeated

from sortify import SortedModel, Subnet, sortify, write
from sortify.errors import AxesError, BudgetError, SortifyError
from sortify.network import extract as extraction
from sortify.space.space import Trained

CASES = {case.name: case for case in MODELS}
EXPORTED = ("batch_norm_mlp", "qkv_per_head", "tied_embeddings", "dict_output")
WITHOUT_SORTIFY = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("sortify", "sortify_cli"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

folder, names = sys.argv[1], json.loads(sys.argv[2])
for name in names:
    inputs = load_file(f"{folder}/{name}.inputs")
    program = torch.export.load(f"{folder}/{name}.pt2").module()
    outputs = {}
    for key, value in inputs.items():
        leaves = pytree.tree_leaves(program(value))
        outputs |= {f"{key}.{i}": leaf.contiguous() for i, leaf in enumerate(leaves)}
    save_file(outputs, f"{folder}/{name}.outputs")
assert not any(name.split(".")[0] == "sortify" for name in sys.modules)
"""


@functools.cache
def converted(name: str) -> SortedModel:
    case = CASES[name]
    return sortify(case.build(), case.inputs()).eval()


def half(model: SortedModel) -> Subnet:
    return model.space.subnet(**dict.fromkeys(model.space.groups, 0.5))


def small_of(name: str) -> tuple[SortedModel, extraction.ExtractedModel]:
    model = converted(name)
    return model, model.extract(subnet=half(model))


# -- the module ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "model_output", "keyword_inputs", "qkv_per_head", "resnet_option_a"])
def test_outputs_are_those_of_the_sub_network(name: str) -> None:
    model, small = small_of(name)
    for times in (1, 3):
        inputs = repeated(CASES[name].inputs(), times)
        with model.using(half(model)):
            assert_close_outputs(call(small, inputs), call(model, inputs), 1e-6)
    assert set(small.state_dict()) <= set(model.state_dict())
    assert sum(p.numel() for p in small.parameters()) == model.cost(half(model)).params


def test_names_and_shapes_are_the_originals_but_smaller() -> None:
    model = converted("residual_mlp")
    small = model.extract(subnet=model.space.subnet(width=0.5, depth=0.5))
    twin = dense.ResidualMLP(16, 24, blocks=2)
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in twin.state_dict().items()}
    twin.load_state_dict(small.state_dict())
    assert_close_outputs(small(*ROW()), twin.eval()(*ROW()), 1e-6)


def test_it_has_weights_of_its_own() -> None:
    model = converted("mlp")
    for subnet in (model.space.full, half(model)):
        small = model.extract(subnet=subnet)
        before = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.zero_()
        assert_same_tensors(model.state_dict(), before)


def test_it_trains_further() -> None:
    _, small = small_of("batch_norm_mlp")
    before = copy.deepcopy(small.state_dict())
    optimizer = torch.optim.SGD(small.train().parameters(), lr=0.1)
    x = torch.randn(16, 8)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = small(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    moved = {name for name, tensor in small.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"net.1.running_mean", "net.1.running_var", "net.1.num_batches_tracked", "net.4.weight"} <= moved
    assert int(small.state_dict()["net.1.num_batches_tracked"]) == 20


def test_dropout_is_active_in_training_alone() -> None:
    _, small = small_of("drop_path")
    x = torch.randn(32, 8)
    assert torch.equal(small(x), small(x))
    assert not torch.equal(small.train()(x), small(x))


def test_it_comes_in_the_mode_of_the_model() -> None:
    model = sortify(CASES["batch_norm_mlp"].build().train(), ROW())
    assert model.extract(subnet=half(model)).training
    assert not model.eval().extract(subnet=half(model)).training


def test_it_moves_copies_and_loads_like_any_module() -> None:
    _, small = small_of("tied_embeddings")
    (x,) = CASES["tied_embeddings"].inputs()
    expected = small(x)
    twin = copy.deepcopy(small)
    state = twin.state_dict(keep_vars=True)
    assert state["embedding.weight"] is state["head.weight"]
    assert_close_outputs(twin.double()(x).float(), expected, 1e-5)
    with torch.no_grad():
        twin.float().get_parameter("embedding.weight").zero_()
    twin.load_state_dict(small.state_dict())
    assert_close_outputs(twin(x), expected, 1e-6)


def test_recalibrated_statistics_come_along() -> None:
    model = copy.deepcopy(converted("batch_norm_mlp"))
    plain = model.extract(subnet=half(model))
    with model.using(half(model)):
        model.recalibrate([torch.randn(64, 8)])
        expected = model(*ROW())
    small = model.extract(subnet=half(model))
    assert not torch.equal(plain.state_dict()["net.1.running_mean"], small.state_dict()["net.1.running_mean"])
    assert_close_outputs(small(*ROW()), expected, 1e-6)


# -- budgets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["flops", "params", "activation_bytes"])
@pytest.mark.parametrize("budget", [0.3, 0.6, 1.0])
def test_budget_is_kept_and_used(budget: float, metric: str) -> None:
    model = converted("residual_mlp")
    chosen = model.space.at(budget, metric)
    limit = budget * getattr(model.cost(model.space.full), metric)
    assert getattr(model.cost(chosen), metric) <= limit
    larger = [m for m in model.space.members() if getattr(model.cost(m), metric) > getattr(model.cost(chosen), metric)]
    assert all(getattr(model.cost(member), metric) > limit for member in larger)
    small = model.extract(budget=budget, metric=metric)
    assert sum(p.numel() for p in small.parameters()) == model.cost(chosen).params
    assert (chosen == model.space.full) == (budget == 1.0)


def test_budget_chooses_among_what_was_trained() -> None:
    model = sortify(CASES["residual_mlp"].build(), ROW())
    model.record_trained(Trained((("width", (0.5, 1.0)), ("depth", (1.0,)))))
    half_width = model.space.subnet(width=0.5)
    share = model.cost(half_width).flops / model.cost(model.space.full).flops
    assert model.space.at(0.9) == half_width
    with pytest.raises(BudgetError, match=rf"smallest reachable is {share:.4f}"):
        model.extract(budget=0.9 * share)


def test_wrong_budgets_are_refused_in_one_line() -> None:
    model = converted("residual_mlp")
    other = converted("mlp")
    for text, error, arguments in (
        (r"too small: the smallest reachable is 0\.\d+ \([\d,]+\) with width=0.25", BudgetError, {"budget": 1e-4}),
        ("above 0", BudgetError, {"budget": 0.0}),
        ("above 0", BudgetError, {"budget": -0.5}),
        ("above 0", BudgetError, {"budget": float("nan")}),
        ("'speed': expected one of params, flops", BudgetError, {"budget": 0.5, "metric": "speed"}),
        ("give a budget, such as 0.5, a sub-network, or fractions", BudgetError, {}),
        (
            "give a budget, such as 0.5, a sub-network, or fractions",
            BudgetError,
            {"budget": 0.5, "subnet": half(model)},
        ),
        ("give a budget, such as 0.5, a sub-network, or fractions", BudgetError, {"budget": 0.5, "width": 0.5}),
        ("does not belong to this model", BudgetError, {"subnet": half(other)}),
    ):
        with pytest.raises(error, match=text) as refusal:
            model.extract(**arguments)
        assert "\n" not in str(refusal.value)
    with pytest.raises(AxesError, match="breadth"):
        model.space.subnet(breadth=0.5)


# -- files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model of EXPORTED as .pt2, run by a process that cannot import sortify."""
    folder = tmp_path_factory.mktemp("pt2")
    for name in EXPORTED:
        model, small = small_of(name)
        write(small, model.example_tensors, folder / f"{name}.pt2", "pt2")
        (example,) = CASES[name].inputs()
        inputs = {str(n): example[:1].repeat(n, *[1] * (example.dim() - 1)) for n in (1, 2, 5)}
        inputs["3"] = example
        save_file(inputs, folder / f"{name}.inputs")
    command = [sys.executable, "-c", WITHOUT_SORTIFY, str(folder), json.dumps(EXPORTED)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("name", EXPORTED)
def test_program_runs_without_sortify_for_any_batch(name: str, exported: Path) -> None:
    _, small = small_of(name)
    outputs = load_file(exported / f"{name}.outputs")
    for key, value in load_file(exported / f"{name}.inputs").items():
        expected = torch.utils._pytree.tree_leaves(small(value))
        found = [outputs[f"{key}.{i}"] for i in range(len(expected))]
        assert_close_outputs(found, expected, 1e-5)


@pytest.mark.parametrize("name", ["mlp", "tied_embeddings"])
def test_safetensors_hold_the_state(name: str, tmp_path: Path) -> None:
    model, small = small_of(name)
    write(small, model.example_tensors, tmp_path / "small.safetensors", "safetensors")
    state = small.state_dict()
    assert_same_tensors(dict(sorted(load_file(tmp_path / "small.safetensors").items())), dict(sorted(state.items())))
    assert [file.name for file in tmp_path.iterdir()] == ["small.safetensors"]


def test_writing_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, small = small_of("batch_norm_mlp")
    small.train()
    before = copy.deepcopy(small.state_dict())
    write(small, model.example_tensors, tmp_path / "small.pt2", "pt2")
    assert small.training
    assert_same_tensors(small.state_dict(), before)


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    model, small = small_of("mlp")
    with pytest.raises(SortifyError, match=r"'gguf': expected one of pt2, safetensors"):
        write(small, model.example_tensors, tmp_path / "small.gguf", "gguf")


@pytest.mark.parametrize("form", ["pt2", "safetensors"])
@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_a_full_disk_leaves_the_earlier_file(
    form: str, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, small = small_of("mlp")
    target = tmp_path / f"small.{form}"
    target.write_bytes(b"earlier")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device") if kind is OSError else RuntimeError("write failed")

    monkeypatch.setattr("sortify.formats.programs.save_file", full)
    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(SortifyError, match="cannot be written") as refusal:
        write(small, model.example_tensors, target, form)
    assert "\n" not in str(refusal.value)
    assert target.read_bytes() == b"earlier"
    assert [file.name for file in tmp_path.iterdir()] == [target.name]


class Counter(nn.Module):
    """A buffer that training changes and that no sub-network cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("scale", torch.full((5,), 2.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls.add_(1)
        return self.fc2(torch.relu(self.fc1(x))) * self.scale + self.calls


def test_buffers_come_along_and_temporary_ones_are_not_saved() -> None:
    model = sortify(Counter(), ROW()).train()
    model(*ROW())
    small = model.extract(subnet=model.space.smallest)
    assert "scale" not in small.state_dict()
    assert list(small.state_dict()) == list(model.state_dict())
    small(*ROW())
    assert float(small.state_dict()["calls"]) == 2.0
    assert float(model.state_dict()["calls"]) == 1.0
    with model.eval().using(model.space.smallest):
        assert_close_outputs(small.eval()(*ROW()), model(*ROW()) + 1, 1e-6)


class Unread(nn.Module):
    """Holds parameters that no op reads, as decoders do that are used without their encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.never = nn.Linear(8, 16), nn.Linear(16, 5), nn.Linear(3, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(nn.functional.linear(x, self.one.weight).relu())


def test_parameters_that_no_op_reads_stay_and_are_counted() -> None:
    original = Unread()
    model = sortify(original, (torch.randn(2, 8),))
    for subnet in (model.space.full, model.space.smallest):
        small = model.extract(subnet=subnet)
        assert sum(p.numel() for p in small.parameters()) == model.cost(subnet).params
        assert list(small.state_dict()) == list(original.state_dict())
    assert model.cost(model.space.full).params == sum(p.numel() for p in original.parameters())


def test_a_sub_network_and_fractions_say_the_same() -> None:
    model = converted("residual_mlp")
    subnet = model.space.subnet(width=0.5, depth=0.5)
    wanted = {name: tensor.shape for name, tensor in model.extract(subnet=subnet).state_dict().items()}
    for small in (model.extract(subnet), model.extract(width=0.5, depth=0.5)):
        assert {name: tensor.shape for name, tensor in small.state_dict().items()} == wanted
