"""Rewriting: slice nodes stand where they should, cost nothing at full size, and pass gradients to the right places.

One rewritten graph is kept as text; `SORTIFY_REGENERATE=1 pytest tests/test_rewrite.py` writes it anew.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_dense as dense
from compare import assert_close_outputs
from laws import loss
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import IMAGE, MODELS, ROW, call, randomize

from sortify import SortedModel, Subnet, sortify
from sortify.errors import AxesError, BudgetError
from sortify.graph.dims import positions
from sortify.rewriting.rewrite import Bypass
from sortify.rewriting.slicing import take, take_copy

GOLDEN = Path(__file__).parent / "golden" / "rewritten_glu_stack.txt"
CASES = {case.name: case for case in MODELS}
MIXED = (
    "mlp",
    "glu_chunk",
    "qkv_chunk",
    "qkv_per_head",
    "resnet_option_a",
    "many_groups",
    "tied_embeddings",
    "flatten",
)


@functools.cache
def converted(name: str) -> tuple[nn.Module, SortedModel]:
    case = CASES[name]
    original = case.build()
    return original.eval(), sortify(original, case.inputs()).eval()


def half(model: SortedModel) -> Subnet:
    return model.space.subnet(**dict.fromkeys(model.space.groups, 0.5))


def graphs(model: SortedModel, mode: str = "eval") -> list[fx.GraphModule]:
    """The main graph, then the bodies of the blocks."""
    root = model.blueprint.sorted_runners[mode].module
    return [root, *(block.body for block in root.children() if isinstance(block, Bypass))]


def nodes(model: SortedModel, mode: str = "eval") -> list[fx.Node]:
    return [node for module in graphs(model, mode) for node in module.graph.nodes]


class Operators(TorchDispatchMode):
    """Notes every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operators(module: nn.Module, inputs: Any) -> list[str]:
    """The operators of one call, in order."""
    with torch.no_grad(), Operators() as seen:
        call(module, inputs)
    # Plain slices are views, and tracing writes those that Python leaves out; equal parts are split by their sizes.
    names = [name.replace("split.Tensor", "split_with_sizes.default") for name in seen.names]
    return [name for name in names if name != "aten.slice.Tensor"]


# -- the graph ----------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """A stem, one gated block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = dense.Stack(dense.GLUBlock, blocks=2, width=8, inner=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x)


def test_printed_graph_is_the_golden_text() -> None:
    model = sortify(Tiny(), ROW())
    text = "\n\n".join(str(module.graph).strip() for module in graphs(model)) + "\n"
    if os.environ.get("SORTIFY_REGENERATE"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_printed_code_shows_slices_sizes_and_blocks() -> None:
    model = sortify(Tiny(), ROW())
    text = model.print_graph()
    assert re.search(r"depth_\w+ = sizes\[3\]", text)
    assert re.search(r"stem_weight_slice.*take\(\w*stem_weight, '[\w.]+:8, 8', \[\w+\]\)", text)
    assert re.search(r"up_weight_slice.*take\(\w*up_weight, '\(([\w.]+):4 \+ \1:4\), [\w.]+:8'", text)
    assert "split_with_sizes" in text


@pytest.mark.parametrize("name", MIXED)
def test_every_tensor_that_carries_an_axis_is_sliced_once_in_each_graph(name: str) -> None:
    _, model = converted(name)
    for mode, program in model.blueprint.programs.items():
        for module in graphs(model, mode):
            module.graph.lint()
        slices = [node for node in nodes(model, mode) if node.target in (take, take_copy)]
        holes = [node for node in program.graph.nodes if node.op == "placeholder"][2:]
        carrying = {h.name for h, n in zip(holes, program.tensors, strict=False) if n in model.plan.shapes and h.users}
        assert {node.args[0].name for node in slices} == carrying
        for module in graphs(model, mode):
            found = Counter(n.args[0].name for n in module.graph.nodes if n.target in (take, take_copy))
            assert not found or max(found.values()) == 1


@pytest.mark.parametrize("name", MIXED)
def test_only_slices_and_sizes_are_added(name: str) -> None:
    """What is left without slice nodes, size arithmetic and block calls is the captured graph, op by op."""
    _, model = converted(name)
    for mode, program in model.blueprint.programs.items():
        captured = Counter(str(n.target) for n in program.graph.nodes if hasattr(n.target, "_schema"))
        written = Counter(str(n.target) for n in nodes(model, mode) if hasattr(n.target, "_schema"))
        assert written == captured
        blocks = sum(len(chain.blocks) for chain in model.chains.values())
        assert sum(n.op == "call_module" for n in nodes(model, mode)) == blocks


def test_in_training_buffers_are_sliced_to_copies_and_parameters_to_views() -> None:
    _, model = converted("batch_norm_mlp")
    slicers = {n.args[0].name: n.target for n in nodes(model, "train") if n.target in (take, take_copy)}
    assert slicers["net_1_running_mean"] is take_copy
    assert slicers["net_1_weight"] is take
    assert all(n.target is not take_copy for n in nodes(model, "eval"))


def test_a_smaller_part_in_training_leaves_the_running_statistics_alone() -> None:
    _, model = converted("batch_norm_mlp")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name}
    with model.train().using(width=0.5):
        model(torch.randn(6, 8))
    model.eval()
    assert len(before) == 4
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


