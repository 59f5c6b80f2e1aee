"""What sub-networks learn from, and one forward pass for several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from training_models import example, make_model
from training_script import make_trainer

from sortify import SortedModel, SortedUpdate, Subnet, TrainConfig, TrainingError, make_objective, make_sampler
from sortify.network.exits import can_share, run_many
from sortify.training.objectives import OBJECTIVES, largest_first, register_objective, soft_cross_entropy
from sortify.training.samplers import levels_for

LEVELS = {"width": (0.5, 1.0), "depth": (0.25, 0.5, 1.0)}


def logits(model: SortedModel, inputs: Any) -> Tensor:
    output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    found: Tensor = output["logits"] if isinstance(output, dict) else output
    return found


def exits_of(model: SortedModel) -> list[Subnet]:
    return model.space.grid(depth=(0.25, 0.5, 1.0))


class Named:
    """A sampler that draws what it is given."""

    name: ClassVar[str] = "named"
    shares_batch: ClassVar[bool] = True
    usual_count: ClassVar[int] = 1

    def __init__(self, *subnets: Subnet) -> None:
        self.subnets = list(subnets)

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        return self.subnets


def gradients(model: SortedModel) -> dict[str, Tensor]:
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    return found


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


# -- one forward pass for several


@pytest.mark.parametrize("kind", ["mlp-still", "bn-still", "lm-still", "text-still"])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_together_are_those_of_each_alone(kind: str, training: bool) -> None:
    model, inputs = make_model(kind).train(training), example(kind)
    many = model.space.grid(width=2, depth=(0.25, 0.5, 1.0))
    runner = model.blueprint.sorted_runners["train" if training else "eval"]
    assert can_share(runner)
    bound = model._bind(*(((), inputs) if isinstance(inputs, dict) else (inputs, {})))
    with torch.no_grad():
        found = run_many(runner, [each.values for each in many], len(model.plan.axes), model.tensors, bound)
        for subnet, output in zip(many, found, strict=True):
            with model.using(subnet):
                torch.testing.assert_close(
                    output["logits"] if isinstance(output, dict) else output, logits(model, inputs)
                )


def test_a_wrong_output_is_seen() -> None:
    model, inputs = make_model("lm-still"), example("lm-still")
    small, full = (logits_of_one(model, subnet, inputs) for subnet in (model.space.smallest, model.space.full))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(small, full)


def logits_of_one(model: SortedModel, subnet: Subnet, inputs: Any) -> Tensor:
    with torch.no_grad(), model.using(subnet):
        return logits(model, inputs)


def test_exits_share_their_blocks() -> None:
    """Blocks cost once, heads once per exit."""
    model, inputs = make_model("lm-still").eval(), example("lm-still")
    many = exits_of(model)
    cost = {subnet: model.cost(subnet).flops for subnet in many}
    with torch.no_grad(), FlopCounterMode(display=False) as counter, model.together(many):
        for subnet in many:
            model.activate(subnet)
            logits(model, inputs)
    model.activate()
    head = 2 * 2 * 16 * 32 * 256
    assert counter.get_total_flops() == cost[model.space.full] + head * (len(many) - 1)
    assert counter.get_total_flops() < sum(cost.values())


def test_other_inputs_are_not_answered_from_the_pass_before() -> None:
    model, one, other = make_model("mlp-still").eval(), example("mlp"), example("mlp")
    many = exits_of(model)
    with torch.no_grad(), model.together(many):
        model.activate(many[0])
        logits(model, one)
        model.activate(many[1])
        found = logits(model, other)
        again = logits(model, other)
    model.activate(many[1])
    torch.testing.assert_close(found, logits(model, other))
    torch.testing.assert_close(again, found)


def test_one_dropout_mask_serves_all_exits() -> None:
    model, inputs = make_model("mlp").train(), example("mlp")
    many = exits_of(model)
    with torch.no_grad(), model.together(many):
        torch.manual_seed(0)
        model.activate(many[-1])
        shared = logits(model, inputs)
    model.activate(many[-1])
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(shared, logits(model, inputs))


def test_what_writes_into_its_inputs_shares_nothing() -> None:
    model = make_model("mlp-still")
    runner = model.blueprint.sorted_runners["train"]
    graph = runner.module.graph
    node = next(node for node in graph.nodes if node.target is torch.ops.aten.linear.default)
    with graph.inserting_after(node):
        written = graph.call_function(torch.ops.aten.add_.Tensor, (node, 1))
    assert not can_share(runner)
    graph.erase_node(written)
    assert can_share(runner)


@pytest.mark.parametrize("kind", ["mlp-still", "lm-still"])
def test_gradients_of_exits_together_are_those_of_each_alone(kind: str) -> None:
    model, inputs = make_model(kind).train(), example(kind)
    sampler = Named(*exits_of(model))
    found = []
    for share in (True, False):
        SortedUpdate(model, sampler, share_batch=share)(lambda: logits(model, inputs).square().mean())
        found.append(gradients(model))
    assert_close(*found)


# -- objectives


@pytest.mark.parametrize("name", ["distill", "chain"])
def test_a_student_learns_from_targets_and_teacher(name: str) -> None:
    model, inputs, target = make_model("mlp-still").train(), example("mlp"), torch.tensor([1, 2])
    small, middle, full = (model.space.subnet(width=width) for width in (0.25, 0.5, 1.0))
    objective = make_objective(name, model.space, ())
    teachers = {"distill": {middle: full, small: full}, "chain": {middle: full, small: middle}}[name]

    def loss() -> Tensor:
        return functional.cross_entropy(logits(model, inputs), target)

    update = SortedUpdate(model, Named(small, full, middle), objective=objective, weight=0.25)
    drawn = update(loss)
    found = gradients(model)
    assert [each.subnet for each in drawn] == [full, middle, small]
    assert drawn[0].apart is None
    for subnet in (full, middle, small):
        with model.using(subnet):
            own = logits(model, inputs)
        value = functional.cross_entropy(own, target)
        if subnet in teachers:
            soft = logits_of_one(model, teachers[subnet], inputs).softmax(-1)
            apart = (soft * (soft.log() - own.log_softmax(-1))).sum(-1).mean()
            value = 0.75 * value + 0.25 * apart
            torch.testing.assert_close(next(each.apart for each in drawn if each.subnet == subnet), apart.detach())
        (value / 3).backward()
    assert_close(found, gradients(model))


def test_who_is_not_contained_has_no_teacher() -> None:
    model, inputs = make_model("mlp-still").train(), example("mlp")
    wide, deep = model.space.subnet(depth=0.5), model.space.subnet(width=0.5)
    objective = make_objective("chain", model.space, ())
    drawn = SortedUpdate(model, Named(wide, deep), objective=objective)(lambda: logits(model, inputs).sum())
    assert [each.apart for each in drawn] == [None, None]


def test_sum_runs_all_that_are_nested_in_the_draw() -> None:
    model = make_model("mlp-still")
    levels = levels_for(model.space, ("width", "depth"), LEVELS)
    objective = make_objective("sum", model.space, levels)
    middle = model.space.subnet(width=0.5, depth=0.5)
    assert objective.members([middle]) == [middle, model.space.subnet(width=0.5, depth=0.25)]
    assert len(objective.members([model.space.full])) == 6


def test_sum_runs_the_levels_inside_a_draw_of_any_size() -> None:
    space = make_model("mlp").space
    levels = (("width", (0.25, 0.5, 1.0)),)
    drawn = space.subnet(width=0.7)
    members = make_objective("sum", space.using(dict(levels), every=("width",)), levels).members([drawn])
    assert members == [drawn, space.subnet(width=0.5), space.subnet(width=0.25)]


def test_largest_first_never_puts_a_member_before_what_contains_it() -> None:
    model = make_model("mlp-still")
    many = model.space.grid(width=4, depth=4)
    found = largest_first(many[::-1])
    assert sorted(map(str, found)) == sorted(map(str, many))
    for place, subnet in enumerate(found):
        assert not any(later.contains(subnet) and later != subnet for later in found[place + 1 :])
    widths = [subnet.sizes for subnet in found]
    assert len([1 for one, other in pairwise(widths) if one != other]) == 3


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("kind", ["mlp", "lm"])
def test_every_objective_trains(objective: str, kind: str) -> None:
    settings: dict[str, Any] = {"sampler": "sandwich", "levels": LEVELS, "objective": objective, "lr": 0.02}
    losses = make_trainer(kind, None, steps=60, **settings).run().losses
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_distance_that_is_not_finite_stops_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer("mlp", None, objective="distill")
    monkeypatch.setattr(type(trainer.task), "match", lambda self, output, teacher, target: output.sum() * torch.inf)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items() if "weight" in name}
    with pytest.raises(TrainingError, match=r"step 0, sub-network .*: the loss is (inf|-inf|nan)"):
        trainer.run()
    assert all(torch.equal(trainer.model.state_dict()[name], value) for name, value in before.items())


# -- errors


def test_objectives_that_compare_need_one_batch() -> None:
    with pytest.raises(TrainingError, match="share it"):
        TrainConfig(objective="chain", share_batch=False)


@pytest.mark.parametrize(
    ("options", "said"), [({"objective": "x"}, "unknown objective"), ({"teacher": 1.5}, "teacher")]
)
def test_bad_settings_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        replace(TrainConfig(), **options)


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(TrainingError, match="there are chain, distill, features, sum, task"):
        make_objective("x", make_model("mlp").space, ())


def test_an_objective_of_ones_own() -> None:
    class Own:
        name: ClassVar[str] = "own"
        shares_batch: ClassVar[bool] = True
        teaches: ClassVar[bool] = False

        def __init__(self, space: Any, levels: Any) -> None:
            self.space = space

        def members(self, drawn: Sequence[Subnet]) -> list[Subnet]:
            return [self.space.full]

        def teacher(self, subnet: Subnet, before: Sequence[Subnet]) -> Subnet | None:
            return None

    try:
        register_objective(Own)
        with pytest.raises(ValueError, match="exists already"):
            register_objective(Own)
        model = make_model("mlp-still")
        sampler = make_sampler("random", model.space, levels_for(model.space, ("width",)))
        update = SortedUpdate(model, sampler, objective=make_objective("own", model.space, ()))
        assert [each.subnet for each in update(lambda: logits(model, example("mlp")).sum())] == [model.space.full]
    finally:
        OBJECTIVES.pop("own", None)
    with pytest.raises(ValueError, match="lacks them"):
        register_objective(nn.Module)


def test_soft_cross_entropy_of_equals_is_nothing() -> None:
    values = torch.randn(3, 4, 5)
    assert float(soft_cross_entropy(values, {"logits": values})) == pytest.approx(0, abs=1e-6)
    assert float(soft_cross_entropy(values, values.flip(-1))) > 0.1
