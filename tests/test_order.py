"""Importance order: the function stays, the most important units come first, and a wrong permutation is refused."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import zoo
from compare import assert_close_outputs, assert_same_tensors, max_error
from parts_models import Router
from torch import Tensor, nn

from sortify import SortedModel, load, sortify
from sortify.errors import DataError, ProofError
from sortify.graph.dims import Dim, axes_of, full, parse, parse_shape, positions
from sortify.ordering import order as ordering
from sortify.ordering.importance import MEASURES, measure, owners, per_unit
from sortify.ordering.order import ranking

NAMES = ("resnet", "group_norm", "shufflenet_2", "grouped_query_interleave", "qkv_per_head", "tied_embeddings")
CASES = {case.name: case for case in zoo.MODELS if case.name in NAMES}


@functools.cache
def converted(name: str) -> SortedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return sortify(zoo.randomize(CASES[name].build(), 2), CASES[name].inputs()).eval()


def fresh(name: str) -> SortedModel:
    return copy.deepcopy(converted(name))


def inputs(name: str) -> Any:
    return CASES[name].inputs()


def batches(name: str) -> list[Any]:
    """Two batches with targets that fit the output."""
    given = inputs(name)
    with torch.no_grad():
        logits = zoo.call(converted(name), given)
    target = torch.arange(logits[..., 0].numel()).reshape(logits.shape[:-1]) % logits.shape[-1]
    return [(given, target), (given, target.flip(0))]


# -- one score per unit


@pytest.mark.parametrize(
    "text",
    ["a:5", "3", "(a:3 * 4)", "(4 * a:3)", "(2 * a:3 * b:2)", "(b:3 + a:4)", "(a:3 + 2 + a:3)", "(a:2 * (a:2 + 3))"],
)
def test_owners_are_what_positions_lose(text: str) -> None:
    dim = parse(text)
    size = {"(b:3 + a:4)": 4, "a:5": 5, "(a:2 * (a:2 + 3))": 2}.get(text, 3)
    for unit in range(size):
        left = positions(dim, {"a": [each for each in range(size) if each != unit]})
        lost = [position for position, units in enumerate(owners(dim, "a")) if unit in units]
        assert sorted(lost) == sorted(set(range(full(dim))) - set(left))


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ("a:2, 3", 2, [3.0, 12.0]),
        ("3, a:2", 2, [0 + 2 + 4, 1 + 3 + 5]),
        ("(a:2 * 3)", 2, [0 + 1 + 2, 3 + 4 + 5]),
        ("(3 * a:2)", 2, [0 + 2 + 4, 1 + 3 + 5]),
        ("(1 + a:2), 2", 2, [2 + 3, 4 + 5]),
        ("(a:2 + 1 + a:2)", 2, [0 + 3, 1 + 4]),
        ("a:2, a:2", 2, [0 + 1 + 0 + 2, 2 + 3 + 1 + 3]),
        ("b:2, 3", 2, [0, 0]),
    ],
)
def test_scores_sum_over_the_other_factors(shape: str, size: int, expected: list[float]) -> None:
    dims: tuple[Dim, ...] = parse_shape(shape)
    count = torch.Size([full(dim) for dim in dims])
    found = per_unit(torch.arange(float(count.numel())).reshape(count), dims, "a", size)
    assert found.tolist() == expected


def test_ranking_is_stable_and_leaves_what_is_in_order() -> None:
    assert ranking(torch.tensor([1.0, 3.0, 3.0, 2.0])) == [1, 2, 3, 0]
    assert ranking(torch.tensor([3.0, 2.0, 2.000001, 0.0])) == [0, 1, 2, 3]
    assert ranking(torch.tensor([2.0, 2.1])) == [1, 0]


# -- the laws


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_stay_and_scores_fall(name: str, by: str) -> None:
    model, data = fresh(name), batches(name)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        expected = zoo.call(model, inputs(name))
        small = model.space.subnet(width=0.5)
        with model.using(small):
            before = zoo.call(model, inputs(name))
    done = model.order(by, data)
    with torch.no_grad():
        assert_close_outputs(zoo.call(model, inputs(name)), expected, 1e-5)
        with model.using(small):
            assert max_error(zoo.call(model, inputs(name)), before) > 1e-4
            assert_close_outputs(
                zoo.call(model.extract(subnet=small), inputs(name)), zoo.call(model, inputs(name)), 1e-5
            )
    assert done.error <= done.tolerance == 1e-10
    assert done.left == ()
    assert set(done.orders) == set(model.axes)
    assert any(list(places) != sorted(places) for places in done.orders.values())
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    for axis, units in measure(model, by, data).units.items():
        told = torch.tensor(done.scores[axis], dtype=torch.float64)
        assert bool((units[:-1] >= units[1:] - 1e-4 * units.max()).all()), axis
        assert_close_outputs(units, told, 1e-4)


@pytest.mark.parametrize("by", MEASURES)
def test_twice_is_once(by: str) -> None:
    model = fresh("grouped_query_interleave")
    model.order(by, batches("grouped_query_interleave"))
    once = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = model.order(by, batches("grouped_query_interleave"))
    assert_same_tensors(model.state_dict(), once)
    assert all(list(places) == sorted(places) for places in again.orders.values())


class Planted(nn.Module):
    """A hidden layer in which one unit carries nearly all of the output."""

    def __init__(self, unit: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.fc1.weight[unit] *= 30
            self.fc2.weight[:, unit] *= 30

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("unit", [3, 7])
def test_a_planted_unit_comes_first(by: str, unit: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 6)
    model = sortify(Planted(unit), (x,))
    (places,) = model.order(by, [(x, torch.arange(16) % 3)]).orders.values()
    assert places[0] == unit


class Forms(nn.Module):
    """`[B, 6]` to `[B, 3]` through eight units; every form of a product keeps its weights in its own way."""

    def __init__(self, form: str, unit: int) -> None:
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.randn(6, 8) / 3)
        self.bias = nn.Parameter(torch.zeros(8))
        self.turned = nn.ConvTranspose2d(6, 8, 2)
        self.fc2 = nn.Linear(8, 3)
        with torch.no_grad():
            self.weight[:, unit] *= 30
            self.turned.weight[:, unit] *= 30

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "addmm":
            y = torch.addmm(self.bias, x, self.weight)
        elif self.form == "mm":
            y = torch.mm(x, self.weight)
        elif self.form == "matmul":
            y = torch.matmul(x[:, None], self.weight)[:, 0]
        elif self.form == "turned":
            y = torch.matmul(x, self.weight.t().transpose(0, 1))
        else:
            y = self.turned(x[:, :, None, None]).mean((2, 3))
        return self.fc2(torch.tanh(y))


@pytest.mark.parametrize("form", ["addmm", "mm", "matmul", "turned", "transposed"])
def test_activations_of_every_form_of_a_product_count(form: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 6)
    model = sortify(Forms(form, 5).eval(), (x,))
    done = model.order("activation", [x])
    carried = "turned.weight" if form == "transposed" else "weight"
    (axis,) = [axis.name for axis in model.axes.values() if carried in axis.parameters]
    assert done.orders[axis][0] == 5


# -- what is refused, and what stays


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_left_out_is_caught_and_nothing_stays_moved(name: str) -> None:
    model = fresh(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    shapes = dict(model.plan.shapes)
    reverse = {axis: list(reversed(range(each.size))) for axis, each in model.axes.items()}
    assert model.blueprint.sorted_runners  # made with all shapes
    for left_out in [key for key, _ in model.named_parameters() if key in shapes]:
        wrong = {key: dims for key, dims in shapes.items() if key != left_out}
        object.__setattr__(model.plan, "shapes", wrong)
        with pytest.raises(ProofError, match="outputs change by"):
            ordering.arrange(model, reverse)
        assert_same_tensors(model.state_dict(), before)
    object.__setattr__(model.plan, "shapes", shapes)
    error, tolerance = ordering.arrange(model, reverse)
    assert error <= tolerance


def test_what_fails_half_way_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("resnet")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    move, calls = ordering._move, iter(range(10**6))

    def breaking(*args: Any) -> None:
        if next(calls) == 4:
            raise RuntimeError("out of memory")
        move(*args)

    monkeypatch.setattr(ordering, "_move", breaking)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.order()
    assert_same_tensors(model.state_dict(), before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"by": "size"}, "expected one of magnitude, activation, taylor"),
        ({"by": "activation"}, "give data=loader"),
        ({"by": "taylor"}, "give data=loader"),
        ({"by": "taylor", "data": []}, "yields no batch"),
        ({"by": "activation", "data": []}, "yields no batch"),
        ({"by": "taylor", "data": [torch.zeros(2, 3, 8, 8)]}, "as targets, got NoneType"),
        ({"by": "taylor", "data": [(torch.zeros(2, 3, 8, 8), torch.zeros(3).long())]}, r"got torch.int64 \[3\]"),
        ({"by": "activation", "data": [torch.zeros(2, 3, 8, 8)], "batches": 0}, "expected 1 or more"),
    ],
)
def test_one_clear_error(arguments: dict[str, Any], words: str) -> None:
    model = fresh("resnet")
    with pytest.raises(DataError, match=words) as caught:
        model.order(**arguments)
    assert "\n" not in str(caught.value)
    assert_same_tensors(model.state_dict(), converted("resnet").state_dict())


def test_modes_gradients_and_the_active_subnet_stay() -> None:
    model = fresh("resnet")
    first, frozen = list(model.parameters())[:2]
    frozen.requires_grad_(False)
    first.grad = first.detach().clone()
    model.activate(width=0.5)
    model.train()
    told: list[tuple[int, int]] = []
    model.order("taylor", batches("resnet"), progress=lambda done, of: told.append((done, of)))
    assert all(child.training for child in model.modules())
    assert model.active == model.space.subnet(width=0.5)
    assert not frozen.requires_grad
    assert first.requires_grad
    assert first.grad is not None
    assert torch.equal(first.grad, first)
    assert told == [(1, 20), (2, 20)]


def test_own_loss_and_recalibrated_statistics() -> None:
    model = fresh("resnet")
    model.recalibrate([inputs("resnet")])
    assert model.statistics
    model.order("taylor", [inputs("resnet")], loss=lambda output, target: output.square().mean())
    assert not model.statistics


def test_an_axis_that_an_output_shows_is_left() -> None:
    torch.manual_seed(0)
    model = sortify(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8)), (torch.randn(2, 4),), free="*")
    shown = {axis.axis for dims in model.plan.outputs["eval"].values() for dim in dims for axis in axes_of(dim)}
    assert shown
    assert shown != set(model.axes)
    done = model.order()
    assert set(done.left) == shown
    assert set(done.orders) == set(model.axes) - shown


def test_saved_and_loaded(tmp_path: Any) -> None:
    model = fresh("resnet")
    model.order()
    model.save(tmp_path / "sorted")
    assert_same_tensors(load(tmp_path / "sorted").state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = fresh("resnet").to(dtype)
    done = model.order()
    assert done.error <= done.tolerance
    assert next(model.parameters()).dtype == dtype


@pytest.mark.parametrize("by", MEASURES)
def test_a_model_in_parts(by: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 8)
    model = sortify(zoo.randomize(Router(), 2).eval(), (x,)).eval()
    with torch.no_grad():
        expected = model(x)
    done = model.order(by, [(x, torch.arange(12) % 6)])
    with torch.no_grad():
        assert_close_outputs(model(x), expected, 1e-5)
    assert set(done.orders) == set(model.axes)
    assert any(list(places) != sorted(places) for places in done.orders.values())
