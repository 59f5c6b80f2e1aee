"""Norms that keep running statistics: frozen ones leave them alone, measured ones are kept for each sub-network."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_calls import errors, works, write_folder
from compare import assert_close_outputs, assert_same_tensors
from parts_models import Router
from torch import Tensor, fx, nn
from zoo import randomize

from sortify import ComposedModel, SortedModel, SortedUpdate, load, make_sampler, sortify
from sortify.capture.lifting import Program
from sortify.errors import CaptureError, CheckpointError
from sortify.models.scores import fingerprint
from sortify.network.norms import frozen
from sortify.space.space import Trained
from sortify.training.samplers import levels_for

LEVELS = {"width": (0.5, 1.0)}
TRAINED = Trained((("width", (0.25, 0.5, 1.0)), ("depth", (0.5, 1.0))))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


class Every(nn.Module):
    """Norms of each kind: of the batch and of the sample, with statistics that are kept and without."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width, momentum=0.3)
        self.blocks = nn.Sequential(Residual(width), Residual(width))
        self.mix, self.sample = nn.Conv2d(width, width, 1), nn.InstanceNorm2d(width, track_running_stats=True)
        self.inner, self.unkept = nn.Linear(width, width), nn.BatchNorm1d(width, track_running_stats=False)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sample(self.mix(self.blocks(torch.relu(self.first(self.stem(x))))))
        out: Tensor = self.head(self.unkept(self.inner(x.amax((2, 3)))))
        return out


def images(count: int = 1, samples: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(samples, 3, 6, 6, generator=generator) * (1 + i) for i in range(count)]


@functools.cache
def converted() -> tuple[nn.Module, SortedModel]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        original = randomize(Every(), 2)
        return original, sortify(original, tuple(images()))


def pair() -> tuple[Every, SortedModel]:
    """The original and the sorted model, with tensors of their own, in training mode."""
    original, model = copy.deepcopy(converted())
    assert isinstance(original, Every)
    return original.train(), model.train()


def kept_norms(module: nn.Module) -> list[nn.Module]:
    return [each for each in module.modules() if getattr(each, "running_mean", None) is not None]


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.named_buffers()}


def gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    module(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def graph_of(model: SortedModel) -> str:
    return str(model.blueprint.programs["train"].graph)


def train(model: SortedModel, update: SortedUpdate, steps: int = 6) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for x in images(steps):
        update(lambda x=x: model(x).square().mean())
        optimizer.step()
        optimizer.zero_grad()


def updating(model: SortedModel) -> SortedUpdate:
    levels = levels_for(model.space, ("width", "depth"), 2)
    return SortedUpdate(model, make_sampler("random", model.space, levels, count=3))


# -- frozen ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["freeze", "train"])
def test_frozen_training_changes_weights_and_leaves_buffers_bit_equal(first: str) -> None:
    _, model = pair()
    update = updating(model)
    if first == "train":
        train(model, update)
    model.freeze_norms()
    before, weights = buffers(model), copy.deepcopy(dict(model.named_parameters()))
    train(model, update)
    assert_same_tensors(buffers(model), before)
    assert not any(torch.equal(p, weights[name]) for name, p in model.named_parameters() if name.endswith("weight"))
    model.freeze_norms(False)
    train(model, update)
    changed = {name for name, tensor in buffers(model).items() if not torch.equal(tensor, before[name])}
    assert {"first.running_mean", "first.num_batches_tracked", "sample.running_var"} <= changed


@pytest.mark.parametrize("sizes", [{}, {"width": 0.5}, {"width": 0.5, "depth": 0.5}])
def test_frozen_training_equals_training_of_the_cut_original_with_its_norms_in_evaluation(
    sizes: dict[str, float],
) -> None:
    original, model = pair()
    if sizes:
        original = Every(round(8 * sizes["width"]))
        original.blocks = original.blocks[: round(2 * sizes.get("depth", 1))]
        original.load_state_dict(model.extract(**sizes).state_dict())
    for norm in kept_norms(original.train()):
        norm.eval()
    model.freeze_norms()
    (x,) = images()
    small = model.extract(subnet=model.space.subnet(**sizes))
    with model.using(**sizes):
        expected, found = gradients(original, x), gradients(model, x)
        assert_close_outputs(model(x), original(x), 1e-5)
        assert torch.equal(small(x), model(x))
        with pytest.raises(AssertionError, match="outputs differ"):
            assert_close_outputs(model(x), original.train()(x), 1e-3)
    assert set(found) == set(dict(model.named_parameters())) - (
        {f"blocks.1.{name}" for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")}
        if "depth" in sizes
        else set()
    )
    for name, gradient in expected.items():
        own = found[name][tuple(slice(0, n) for n in gradient.shape)]
        assert float((own - gradient).abs().max()) <= 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_frozen_evaluation_uses_the_share_of_the_full_statistics_and_measures_nothing() -> None:
    _, model = pair()
    model.eval()
    (x,) = images()
    plain = {}
    for width in (0.5, 1.0):
        with model.using(width=width):
            plain[width] = model(x)
            model.recalibrate(images(2))
            assert not torch.allclose(model(x), plain[width], atol=1e-3)
    model.freeze_norms()
    assert model.norms_frozen
    assert not model.has_batch_statistics
    assert not model.statistics
    model.recalibrate(images(2))
    assert not model.statistics
    for width, expected in plain.items():
        with model.using(width=width):
            assert torch.equal(model(x), expected)
            assert model.is_calibrated()


def test_frozen_norms_can_be_proven_thawed_saved_and_told_apart(tmp_path: Path) -> None:
    _, model = pair()
    (x,) = images()
    free, code = fingerprint(model), graph_of(model)
    model.freeze_norms()
    assert model.verify().passed
    assert fingerprint(model) != free
    frozen_code = graph_of(model)
    assert frozen_code != code
    model.save(tmp_path)
    again = load(tmp_path).train()
    assert again.norms_frozen
    assert graph_of(again) == frozen_code
    before = buffers(again)
    with model.using(width=0.5), again.using(width=0.5):
        assert torch.equal(again(x), model(x))
    assert_same_tensors(buffers(again), before)
    again.freeze_norms(False)
    assert fingerprint(again) == free
    assert graph_of(again) == code
    again(x)
    assert int(again.first.num_batches_tracked) == int(before["first.num_batches_tracked"]) + 1
    again.save(tmp_path)
    assert not load(tmp_path).norms_frozen


def test_a_folder_with_norms_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    pair()[1].save(tmp_path)
    file = tmp_path / "sortify.json"
    file.write_text(file.read_text().replace('"norms": "own"', '"norms": "warm"'))
    with pytest.raises(CheckpointError, match="own or frozen, found 'warm'"):
        load(tmp_path)


def test_an_extraction_of_frozen_norms_trains_with_frozen_norms() -> None:
    _, model = pair()
    model.freeze_norms()
    small = model.extract(width=0.5, depth=0.5)
    before = buffers(small)
    small.train()(*images())
    assert_same_tensors(buffers(small), before)


def test_without_norms_that_keep_statistics_freezing_changes_nothing() -> None:
    model = sortify(nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 5)), (torch.randn(4, 8),))
    before = graph_of(model)
    model.freeze_norms()
    assert model.norms_frozen
    assert graph_of(model) == before


