"""Calibration: the batch-norm statistics of a sub-network are those that its extraction would measure itself."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import zoo_conv as conv
import zoo_dense as dense
from compare import assert_close_outputs
from torch import Tensor, nn
from zoo import ROW, randomize

from sortify import SortedModel, sortify
from sortify.errors import DataError, InputError


class Normed(nn.Module):
    """Convolutions and linear layers with batch-norm, one without trained factors, one that never normalises alike."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8, momentum=0.2),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.BatchNorm2d(12, affine=False),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 4))

    def forward(self, image: Tensor, shift: Tensor | None = None) -> Tensor:
        y = self.classifier(self.features(image).mean((2, 3)))
        return y if shift is None else y + shift


@functools.cache
def converted() -> SortedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return sortify(randomize(Normed(), 2), (images()[0],)).eval()


@pytest.fixture
def model() -> SortedModel:
    return copy.deepcopy(converted())


def images(count: int = 3, samples: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(samples, 3, 6, 6, generator=generator) * (1 + i) for i in range(count)]


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if "running_" in name}


class Cut(Normed):
    """The network at half its width, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4, momentum=None),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.BatchNorm2d(6, affine=False, momentum=None),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=None), nn.Tanh(), nn.Linear(5, 4))


def measured_by_torch(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The module with `state`, its batch-norms averaging over `images()` from the start as torch does."""
    module.load_state_dict(state)
    for each in module.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            each.momentum = None
            each.reset_running_stats()
    module.train()
    with torch.no_grad():
        for batch in images():
            module(batch)
    return module.eval()


def test_half_is_measured_as_torch_measures_the_half_network(model: SortedModel) -> None:
    model.activate(width=0.5)
    model.recalibrate(images())
    small = model.extract(subnet=model.active)
    alone = measured_by_torch(Cut(), small.state_dict())
    assert_close_outputs(statistics(small), statistics(alone), 1e-6)
    (x,) = images(1)
    assert_close_outputs(model(x), alone(x), 1e-5)
    assert_close_outputs(small(x), alone(x), 1e-5)


def test_full_is_measured_as_torch_measures_the_original(model: SortedModel) -> None:
    before = copy.deepcopy(model.state_dict())
    model.recalibrate(images())
    alone = measured_by_torch(Normed(), model.state_dict())
    (x,) = images(1)
    assert_close_outputs(model(x), alone(x), 1e-5)
    assert_close_outputs(statistics(model.extract(subnet=model.space.full)), statistics(alone), 1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_each_sub_network_keeps_its_own_until_training_goes_on(model: SortedModel) -> None:
    (x,) = images(1)
    plain: dict[float, Tensor] = {}
    measured: dict[float, Tensor] = {}
    for width in (0.5, 0.75, 1.0):
        with model.using(width=width):
            plain[width] = model(x)
            model.recalibrate(images())
            measured[width] = model(x)
    assert len(model.statistics) == 3
    for width, expected in measured.items():
        assert not torch.allclose(expected, plain[width], atol=1e-3)
        with model.using(width=width):
            assert torch.equal(model(x), expected)
    model.eval()
    assert len(model.statistics) == 3
    model.train().eval()
    assert len(model.statistics) == 3
    weights = copy.deepcopy(model.state_dict())
    model.train()(x)
    model.eval().load_state_dict(weights)
    assert not model.statistics
    for width, expected in plain.items():
        with model.using(width=width):
            assert torch.equal(model(x), expected)


def test_measuring_changes_neither_weights_nor_mode_nor_random_state(model: SortedModel) -> None:
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model.activate(width=0.5)
    model.recalibrate(images())
    assert not model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(t.requires_grad for own in model.statistics.values() for t in own.values())


def test_only_as_many_batches_as_asked_for(model: SortedModel) -> None:
    taken = []

    def loader() -> Any:
        for batch in images(3):
            taken.append(batch)
            yield batch

    model.recalibrate(loader(), batches=2)
    assert len(taken) == 2
    once = {name: t.clone() for name, t in model.statistics[model.active].items()}
    model.recalibrate(images(2), batches=20)
    assert_close_outputs(dict(model.statistics[model.active]), once, 0.0)


def test_every_form_of_batch_gives_the_same(model: SortedModel) -> None:
    forms = {
        "tensor": lambda x: x,
        "tuple": lambda x: (x,),
        "with target": lambda x: (x, torch.zeros(len(x), dtype=torch.long)),
        "list with target": lambda x: [x, torch.zeros(len(x), dtype=torch.long)],
        "tuple with target": lambda x: ((x,), torch.zeros(len(x))),
        "names": lambda x: {"image": x},
        "names and labels": lambda x: {"image": x, "labels": torch.zeros(len(x))},
        "names with target": lambda x: ({"image": x}, torch.zeros(len(x))),
    }
    found = {}
    for name, form in forms.items():
        model.recalibrate(map(form, images()))
        found[name] = dict(model.statistics[model.active])
    for name, statistics_found in found.items():
        assert_close_outputs(statistics_found, found["tensor"], 0.0)
        assert name in forms


def test_no_batch_is_refused(model: SortedModel) -> None:
    with pytest.raises(DataError, match="the loader yields no batch"):
        model.recalibrate([])
    assert not model.statistics


def test_a_batch_that_does_not_fit_is_refused(model: SortedModel) -> None:
    with pytest.raises(InputError, match=r"'image': expected 4 dimensions"):
        model.recalibrate([torch.randn(3, 8)])
    assert not model.statistics


def test_statistics_follow_the_model_to_another_dtype(model: SortedModel) -> None:
    model.activate(width=0.5)
    model.recalibrate(images())
    (x,) = images(1)
    expected = model(x)
    assert_close_outputs(model.double()(x.double()).float(), expected, 1e-6)


def test_without_batch_norm_nothing_is_measured() -> None:
    model = sortify(dense.MLP(), ROW())
    assert not model.has_batch_statistics
    model.recalibrate(iter(()))
    assert not model.statistics


def test_dropout_is_off_while_measuring() -> None:
    model = sortify(randomize(dense.BatchNormMLP(), 2), ROW()).eval()
    assert model.has_batch_statistics
    batches = [torch.randn(16, 8) for _ in range(2)]
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model.recalibrate(batches)
        found.append(dict(model.statistics[model.active]))
    assert_close_outputs(found[0], found[1], 0.0)


def test_a_norm_that_keeps_no_statistics_is_left_alone() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 5)
            self.norm = nn.BatchNorm1d(16, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.norm(self.fc1(x)))

    model = sortify(Mixed(), ROW()).eval()
    assert not model.has_batch_statistics


def test_skipped_blocks_keep_their_statistics() -> None:
    model = sortify(randomize(conv.ResNet(), 2), (torch.randn(3, 3, 8, 8),)).eval()
    model.activate(depth=0.5)
    model.recalibrate([torch.randn(4, 3, 8, 8)])
    small = model.extract(subnet=model.active)
    gone = {name for name in model.state_dict() if name.startswith(("stage1.1.", "stage2.2."))}
    assert set(model.state_dict()) - set(small.state_dict()) == gone
    x = torch.randn(2, 3, 8, 8)
    assert_close_outputs(model(x), small(x), 1e-6)