# -- what it costs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXED)
def test_full_size_runs_the_operators_of_the_original_and_no_others(name: str) -> None:
    original, model = converted(name)
    model.activate()
    inputs = CASES[name].inputs()
    assert operators(model, inputs) == operators(original, inputs)


def test_at_full_size_a_slice_node_returns_the_tensor_itself() -> None:
    tensor = torch.randn(12, 3)
    for slicer in (take, take_copy):
        assert slicer(tensor, "(a:4 + b:8), 3", [4, 8]) is tensor
        assert slicer(tensor[:6], "(a:4 + b:8), 3", [2, 4]).shape == (6, 3)


def test_a_prefix_is_a_view_and_a_copy_is_not() -> None:
    tensor = torch.randn(12, 3)
    part = take(tensor, "a:12, 3", [6])
    assert part.data_ptr() == tensor.data_ptr()
    assert torch.equal(part, tensor[:6])
    assert take_copy(tensor, "a:12, 3", [6]).data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("count", [3, 40])
def test_slices_of_few_and_of_many_runs_pick_the_same_positions(count: int) -> None:
    """Few runs are joined, many are gathered: both give what the definition says."""
    tensor = torch.randn(count * 4, 2, requires_grad=True)
    part = take(tensor, f"({count} * a:4), 2", [3])
    kept = [4 * i + j for i in range(count) for j in range(3)]
    assert torch.equal(part, tensor[kept])
    part.sum().backward()
    expected = torch.zeros_like(tensor)
    expected[kept] = 1
    assert torch.equal(tensor.grad, expected)


@pytest.mark.parametrize("name", MIXED)
def test_smaller_sizes_add_nothing_but_slices_to_the_operators_of_the_extraction(name: str) -> None:
    _, model = converted(name)
    inputs, subnet = CASES[name].inputs(), half(model)
    with model.using(subnet):
        ours = Counter(operators(model, inputs))
    extra = ours - Counter(operators(model.extract(subnet=subnet), inputs))
    assert set(extra) <= {"aten.cat.default", "aten.index_select.default", "aten.arange.start"}


# -- running ------------------------------------------------------------------------------------------------------


def test_activate_and_using() -> None:
    _, model = converted("residual_mlp")
    (x,) = ROW()
    full = model(x)
    chosen = model.activate(width=0.5, depth=0.5)
    assert chosen == model.active == model.space.subnet(width=0.5, depth=0.5)
    small = model(x)
    with model.using(width=0.25) as same:
        assert same is model
        assert model.active == model.space.subnet(width=0.25)
        with model.using(model.space.full):
            assert_close_outputs(model(x), full, 0.0)
        assert not torch.equal(model(x), small)
    assert_close_outputs(model(x), small, 0.0)
    assert model.activate() == model.active == model.space.full
    assert_close_outputs(model(x), full, 0.0)


