"""Sub-networks through `torch.compile`: the same numbers, and few graphs for many of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partialmethod
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import gradients, loss
from parts_models import detector
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from training_models import example, make_model
from training_script import make_trainer

from sortify import (
    SortedModel,
    SortedUpdate,
    Subnet,
    TrainConfig,
    TrainingError,
    difference,
    load,
    make_sampler,
    sortify,
)
from sortify.network.compiled import Compiler, flatten
from sortify.rewriting.slicing import take, take_copy
from sortify.training.samplers import levels_for

WIDTHS, DEPTHS = (0.25, 0.5, 0.75, 1.0), (0.5, 1.0)
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # the compiler looks, and hides it from users
]


@pytest.fixture
def counter() -> Iterator[CompileCounterWithBackend]:
    """Counts the graphs that the compiler makes; none of another test is there."""
    torch._dynamo.reset()
    yield CompileCounterWithBackend("eager")
    torch._dynamo.reset()


def call(model: nn.Module, inputs: Any) -> Any:
    torch.manual_seed(0)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def outcome(model: SortedModel, inputs: Any) -> tuple[Any, Any]:
    """Outputs and gradients."""
    model.zero_grad()
    output = call(model, inputs)
    loss(output).backward()
    return output, gradients(model)


def grid(model: SortedModel) -> list[Subnet]:
    return [model.space.subnet(width=width, depth=depth) for width, depth in product(WIDTHS, DEPTHS)]


@pytest.mark.parametrize(("kind", "training"), [("bn-still", True), ("mlp-still", False)], ids=["train", "eval"])
def test_two_graphs_for_each_choice_of_blocks(kind: str, training: bool, counter: CompileCounterWithBackend) -> None:
    plain, inputs = make_model(kind).train(training), example(kind)
    counter.backend = "aot_eager" if training else "eager"
    model = copy.deepcopy(plain)
    model.compile(backend=counter)
    for subnet in grid(plain):
        results = []
        for each in (plain, model):
            each.activate(subnet)
            results.append(outcome(each, inputs))
        assert difference(*results) <= 1e-5, subnet
    # one for weights that are whole, and one for all that are cut, where gradients make the compiler look at gaps
    assert counter.frame_count == (2 if training else 1) * len(DEPTHS)
    buffers = [dict(each.named_buffers()) for each in (plain, model)]
    assert bool(buffers[0]) == (kind == "bn-still")
    assert not buffers[0] or difference(*buffers) <= 1e-5


def test_a_graph_for_every_sub_network_where_widths_are_constants(counter: CompileCounterWithBackend) -> None:
    model = make_model("mlp").eval()
    model.compile(dynamic=False, backend=counter)
    for subnet in 2 * grid(model):
        with model.using(subnet):
            call(model, example("mlp"))
    assert counter.frame_count == len(WIDTHS) * len(DEPTHS)


def test_a_sorted_update_lands_the_same_gradients(counter: CompileCounterWithBackend) -> None:
    found, inputs = [], example("bn")
    for compiles in (False, True):
        model = make_model("bn-still").train()
        if compiles:
            model.compile(backend=counter)
        levels = levels_for(model.space, ("width", "depth"))
        update = SortedUpdate(model, make_sampler("random", model.space, levels, 4))
        drawn = update(lambda model=model: call(model, inputs).square().mean())  # type: ignore[misc]
        found.append(([each.loss for each in drawn], gradients(model)))
    assert counter.frame_count > 0
    assert difference(*found) <= 1e-5


def test_models_in_parts_compile_their_parts(counter: CompileCounterWithBackend) -> None:
    pictures = [torch.rand(3, 64, 64)]
    model = sortify(detector().eval(), (pictures,)).eval()
    with model.using(width=0.5):
        expected = model(pictures)
        model.compile(backend=counter)
        assert difference(expected, model(pictures)) <= 1e-5
    assert counter.frame_count > 0


def test_statistics_of_a_sub_network_are_used(counter: CompileCounterWithBackend) -> None:
    model = make_model("bn").eval()
    model.activate(width=0.5)
    model.recalibrate([(torch.rand(16, 1, 8, 8) + 3,)])
    inputs = (torch.rand(4, 1, 8, 8),)
    expected = call(model, inputs)
    model.compile(backend=counter)
    assert difference(expected, call(model, inputs)) <= 1e-5
    model.forget_statistics()
    assert difference(expected, call(model, inputs)) > 1e-3


def test_a_copy_runs_compiled_too(counter: CompileCounterWithBackend) -> None:
    model, inputs = make_model("mlp").eval(), example("mlp")
    expected = call(model, inputs)
    model.compile(backend=counter)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    twin = copy.deepcopy(model)
    assert difference(expected, call(twin, inputs)) <= 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


@pytest.mark.parametrize("kind", ["bn-still", "lm-still"])
def test_an_extracted_model_compiles_as_one_graph(kind: str, counter: CompileCounterWithBackend) -> None:
    small, inputs = make_model(kind).extract(width=0.5, depth=0.5), example(kind)
    expected = call(small, inputs)
    assert difference(expected, call(torch.compile(small, fullgraph=True, backend=counter), inputs)) <= 1e-5
    assert counter.frame_count == 1


def nodes_of(model: SortedModel, subnet: Subnet) -> list[Any]:
    graph = flatten(model.blueprint.sorted_runners["train"], subnet.values).runner.module.graph
    return [node.target for node in graph.nodes if node.op.startswith("call")]


def test_a_flat_graph_has_the_blocks_that_are_kept_and_cuts_nothing() -> None:
    model = make_model("bn")
    half, full = nodes_of(model, model.space.subnet(depth=0.5)), nodes_of(model, model.space.full)
    assert not {take, take_copy} & {*half, *full}
    assert not any(isinstance(target, str) for target in full)  # a module of its own would be a block
    blocks = [targets.count(torch.ops.aten.relu.default) for targets in (half, full)]
    assert blocks == [2, 4]


def test_graphs_that_run_under_vmap_run_as_they_are(counter: CompileCounterWithBackend) -> None:
    class Nests:
        nests = True

        def __call__(self, leading: Any, tensors: Any, inputs: Any) -> Any:
            return leading, tensors, inputs

    made: Callable[..., Any] = Compiler(1, options={"backend": counter})
    assert made(Nests(), (1, 2), {}, [3]) == (((1, 2),), {}, [3])
    assert counter.frame_count == 0


def test_a_training_that_compiles_equals_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counter: CompileCounterWithBackend
) -> None:
    monkeypatch.setattr(SortedModel, "compile", partialmethod(SortedModel.compile, backend=counter))
    found = {}
    for name, seed in (("plain", 0), ("compiled", 0), ("other", 1)):
        make_trainer("mlp-still", tmp_path / name, seed=seed, compile=name == "compiled").run()
        found[name] = load(tmp_path / name).state_dict()
    assert counter.frame_count > 0
    assert difference(found["plain"], found["compiled"]) <= 1e-4 < 1e-3 < difference(found["plain"], found["other"])


@pytest.mark.parametrize("with_it", ["shard", "gradient_checkpointing"])
def test_what_cannot_be_compiled_is_refused(with_it: str) -> None:
    with pytest.raises(TrainingError, match=f"compile does not go together with {with_it}"):
        TrainConfig(compile=True, **{with_it: True})  # type: ignore[arg-type]


def test_a_wrong_flat_graph_is_seen(counter: CompileCounterWithBackend) -> None:
    model = make_model("mlp-still").eval()
    inputs: tuple[Tensor, ...] = example("mlp")
    expected = call(model, inputs)
    wrong = flatten(model.blueprint.sorted_runners["eval"], model.space.subnet(depth=0.5).values)
    values = model.space.full.values[: len(model.axes)]
    found = wrong.runner((values,), wrong.cut(values, model.tensors), list(inputs))
    assert difference(expected, found) > 1e-3
