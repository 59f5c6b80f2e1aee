"""A graph run on two sets of tensors side by side gives what it gives on each alone."""

from __future__ import annotations

import pytest
import torch
from compare import max_error
from torch import nn

from sortify.capture.capture import Captured, capture
from sortify.capture.interpreter import run_side_by_side
from sortify.network.network import Runner


class Plain(nn.Module):
    """A mask that no weight reaches, tied weights, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.arange(6, device=x.device) % 2
        return self.linear(self.linear(x) * mask) + x


class InPlace(nn.Module):
    """Changes its input, and a view of what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.add_(self.weight)
        x[:, :2].mul_(self.weight[:2])
        return x * 2


class Noisy(nn.Module):
    """Draws random numbers, before and after a weight comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.linear(x + torch.rand_like(x)), 0.5, training=True)


class NoTensors(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"twice": 2 * x}


CASES = [
    (Plain(), torch.randn(2, 6)),
    (InPlace(), torch.randn(2, 4)),
    (NoTensors(), torch.randn(2, 4)),
    (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), torch.randn(5, 6)),
]


def changed(captured: Captured, factor: float) -> dict[str, torch.Tensor]:
    return {name: t * factor if t.is_floating_point() else t.clone() for name, t in captured.tensors.items()}


def alone(captured: Captured, mode: str, tensors: dict[str, torch.Tensor], x: torch.Tensor) -> object:
    program = captured.programs[mode]
    module = torch.fx.GraphModule(nn.Module(), program.graph)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return Runner(module, program.tensors, program.outputs)((), tensors, [x.clone()])


@pytest.mark.parametrize(("module", "x"), CASES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_side_by_side_is_each_alone(module: nn.Module, x: torch.Tensor, mode: str) -> None:
    captured = capture(module, (x,))
    sets = [changed(captured, 1.0), changed(captured, 1.5)]
    before = x.clone()
    with torch.no_grad():
        found = run_side_by_side(captured.programs[mode], lambda name: [s[name] for s in sets], [x])
        expected = [alone(captured, mode, each, x) for each in sets]
    assert torch.equal(x, before)
    for mine, theirs in zip(found, expected, strict=False):  # without tensors there is one run
        assert max_error(mine, theirs) == 0
    assert len(found) == (2 if captured.tensors else 1)


def test_runs_draw_the_same_numbers_and_a_difference_shows() -> None:
    captured = capture(Noisy(), (torch.randn(2, 6),))
    tensors, x = changed(captured, 1.0), torch.randn(2, 6)
    one, other = run_side_by_side(captured.programs["eval"], lambda name: [tensors[name]] * 2, [x])
    assert max_error(one, other) == 0
    one, other = run_side_by_side(captured.programs["eval"], lambda name: [tensors[name], tensors[name] * 2], [x])
    assert max_error(one, other) > 0.1


def test_tensors_are_looked_up_once_and_let_go() -> None:
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    captured = capture(module, (torch.randn(2, 4),))
    asked: list[str] = []

    def lookup(name: str) -> list[torch.Tensor]:
        asked.append(name)
        return [captured.tensors[name]]

    run_side_by_side(captured.programs["eval"], lookup, [torch.randn(2, 4)])
    assert sorted(asked) == sorted(captured.tensors)