def test_a_norm_that_cannot_be_told_is_refused() -> None:
    _, model = pair()
    program = model.blueprint.programs["train"]
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    node = next(each for each in graph.nodes if each.target is torch.ops.aten.batch_norm.default)
    node.target = torch.ops.aten._batch_norm_with_update.default
    node.args = (*node.args[:5], 0.1, 1e-5)
    changed: Program = replace(program, graph=graph)
    with pytest.raises(CaptureError, match=r"_batch_norm_with_update.* \(first\): .* cannot be chosen"):
        frozen(changed)


# -- measured -------------------------------------------------------------------------------------------------------


def test_a_norm_of_samples_that_keeps_statistics_is_measured_too() -> None:
    original, model = pair()
    for norm in kept_norms(original):
        norm.reset_running_stats()
        norm.momentum = 1.0
    (x,) = images()
    original(x)
    model.eval().recalibrate([x])
    found = model.statistics[model.space.full]
    expected = {name: tensor for name, tensor in original.named_buffers() if name in found}
    assert {"sample.running_mean", "sample.running_var", "first.running_mean"} <= set(expected)
    assert_close_outputs(dict(sorted(found.items())), dict(sorted(expected.items())), 1e-5)


def test_what_was_measured_before_equals_what_is_measured_now_and_is_there_without_data(tmp_path: Path) -> None:
    _, model = pair()
    model.eval().record_trained(TRAINED)
    members = model.space.landmarks()
    for member in members:
        with model.using(member):
            model.recalibrate(images(2))
    model.save(tmp_path)
    again = load(tmp_path)
    assert set(again.statistics) == set(members)
    (x,) = images()
    for budget in (0.2, 0.5, 0.8, 1.0):
        chosen = again.activate(budget=budget)
        assert again.is_calibrated()
        small, found = again.extract(budget).eval(), again(x)
        assert torch.equal(small(x), found)
        with model.using(chosen):
            assert torch.equal(model(x), found)
            cached = dict(model.statistics[chosen])
            model.recalibrate(images(2))
            assert_same_tensors(dict(model.statistics[chosen]), cached)
        own = {name: tensor for name, tensor in small.state_dict().items() if name in cached}
        assert len(own) == len(kept_norms(small)) * 2
        assert_same_tensors(own, {name: again.statistics[chosen][name] for name in own})


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.activate(budget=0.5),
        lambda model: model.extract(0.5),
        lambda model: model.extract(width=0.5),
    ],
)
def test_a_trained_sub_network_that_nobody_measured_is_told(ask: Callable[[SortedModel], object]) -> None:
    _, model = pair()
    model.eval()
    ask(model)
    model.record_trained(TRAINED)
    with pytest.warns(UserWarning, match=r"statistics are not those of width=.*nobody measured them.*recalibrate"):
        ask(model)
    for member in model.space.landmarks():
        with model.using(member):
            model.recalibrate(images())
    ask(model)
    model.forget_statistics()
    model.freeze_norms()
    ask(model)


