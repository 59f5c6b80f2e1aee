"""Gradients of sub-networks land in the full parameters: the same as autograd's own, and nobody is passed over."""

from __future__ import annotations

import pytest
import torch
from laws import largest_gap, placed_back
from parts_models import detector
from torch import Tensor, nn
from training_models import example, make_model

from sortify import SortedModel, sortify
from sortify.training.landing import Landing


class Pair(nn.Module):
    """Two halves side by side: what follows them is gathered from two places."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.left(x), self.right(x)], 1).relu())
        return out


def step(model: SortedModel, *inputs: Tensor) -> None:
    torch.manual_seed(0)
    output = model(*inputs)
    output = output["logits"] if isinstance(output, dict) else output
    output.square().mean().backward()


def ordinary(model: SortedModel, *inputs: Tensor, times: int = 1) -> dict[str, Tensor | None]:
    """Gradients by autograd's own way; the model has none afterwards."""
    for _ in range(times):
        step(model, *inputs)
    return taken(model)


def landed(model: SortedModel, *inputs: Tensor, times: int = 1) -> dict[str, Tensor | None]:
    """Gradients that landed; the model has none afterwards."""
    landing = Landing(model)
    for _ in range(times):
        with landing():
            step(model, *inputs)
    return taken(model)


def taken(model: SortedModel) -> dict[str, Tensor | None]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> None:
    """Both have the same gradients, and none for the same parameters."""
    assert [name for name in one if one[name] is None] == [name for name in other if other[name] is None]
    for name, gradient in one.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, other[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["mlp", "bn", "lm", "text"])
@pytest.mark.parametrize("times", [1, 3])
def test_landed_gradients_are_those_of_autograd(kind: str, times: int) -> None:
    model = make_model(kind).train()
    inputs = example(kind)
    inputs = tuple(inputs.values()) if isinstance(inputs, dict) else inputs
    for fractions in ({"width": 0.5}, {"width": 0.25, "depth": 0.5}, {}):
        model.activate(**fractions)
        assert_same(landed(model, *inputs, times=times), ordinary(model, *inputs, times=times))


def test_the_comparison_sees_a_wrong_gradient_and_a_missing_one() -> None:
    right: dict[str, Tensor | None] = {"weight": torch.ones(3)}
    with pytest.raises(AssertionError):
        assert_same(right, {"weight": torch.tensor([1.0, 1.0, 1.001])})
    with pytest.raises(AssertionError):
        assert_same(right, {"weight": None})


def test_the_gap_sees_a_wrong_place_and_a_missing_gradient() -> None:
    right = {"weight": torch.tensor([0.0, 2.0])}
    assert largest_gap({"weight": torch.tensor([0.0, 2.0]), "other": None}, right) == 0
    assert largest_gap({"weight": torch.tensor([2.0, 0.0])}, right) == 1
    assert largest_gap({"weight": None}, right) == float("inf")


def test_parameters_of_skipped_blocks_have_no_gradient() -> None:
    model = make_model("mlp")
    model.activate(depth=0.5)
    found = landed(model, *example("mlp"))
    assert any(gradient is None for gradient in found.values())
    assert_same(found, ordinary(model, *example("mlp")))


def test_gathered_positions_take_the_ordinary_way() -> None:
    model, x = sortify(Pair(), (torch.randn(4, 6),)), torch.randn(4, 6)
    for subnet in (model.space.smallest, model.space.subnet(width=0.5)):
        model.activate(subnet)
        found = landed(model, x)
        assert_same(found, ordinary(model, x))
        small = model.extract(subnet=subnet)
        small(x).square().mean().backward()
        assert largest_gap(found, placed_back(model, subnet, small)) < 1e-6


def test_hooks_of_parameters_are_called() -> None:
    model, seen = make_model("mlp"), []
    hooked = dict(model.named_parameters())["blocks.0.inner.weight"]
    hooked.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.shape))
    model.activate(width=0.5)
    landed(model, *example("mlp"))
    assert seen == [hooked.shape]


def test_frozen_parameters_stay_without_gradient() -> None:
    model = make_model("mlp")
    dict(model.named_parameters())["stem.weight"].requires_grad_(False)
    model.activate(width=0.5)
    found = landed(model, *example("mlp"))
    assert found["stem.weight"] is None
    assert_same(found, ordinary(model, *example("mlp")))


def test_a_teacher_inside_the_loss_runs_on_its_own_weights() -> None:
    model, (x,) = make_model("mlp-still"), example("mlp")
    half = model.space.subnet(width=0.5)
    outside = model(x)
    model.activate(half)
    with Landing(model)():
        with torch.no_grad(), model.using(model.space.full):
            teacher = model(x)
        (model(x) - teacher).square().mean().backward()
    assert torch.equal(teacher, outside)


def test_models_in_parts_land_too() -> None:
    model = sortify(detector().eval(), ([torch.rand(3, 64, 64)],)).eval()
    model.activate(width=0.5)

    def run() -> dict[str, Tensor | None]:
        torch.manual_seed(0)
        sum(value.sum() for value in model([torch.rand(3, 64, 64)])[0].values()).backward()
        return taken(model)

    with Landing(model)():
        torch.manual_seed(0)
        sum(value.sum() for value in model([torch.rand(3, 64, 64)])[0].values()).backward()
    assert_same(taken(model), run())


def test_no_gradient_of_full_size_is_made_on_the_way() -> None:
    model = make_model("mlp")
    landed_sizes, ordinary_sizes = [], []
    model.activate(width=0.25)
    step(model, *example("mlp"))  # gradients to land in
    for sizes, landing in ((ordinary_sizes, None), (landed_sizes, Landing(model))):
        with Sizes(sizes):
            if landing is None:
                step(model, *example("mlp"))
            else:
                with landing():
                    step(model, *example("mlp"))
    largest = max(parameter.numel() for parameter in model.parameters())
    assert max(ordinary_sizes) == largest > max(landed_sizes)


class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes how many elements each new tensor has."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
            self.sizes.append(result.numel())
        return result
