"""How many sub-networks a step trains, how far gradients agree, and conflicts between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from test_train import same, stop_at, weights
from torch import Tensor, nn
from training_models import example, make_model
from training_script import make_trainer

from sortify import SAMPLERS, SortedUpdate, Space, Subnet, TrainConfig, make_sampler
from sortify.errors import TrainingError
from sortify.training.accumulation import EVERY, MOST, Adaptive, Scheduled, make_accumulation
from sortify.training.gradients import Probe, Projection
from sortify.training.samplers import levels_for
from sortify.training.sampling import Levels
from sortify.training.state import StateFolder

# -- numbers


def test_a_schedule_gives_each_number_an_equal_part() -> None:
    schedule = Scheduled((1, 2, 4), 9)
    assert [schedule.count(step) for step in range(10)] == [1, 1, 1, 2, 2, 2, 4, 4, 4, 4]
    assert [Scheduled((3,)).count(step) for step in (0, 7)] == [3, 3]


@pytest.mark.parametrize(
    ("agreement", "count"), [(1.0, 1), (0.5, 1), (0.34, 2), (0.2, 4), (0.05, MOST), (0.0, MOST), (-0.5, MOST)]
)
def test_an_adaptive_number_balances_what_agrees_and_what_does_not(agreement: float, count: int) -> None:
    adaptive = Adaptive()
    adaptive.observe(agreement)
    assert adaptive.count(1) == count
    assert adaptive.count(EVERY) == max(2, count)
    again = Adaptive()
    again.load_state_dict(adaptive.state_dict())
    assert again.count(1) == count


def test_what_accumulate_means() -> None:
    assert make_accumulation(None, 4, 10).count(0) == 4
    assert make_accumulation(3, 4, 10).count(0) == 3
    assert make_accumulation((1, 5), 4, 10).count(9) == 5
    assert isinstance(make_accumulation("adaptive", 4, 10), Adaptive)
    with pytest.raises(TrainingError, match="expected a number, several, or 'adaptive', got 'many'"):
        make_accumulation("many", 4, 10)


@pytest.mark.parametrize("wrong", [0, (1, 0), (), "many", 1.5, True])
def test_wrong_numbers_are_refused(wrong: Any) -> None:
    with pytest.raises(TrainingError, match="accumulate must be a number of sub-networks"):
        TrainConfig(accumulate=wrong)


def test_an_adaptive_number_needs_the_steps_where_batches_are_not_shared() -> None:
    with pytest.raises(TrainingError, match="give the number of steps"):
        make_trainer("mlp", None, steps=None, sampler="random", accumulate="adaptive").run()
    assert make_trainer("mlp", None, steps=None, epochs=1, sampler="sandwich", accumulate="adaptive").run().steps == 5


@pytest.mark.parametrize(("counts", "seen"), [((1, 2, 4), {1, 2, 4}), (3, {3})])
def test_a_training_draws_as_many_as_told(tmp_path: Path, counts: Any, seen: set[int]) -> None:
    make_trainer("mlp", tmp_path, sampler="random", accumulate=counts).run()
    assert {len(line["draws"]) for line in StateFolder(tmp_path).history()} == seen


class Lone:
    """A sampler of somebody's own that is no dataclass and keeps no count."""

    name: ClassVar[str] = "lone"
    shares_batch: ClassVar[bool] = False
    usual_count: ClassVar[int] = 1

    def __init__(self, space: Space, levels: Levels, count: int) -> None:
        self.space = space

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        return [self.space.smallest]


def test_only_a_number_that_changes_asks_a_sampler_for_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "lone", Lone)
    assert make_trainer("mlp", None, sampler="lone", steps=2).run().steps == 2
    with pytest.raises(TrainingError, match="make it a dataclass with a 'count'"):
        make_trainer("mlp", None, sampler="lone", accumulate=(1, 2)).run()


