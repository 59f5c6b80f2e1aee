"""What is run for its effect alone stays in the graphs, in sub-networks and in what is extracted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._functorch import predispatch

from sortify import load, sortify
from sortify.graph.ops import RUNNING, has_effect, nesting_restored, without_dead_code


class Aside(nn.Module):
    """A branch whose result nobody uses, but whose norm keeps statistics."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.side, self.norm, self.last = nn.Conv2d(8, 12, 1), norm(12), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).relu()
        self.last(self.norm(self.side(h)))
        out: Tensor = self.head(h)
        return out


def tracked(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, track_running_stats=True)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, tracked])
def test_norms_whose_result_is_unused_keep_their_statistics(norm: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    original, x = Aside(norm), torch.randn(4, 3, 8, 8)
    model = sortify(original, (x,)).train()
    small = model.extract(width=0.5).train()
    with model.using(width=0.5):
        model(x)  # statistics of sub-networks are their own, as everywhere
    assert model.get_buffer("norm.running_mean").abs().max() == 0
    small(x)
    assert len(small.get_buffer("norm.running_mean")) == 6
    assert small.get_buffer("norm.running_mean").abs().min() > 0
    model(x)
    original.train()(x)
    torch.testing.assert_close(model.get_buffer("norm.running_mean"), original.get_buffer("norm.running_mean"))
    kept = {name for name, _ in model.extract(width=0.5).named_parameters()}
    assert "side.weight" in kept


@pytest.mark.parametrize("op", list(RUNNING), ids=str)
@pytest.mark.parametrize("changes", [True, False])
def test_a_norm_that_writes_statistics_stays(op: Any, changes: bool) -> None:
    values: dict[str, Any] = dict.fromkeys(("weight", "bias"))
    for statistics in (True, False):
        graph = fx.Graph()
        x, mean = graph.placeholder("x"), graph.placeholder("mean")
        flag = RUNNING[op][1]
        given = {**values, "input": x, "running_mean": mean if statistics else None, "running_var": None, flag: changes}
        arguments = [given.get(argument.name, 0.1) for argument in op._schema.arguments]
        node = graph.call_function(op, tuple(arguments))
        dead = graph.call_function(torch.ops.aten.relu.default, (node,))
        graph.output((x,))
        assert has_effect(node) == (changes and statistics)
        assert not has_effect(dead)
        without_dead_code(graph)
        assert (node in graph.nodes, dead in graph.nodes) == (changes and statistics, False)


class Mapped(nn.Module):
    """A causal mask made by two nested `torch.vmap`, as transformers makes some of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, places = self.first(x), torch.arange(x.shape[1])
        rows = torch.vmap(lambda i, j: (i >= j) & (i - j < 3), (None, 0))
        weights = torch.vmap(rows, (0, None))(places, places).to(h.dtype)
        out: Tensor = self.last(weights @ h)
        return out


def test_what_vmap_runs_is_captured(tmp_path: Path) -> None:
    original, x = Mapped(), torch.randn(3, 5, 4)
    model = sortify(original, (x,))
    assert len(model.plan.axes) == 1
    model.save(tmp_path)
    for found in (model, load(tmp_path), model.extract(subnet=model.space.full)):
        for batch in (x, torch.randn(2, 5, 4)):
            torch.testing.assert_close(found(batch), original(batch))


def leave_by_an_error() -> None:
    predispatch._vmap_increment_nesting(3, "error")
    raise ZeroDivisionError


def test_a_failure_inside_vmap_leaves_it() -> None:
    model, x = sortify(Mapped(), (torch.randn(3, 5, 4),)).eval(), torch.randn(3, 5, 4)
    module = model.blueprint.sorted_runners["eval"].module
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.ge.Tensor:
            node.target = leave_by_an_error
            node.args = ()
    module.recompile()
    with pytest.raises(ZeroDivisionError):
        model(x)
    assert torch._C._functorch.maybe_current_level() is None
    with pytest.raises(ZeroDivisionError), nesting_restored():
        leave_by_an_error()
    assert torch._C._functorch.maybe_current_level() is None
