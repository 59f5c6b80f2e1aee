"""Hidden features: a sub-network's follow those of the largest, unit by unit, block by block."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from cli_calls import call, errors, works, write_folder
from compare import assert_close_outputs
from parts_models import Router
from sorted_zoo import CASES, found
from torch import Tensor, nn
from training_models import example, make_model
from training_script import make_trainer
from zoo import call as run_on

from sortify import SortedModel, SortedUpdate, Subnet, TrainConfig, TrainingError, load, make_objective, sortify
from sortify.errors import SortifyError
from sortify.network.extract import pick
from sortify.network.features import cut, distance
from sortify.plan import Plan


class Pair:
    """A sampler that draws what it is given."""

    name: ClassVar[str] = "pair"
    shares_batch: ClassVar[bool] = True
    usual_count: ClassVar[int] = 2

    def __init__(self, *subnets: Subnet) -> None:
        self.subnets = list(subnets)

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        return self.subnets


def sorted_model(name: str) -> SortedModel:
    """A model of the zoo, in training mode."""
    captured, blueprint = found(name)
    inputs = CASES[name].inputs()
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (tuple(inputs), {})
    return SortedModel(blueprint, captured.tensors, captured.signature.bind(args, kwargs)).train()


def features_of(model: SortedModel, subnet: Subnet, inputs: Any) -> dict[str, Tensor]:
    with model.noting_features() as noted, model.using(subnet):
        torch.manual_seed(0)
        run_on(model, inputs)
        return dict(noted.last)


def number(value: Tensor) -> float:
    return float(value.detach())


# -- what the features are


@pytest.mark.parametrize("name", CASES)
def test_features_of_any_model_are_those_of_the_largest_cut_to_size(name: str) -> None:
    model, inputs = sorted_model(name), CASES[name].inputs()
    plan, space, generator = model.plan, model.space, torch.Generator().manual_seed(3)
    assert plan.features
    assert Plan.from_json(plan.to_json()).features == plan.features
    full = features_of(model, space.full, inputs)
    assert set(full) == set(plan.features)
    assert number(distance(plan, space.full, full, space.full, full)) == 0
    for subnet in (space.smallest, space.sample(generator), space.sample(generator)):
        own, small = (features_of(model, each, inputs) for each in (subnet, space.smallest))
        kept = {axis: list(range(size)) for axis, size in subnet.sizes}
        for key, dims in plan.features.items():
            part = cut(full[key], dims, space.full, subnet)
            assert torch.equal(part, pick(full[key], dims, kept))
            assert part.shape == own[key].shape
            twice = cut(part, dims, subnet, space.smallest)
            assert torch.equal(twice, cut(full[key], dims, space.full, space.smallest))
            assert twice.shape == small[key].shape
        assert number(distance(plan, subnet, own, subnet, own)) == 0
        assert distance(plan, space.smallest, small, space.full, full).isfinite()


def test_noting_changes_no_output_and_ends() -> None:
    model, inputs = sorted_model("tiny_vit"), CASES["tiny_vit"].inputs()
    for subnet in (model.space.full, model.space.smallest):
        with model.using(subnet):
            plain = run_on(model, inputs)
            with model.noting_features() as noted:
                assert_close_outputs(run_on(model, inputs), plain, 0.0)
            before = dict(noted.last)
            run_on(model, inputs)
            assert all(noted.last[name] is tensor for name, tensor in before.items())


def test_features_of_frozen_norms_are_found_too() -> None:
    model, inputs = sorted_model("resnet"), CASES["resnet"].inputs()
    plain = features_of(model, model.space.smallest, inputs)
    model.freeze_norms()
    frozen = features_of(model, model.space.smallest, inputs)
    assert list(frozen) == list(plain) == list(model.plan.features)
    assert all(frozen[name].shape == plain[name].shape for name in plain)
    assert not all(torch.equal(frozen[name], plain[name]) for name in plain)


def test_blocks_that_are_left_out_are_not_compared() -> None:
    model, inputs = sorted_model("residual_mlp"), CASES["residual_mlp"].inputs()
    (chain,) = model.plan.chains
    half = model.space.subnet(depth=0.5)
    full, own = (features_of(model, each, inputs) for each in (model.space.full, half))
    kept = half.depths[0][1]
    exits = [block.regions["train"].exit for block in chain.blocks]
    assert 0 < kept < len(exits) - 1
    assert all(torch.equal(own[name], full[name]) for name in exits[:kept])
    compared = {*exits[:kept], exits[-1], *(own.keys() - set(exits))}
    expected = torch.stack([share(own[name], full[name]) for name in full if name in compared]).mean()
    found = distance(model.plan, half, own, model.space.full, full)
    torch.testing.assert_close(found, expected)
    assert number(found) > 0
    everything = torch.stack([share(own[name], full[name]) for name in full]).mean()
    assert number((found - everything).abs()) > 1e-4


def share(own: Tensor, taught: Tensor) -> Tensor:
    return (own - taught).square().mean() / taught.square().mean()


# -- the gradient


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return out


@functools.cache
def small() -> SortedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return sortify(Small(), (torch.randn(4, 6),)).train()


def by_hand(model: SortedModel, x: Tensor, weight: float, units: slice) -> dict[str, Tensor]:
    """Gradients of the mean over full and half of (1 - 0.25) loss + 0.25 apart + weight * features, without sortify."""
    p = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.named_parameters()}

    def run(h: int, k: int) -> tuple[Tensor, Tensor]:
        first = torch.tanh(x @ p["first.weight"][:h].T + p["first.bias"][:h])
        second = torch.tanh(first @ p["second.weight"][:k, :h].T + p["second.bias"][:k])
        return second, second @ p["last.weight"][:, :k].T + p["last.bias"]

    hidden, output = run(8, 12)
    own, said = run(4, 6)
    taught = hidden.detach()[:, units]
    soft = output.detach().softmax(-1)
    apart = (soft * (soft.log() - said.log_softmax(-1))).sum(-1).mean()
    total = output.square().mean() + 0.75 * said.square().mean() + 0.25 * apart + weight * share(own, taught)
    (total / 2).backward()
    return {name: tensor.grad for name, tensor in p.items() if tensor.grad is not None}


def updated(model: SortedModel, x: Tensor, weight: float) -> tuple[dict[str, Tensor], Any]:
    half = model.space.subnet(width=0.5)
    objective = make_objective("features", model.space, ())
    sampler = Pair(half, model.space.full)
    drawn = SortedUpdate(model, sampler, objective=objective, weight=0.25, features=weight)(
        lambda: model(x).square().mean()
    )
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, drawn


def far(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert list(one) == list(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("weight", [0.0, 0.1, 3.0])
def test_the_gradient_is_that_of_the_loss_written_by_hand(weight: float) -> None:
    model, x = copy.deepcopy(small()), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    gradients, drawn = updated(model, x, weight)
    assert far(gradients, by_hand(model, x, weight, slice(0, 6))) < 1e-6
    assert (far(gradients, by_hand(model, x, weight, slice(6, 12))) < 1e-3) == (weight == 0)  # the other units
    assert (far(gradients, by_hand(model, x, 2 * weight, slice(0, 6))) < 1e-3) == (weight == 0)
    assert [each.subnet for each in drawn] == [model.space.full, model.space.subnet(width=0.5)]
    assert drawn[0].features is None
    assert (drawn[1].features is None) == (weight == 0)
    assert float(drawn[1].apart) > 0


def test_features_alone_can_teach() -> None:
    model, x = copy.deepcopy(small()), torch.randn(5, 6)
    objective = make_objective("features", model.space, ())
    sampler = Pair(model.space.full, model.space.subnet(width=0.5))
    drawn = SortedUpdate(model, sampler, objective=objective, weight=0.0)(lambda: model(x).square().mean())
    assert drawn[1].apart is None
    assert float(drawn[1].features or 0) > 0


def test_a_teacher_learns_nothing_from_its_pupils() -> None:
    """The parameters that only the full network has get the gradients of its own loss."""
    model, x = copy.deepcopy(small()), torch.randn(5, 6)
    gradients, _ = updated(model, x, 3.0)
    beyond = gradients["second.weight"][6:].clone()
    model.zero_grad()
    (model(x).square().mean() / 2).backward()
    assert model.get_parameter("second.weight").grad is not None
    torch.testing.assert_close(beyond, model.get_parameter("second.weight").grad[6:])


# -- training with them


def test_features_come_closer_in_training() -> None:
    x, apart = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)), {}
    for weight in (0.0, 10.0):
        trainer = make_trainer("mlp-still", None, steps=60, objective="features", features=weight, teacher=0.0)
        trainer.run()
        model = trainer.model.train()
        full, *smaller = (model.space.subnet(width=each) for each in (1.0, 0.75, 0.5))
        taught = features_of(model, full, (x,))
        own = [distance(model.plan, each, features_of(model, each, (x,)), full, taught) for each in smaller]
        apart[weight] = number(torch.stack(own).sum())
    assert apart[10.0] < 0.75 * apart[0.0]


@pytest.mark.parametrize("kind", ["bn", "lm"])
def test_a_training_with_features_runs_with_blocks_computed_again_and_is_resumed(kind: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"objective": "features", "steps": 3, "gradient_checkpointing": True}
    result = make_trainer(kind, tmp_path, **settings).run()
    assert all(0 < loss < 100 for loss in result.losses)
    again = load(tmp_path)
    assert again.plan.features == make_model(kind, seed=1).plan.features


def test_models_in_parts_and_models_without_features_are_refused() -> None:
    model = sortify(Router().eval(), (torch.randn(16, 8),))
    objective = make_objective("features", model.space, ())
    with pytest.raises(
        SortifyError, match=r"the model is in parts.*objective 'distill' compares outputs alone"
    ) as told:
        SortedUpdate(model, Pair(model.space.full), objective=objective)
    assert "\n" not in str(told.value)
    SortedUpdate(model, Pair(model.space.full), objective=objective, features=0.0)
    whole = make_model("mlp")
    object.__setattr__(whole.blueprint.plan, "features", {})
    with pytest.raises(SortifyError, match="no hidden features to compare"):
        SortedUpdate(whole, Pair(whole.space.full), objective=objective)


def test_evaluation_mode_is_refused() -> None:
    model, (x,) = make_model("mlp").eval(), example("mlp")
    sampler = Pair(model.space.full, model.space.smallest)
    update = SortedUpdate(model, sampler, objective=make_objective("features", model.space, ()))
    with pytest.raises(TrainingError, match=r"known in training mode only: call model.train\(\) first"):
        update(lambda: model(x).square().mean())


def test_a_loop_that_goes_pass_by_pass_is_refused() -> None:
    model = make_model("mlp")
    update = SortedUpdate(model, Pair(model.space.full), objective=make_objective("features", model.space, ()))
    with pytest.raises(TrainingError, match="the objective 'features' needs the whole step"):
        update.begin()


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_wrong_weights_are_refused(weight: float) -> None:
    with pytest.raises(TrainingError, match="features must be 0 or more"):
        TrainConfig(features=weight)


def test_the_command_line_trains_with_features(tmp_path: Path) -> None:
    write_folder(tmp_path)
    works(tmp_path, "convert", "model.pt")
    works(tmp_path, "train", "--sampler", "sandwich", "--objective", "features", "--features", "0.5")
    wrong = call(tmp_path, "train", "--objective", "features", "--features", "-1")
    assert errors(wrong) == ["error: features must be 0 or more, got -1.0"]


def test_every_forward_pass_is_one_sub_networks_own() -> None:
    """Depths of one width share a pass with other objectives; their features would be mixed up."""
    model, (x,) = make_model("mlp-still").train(), example("mlp")
    exits = model.space.grid(depth=(0.25, 0.5, 1.0))
    objective = make_objective("features", model.space, ())
    drawn = SortedUpdate(model, Pair(*exits), objective=objective)(lambda: model(x).square().mean())
    full = features_of(model, model.space.full, (x,))
    for each in drawn[1:]:
        own = features_of(model, each.subnet, (x,))
        torch.testing.assert_close(each.features, distance(model.plan, each.subnet, own, model.space.full, full))