def test_what_an_evaluation_measured_is_kept_in_the_folder(tmp_path: Path) -> None:
    write_folder(tmp_path)
    works(tmp_path, "convert", "model.pt")
    works(tmp_path, "train", "--steps", "2", "--dims", "width")
    folder = tmp_path / "sorted"
    before = {name: (folder / name).read_bytes() for name in ("model.safetensors", "graph.json", "example.safetensors")}
    (tmp_path / "sortify.toml").unlink()
    assert len(errors(works(tmp_path, "extract", "--width", "0.625"))) == 2  # never trained, never measured
    works(tmp_path, "evaluate", "--data", "data.npz", "--grid", "width=0.625,0.875")
    (told,) = errors(works(tmp_path, "extract", "--width", "0.625"))
    assert "none of the sub-networks that were trained" in told
    model = load(folder)
    assert len(model.statistics) == 4
    assert all(model.is_calibrated(member) for member in model.space.grid(width=(0.5, 0.625, 0.875, 1.0)))
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_statistics_are_written_beside_the_weights_that_they_belong_to_only(tmp_path: Path) -> None:
    _, model = pair()
    model.eval().save(tmp_path)
    model.activate(width=0.5)
    model.recalibrate(images())
    model.save_statistics(tmp_path)
    (found,) = load(tmp_path).statistics.values()
    assert_same_tensors(dict(found), dict(model.statistics[model.active]))
    with torch.no_grad():
        model.get_parameter("stem.weight")[0, 0, 0, 0] += 1
    with pytest.raises(CheckpointError, match="holds other weights than those that were measured: save the model"):
        model.save_statistics(tmp_path)
    with pytest.raises(CheckpointError, match="not found"):
        model.save_statistics(tmp_path / "nowhere")
    assert len(load(tmp_path).statistics) == 1


def test_the_full_network_needs_statistics_of_its_own_after_training() -> None:
    _, model = pair()
    assert model.is_calibrated(model.space.full)
    assert not model.is_calibrated(model.space.smallest)
    model.record_trained(TRAINED)
    assert not model.is_calibrated(model.space.full)


def test_other_weights_forget_what_was_measured() -> None:
    _, model = pair()
    model.eval().recalibrate(images())
    model.load_state_dict(model.state_dict())
    assert not model.statistics


# -- models in parts ------------------------------------------------------------------------------------------------


class Between(Router):
    """A router whose own code normalises between the parts."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.between(super().forward(x))
        return out


def rows(count: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(16, 8, generator=generator) for _ in range(count)]


@functools.cache
def in_parts() -> ComposedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = sortify(Between().eval(), tuple(rows()))
    assert isinstance(model, ComposedModel)
    return model


def test_frozen_norms_of_parts_and_between_them(tmp_path: Path) -> None:
    model = copy.deepcopy(in_parts()).train()
    model.freeze_norms()
    model.save(tmp_path)
    for each in (model, load(tmp_path, Between()).train()):
        assert each.norms_frozen
        before = {name: tensor for name, tensor in buffers(each).items() if name != "seen"}
        assert "between.num_batches_tracked" in before
        train_rows(each)
        assert_same_tensors({name: tensor for name, tensor in buffers(each).items() if name != "seen"}, before)
        each.freeze_norms(False)
        train_rows(each)
        after = buffers(each)
        changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
        assert {"between.running_mean", "experts.0.1.running_var"} <= changed
        assert not each.eval().norms_frozen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.extract(width=0.5)


def train_rows(model: ComposedModel) -> None:
    for x, width in zip(rows(4), (0.5, 1.0, 0.25, 1.0), strict=True):
        with model.using(width=width):
            model(x).square().mean().backward()


def test_parts_that_are_cut_alike_have_the_statistics_of_their_sub_network(tmp_path: Path) -> None:
    model = copy.deepcopy(in_parts()).eval()
    (x,) = rows()
    expected = {}
    for depth in (1.0, 0.34):
        model.activate(width=0.5, depth=depth)
        model.recalibrate(rows(3))
        expected[depth] = model(x)
    model.save(tmp_path)
    again = load(tmp_path, Between())
    for each in (model, again):
        for depth in (1.0, 0.34, 1.0):
            each.activate(width=0.5, depth=depth)
            assert each.is_calibrated()
            assert torch.equal(each(x), expected[depth])
            each.activate()
            assert torch.equal(each.extract(width=0.5, depth=depth).eval()(x), expected[depth])
    first, second = model.statistics.values()
    assert not torch.equal(first["experts.0.1.running_mean"], second["experts.0.1.running_mean"])


def test_parts_are_measured_in_the_order_in_which_they_run() -> None:
    model = copy.deepcopy(in_parts()).eval()
    found = []
    for _ in range(2):
        model.activate(width=0.5)
        model.recalibrate(rows(3))
        found.append(dict(next(iter(model.statistics.values()))))
    assert_same_tensors(found[1], found[0])