def test_epochs_count_the_batches_of_a_schedule() -> None:
    """5 batches an epoch, 2 a step in the mean."""
    assert make_trainer("mlp", None, steps=None, epochs=4, sampler="random", accumulate=(1, 3)).run().steps == 10


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate": "adaptive", "sampler": "random"},
        {"accumulate": (1, 2), "sampler": "by-loss"},
        {"accumulate": 2, "sampler": "progressive", "project": True},
    ],
    ids=["adaptive", "by-loss", "project"],
)
def test_a_resumed_training_equals_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    settings = {**settings, "save_steps": 5, "steps": 14}
    whole = make_trainer("mlp", tmp_path / "whole", **settings).run()
    stop_at(make_trainer("mlp", tmp_path / "cut", **settings), 12, monkeypatch)
    rest = make_trainer("mlp", tmp_path / "cut", **settings).run(resume=True)
    assert rest.losses == whole.losses[10:]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


# -- agreement


def parameters(*sizes: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(size)) for size in sizes]


def add(those: list[nn.Parameter], *gradients: Tensor) -> None:
    for each, gradient in zip(those, gradients, strict=True):
        each.grad = gradient.clone() if each.grad is None else each.grad + gradient


@pytest.mark.parametrize("before", [False, True])
def test_agreement_is_the_mean_cosine_of_what_both_have(before: bool) -> None:
    those, probe = parameters(2000, 500), None
    if before:
        add(those, torch.randn(2000), torch.randn(500))
    probe = Probe(those)
    probe.start()
    one, half = torch.randn(2000), torch.randn(2000)
    half[1000:] = 0
    add(those, one, torch.zeros(500))
    probe.add()
    add(those, -one, torch.zeros(500))
    probe.add()
    assert probe.agreement() == pytest.approx(-1, abs=1e-3)
    add(those, one * (half != 0), torch.zeros(500))
    probe.add()
    assert probe.agreement() == pytest.approx((-1 + 1 - 1) / 3, abs=1e-2)


def test_there_is_no_agreement_of_one_or_of_strangers() -> None:
    those = parameters(100)
    probe = Probe(those)
    probe.start()
    add(those, torch.arange(100.0) * (torch.arange(100) < 50))
    probe.add()
    assert probe.agreement() is None
    add(those, torch.arange(100.0) * (torch.arange(100) >= 50))
    probe.add()
    assert probe.agreement() is None


def test_an_update_tells_how_far_its_gradients_agree() -> None:
    model, inputs = make_model("mlp-still").train(), example("mlp")
    seen = []

    class Told(Adaptive):
        def observe(self, agreement: float) -> None:
            seen.append(agreement)

    sampler = make_sampler("random", model.space, levels_for(model.space, ()))
    update = SortedUpdate(model, sampler, accumulation=Told())
    for _ in range(EVERY + 1):
        update(lambda: model(*inputs).square().mean())
    assert seen == pytest.approx([1.0, 1.0], abs=1e-4)  # the same network on the same batch


# -- conflicts


def test_what_points_against_the_sum_is_taken_out() -> None:
    those = parameters(2, 2)
    projection = Projection(those)
    projection.start()
    add(those, torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
    projection.add()
    add(those, torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 2.0]))
    projection.add()
    projection.finish()
    assert [each.grad.tolist() for each in those if each.grad is not None] == [[-0.5, 1.5], [1.0, 3.0]]


def test_what_has_no_gradient_stays_without() -> None:
    those = parameters(1, 1)
    projection = Projection(those)
    projection.start()
    those[0].grad = torch.ones(1)
    projection.add()
    projection.finish()
    assert those[0].grad is not None
    assert those[1].grad is None


def test_without_conflicts_projection_changes_nothing() -> None:
    model, inputs = make_model("mlp-still").train(), example("mlp")
    found = []
    for project in (False, True):
        sampler = make_sampler("random", model.space, (), 3)
        SortedUpdate(model, sampler, project=project)(lambda: model(*inputs).square().mean())
        found.append({name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None})
        model.zero_grad()
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])
