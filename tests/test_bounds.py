"""Open sizes: what the tracer took for granted about them is tried, and calls that the graphs do not serve refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compare import assert_close_outputs
from torch import Tensor, nn

from sortify import SortedModel, load, sortify
from sortify.errors import CheckpointError, InputError
from sortify.graph.signature import Signature


class InChunks(nn.Module):
    """A loop over chunks of a sequence: a graph holds as many steps as the example has chunks."""

    def __init__(self, chunk: int = 4) -> None:
        super().__init__()
        self.rise, self.out, self.chunk = nn.Linear(6, 8), nn.Linear(8, 3), chunk

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.rise(x).relu()
        found = torch.zeros_like(hidden)
        for step in range((x.shape[1] + self.chunk - 1) // self.chunk):
            piece = slice(step * self.chunk, (step + 1) * self.chunk)
            found[:, piece] = hidden[:, piece] + hidden[:, piece].mean(1, keepdim=True)
        out: Tensor = self.out(found)
        return out


class TwoWays(nn.Module):
    """Short sequences go another way."""

    def __init__(self) -> None:
        super().__init__()
        self.rise, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.rise(x)
        out: Tensor = self.out(hidden.relu() if x.shape[1] > 5 else hidden.tanh())
        return out


class EvenOnly(nn.Module):
    """Pairs of steps are put together; an odd length is an error of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.rise, self.out = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.rise(x.reshape(x.shape[0], x.shape[1] // 2, 12)).relu())
        return out


def sequences(length: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, 6, generator=torch.Generator().manual_seed(1))


def converted(original: nn.Module, length: int = 8) -> SortedModel:
    return sortify(original, (sequences(length),), dynamic={"x": (1,)}).eval()


def reasons(model: SortedModel) -> list[str]:
    return [frozen.why for frozen in model.frozen if frozen.why.startswith("sizes of the inputs")]


@pytest.mark.parametrize(
    ("original", "served", "refused"),
    [(InChunks(), (5, 7, 8), (4, 9, 30)), (TwoWays(), (6, 9, 40), (1, 5)), (EvenOnly(), (2, 6, 20), (3, 7))],
    ids=["steps of a loop", "two ways", "even lengths"],
)
def test_what_the_graph_does_not_serve_is_refused(
    original: nn.Module, served: tuple[int, ...], refused: tuple[int, ...], tmp_path: Path
) -> None:
    original.eval()
    model = converted(original)
    model.save(tmp_path / "saved")
    for one in (model, load(tmp_path / "saved"), model.extract(subnet=model.space.full).eval()):
        for length in served:
            assert_close_outputs(one(sequences(length)), original(sequences(length)), 1e-6)
            assert_close_outputs(one(sequences(length, 1)), original(sequences(length, 1)), 1e-6)
        for length in refused:
            with pytest.raises(InputError, match=r"sizes of the inputs \(x \[2, .*graphs hold where .*x\.shape\[1\]"):
                one(sequences(length))
    assert reasons(model)


def test_conditions_that_break_nothing_are_let_go() -> None:
    """A batch of one, and one step, go through the same code."""
    original = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    model = sortify(original, (sequences(8),), dynamic={"input": (1,)}).eval()
    assert model.signature.limits == ()
    assert not reasons(model)
    for shape in ((1, 8), (1, 1), (5, 1), (7, 13)):
        assert_close_outputs(model(sequences(shape[1], shape[0])), original(sequences(shape[1], shape[0])), 1e-6)


def test_a_saved_limit_is_read_and_never_run() -> None:
    data = converted(TwoWays()).signature.to_json()
    assert Signature.from_json(data).limits == tuple(data["limits"])
    for wrong in ("__import__('os').getcwd()", "s0_1.real > 2", "s9_1 > 2", 7):
        with pytest.raises(CheckpointError, match="a limit on sizes is not understood"):
            Signature.from_json({**data, "limits": [wrong]})


def test_a_part_that_does_not_serve_all_of_its_calls_is_not_taken() -> None:
    """The whole cannot be captured; its part is called with a short and with a long sequence."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.other = TwoWays(), nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            short = x[:, :3] if float(x.sum()) > -1e9 else x
            return torch.cat([self.other(self.part(short)), self.other(self.part(x))], 1)

    original = Twice().eval()
    model = sortify(original, (sequences(8),)).eval()
    assert set(model.parts) == {"other"}  # type: ignore[attr-defined]
    assert_close_outputs(model(sequences(8)), original(sequences(8)), 1e-6)