def test_wrong_choices_leave_the_active_one() -> None:
    _, model = converted("residual_mlp")
    _, other = converted("mlp")
    with pytest.raises(BudgetError, match="does not belong to this model"):
        model.activate(other.space.full)
    with pytest.raises(BudgetError, match="not both"):
        model.activate(model.space.smallest, width=0.5)
    with pytest.raises(AxesError, match=r"width=0.*above 0 and at most 1"):
        model.activate(width=0)
    with pytest.raises(AxesError, match=r"'heads' is no group, axis or chain.*width, depth"):
        model.activate(heads=0.5)
    assert model.active == model.space.full


def gradients(module: nn.Module, inputs: Any) -> dict[str, Tensor | None]:
    module.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    loss(call(module, inputs)).backward()
    return {name: tensor.grad for name, tensor in module.state_dict(keep_vars=True).items()}


def placed(small: Tensor, full: Tensor, dims: Any, sizes: dict[str, int]) -> Tensor:
    """A gradient of the small tensor at its place in zeros of the full size."""
    index = [torch.tensor(positions(dim, {axis: list(range(n)) for axis, n in sizes.items()})) for dim in dims]
    result = torch.zeros_like(full)
    result[torch.meshgrid(*index, indexing="ij")] = small
    return result


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [*MIXED, "batch_norm_mlp", "residual_mlp"])
def test_gradients_are_those_of_the_extraction_in_their_places(name: str, training: bool) -> None:
    _, model = converted(name)
    inputs, subnet = CASES[name].inputs(), half(model)
    small = model.extract(subnet=subnet).train(training)
    with model.train(training).using(subnet):
        found = gradients(model, inputs)
    model.eval()
    expected = gradients(small, inputs)
    state = model.state_dict(keep_vars=True)
    compared = 0
    for tensor_name, gradient in found.items():
        if expected.get(tensor_name) is None:
            assert gradient is None, tensor_name
            continue
        first = model.blueprint.aliases.get(tensor_name, tensor_name)
        dims = model.plan.shapes.get(first)
        wanted = expected[tensor_name]
        if dims is not None:
            wanted = placed(wanted, state[tensor_name], dims, dict(subnet.sizes))
        # relative to the largest gradient: a bias before a norm has one of rounding errors only
        scale = max(float(g.abs().max()) for g in expected.values() if g is not None)
        assert float((gradient - wanted).abs().max()) <= 1e-6 * scale, tensor_name
        assert torch.equal(gradient == 0, wanted == 0) or "bias" in tensor_name, tensor_name
        compared += 1
    assert compared > 2


def test_skipped_blocks_get_no_gradient() -> None:
    _, model = converted("residual_mlp")
    with model.using(depth=0.5):
        found = gradients(model, ROW())
    skipped = {name for name, gradient in found.items() if gradient is None}
    assert skipped == {name for name in found if name.startswith(("blocks.2.", "blocks.3."))}


class TwoChains(nn.Module):
    """Two blocks of unequal structure, one after the other: two chains of one block each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 5)
        self.layer = nn.ModuleDict({"a": dense.ResidualBlock(16, 24), "b": dense.ResidualBlock(16, 12)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.layer["b"](self.layer["a"](x)))


def test_each_block_can_be_left_out() -> None:
    original = randomize(TwoChains(), 3)
    model = sortify(original, ROW())
    assert [len(chain.blocks) for chain in model.chains.values()] == [1, 1]
    (x,) = ROW()
    for subnet in model.space.grid(depth=[0.25, 0.5, 1.0]):
        with model.using(subnet):
            assert_close_outputs(model(x), model.extract(subnet=subnet)(x), 1e-6)


def test_images_at_every_width() -> None:
    _, model = converted("resnet_option_a")
    outputs = []
    for subnet in model.space.grid(width=4, depth=2):
        with model.using(subnet), torch.no_grad():
            outputs.append(call(model, IMAGE()))
    assert len(outputs) == 8
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(outputs))
