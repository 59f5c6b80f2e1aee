"""Lifting: what the plain graph says where the exported one leaves it open, and loops written out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from compare import assert_close_outputs
from torch import Tensor, nn
from torch._dynamo._trace_wrapped_higher_order_op import ModIndex
from torch._higher_order_ops import map as each
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

from sortify import load, sortify
from sortify.capture import lifting, places
from sortify.capture.capture import capture
from sortify.errors import CaptureError


def example() -> Tensor:
    return torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(2))


class Between(nn.Module):
    """A layer, what a subclass does with it, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Squeezes(Between):
    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x[:, :1])).squeeze()


class Scans(Between):
    def middle(self, x: Tensor) -> Tensor:
        def step(state: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            state = torch.tanh(self.inner(state) + row)
            return state, state * 2

        last, rows = scan(step, x.new_zeros(len(x), 12), x.transpose(0, 1))
        return rows.transpose(0, 1) + last[:, None]


class Maps(Between):
    def middle(self, x: Tensor) -> Tensor:
        return each(lambda row: torch.relu(self.inner(row)), x.transpose(0, 1)).transpose(0, 1)


class MapsOverSamples(Between):
    def middle(self, x: Tensor) -> Tensor:
        return each(self.inner, x)


class Chooses(Between):
    def middle(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: self.inner(y), lambda y: y * 2, (x,))


class ChoosesBySize(Between):
    def middle(self, x: Tensor) -> Tensor:
        return torch.cond(x.shape[0] > 4, lambda y: self.inner(y), lambda y: y * 2, (x,))


class Repeats(Between):
    def middle(self, x: Tensor) -> Tensor:
        return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 0.5), (torch.tensor(0), x))[1]


class Splits(Between):
    def middle(self, x: Tensor) -> Tensor:
        a, b = torch.unsafe_chunk(x, 2, -1)
        c, d, e = x.tensor_split([3, 7], -1)
        f, g = x.transpose(1, 2).hsplit(2)
        return torch.cat([b * a, d + c.sum(-1, keepdim=True), e[..., :2]], -1) * torch.cat([g, f], 1).transpose(1, 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [Squeezes, Scans, Maps, Chooses, Splits])
def test_sub_networks_run_and_survive_saving(kind: type[Between], tmp_path: Path) -> None:
    torch.manual_seed(1)
    original, x = kind().eval(), example()
    model = sortify(original, (x,))
    assert any(axis.size > 1 for axis in model.axes.values())
    assert_close_outputs(model(x), original(x), 1e-5)
    smallest = model.space.smallest
    model.activate(smallest)
    found = model(x)
    assert found.isfinite().all()
    assert_close_outputs(model.extract(subnet=smallest).eval()(x), found, 1e-5)
    model.save(tmp_path)
    again = load(tmp_path).eval()
    again.activate(smallest)
    assert_close_outputs(again(x), found, 1e-6)


@pytest.mark.filterwarnings("ignore")
def test_either_branch_of_a_choice_is_taken_and_told() -> None:
    torch.manual_seed(1)
    original, x = Chooses().eval(), example()
    model = sortify(original, (x,))
    signs = {bool(original.first(sign * x).sum() > 0) for sign in (1, -1)}
    assert signs == {True, False}
    for sign in (1, -1):
        assert_close_outputs(model(sign * x), original(sign * x), 1e-5)
    (note,) = (frozen for frozen in model.frozen if "runs both branches" in frozen.why)
    assert "test_lifting.py" in note.why


def test_a_squeeze_names_its_dimensions() -> None:
    """An axis that a sub-network cuts to one stays a dimension; only what had size 1 at capture goes."""
    graph = capture(Squeezes(), (example(),)).programs["eval"].graph
    (node,) = (n for n in graph.nodes if "squeeze" in str(n.target))
    assert node.target is torch.ops.aten.squeeze.dims
    assert list(node.args[1]) == [1]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (ChoosesBySize, r"torch.cond at .*test_lifting.py:\d+ is decided by an open size"),
        (Repeats, r"decides while it runs what to compute \(while_loop, at .*test_lifting.py:\d+\)"),
        (MapsOverSamples, r"loops over s\d+ steps \(map_impl, at .*test_lifting.py:\d+\)"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_control_flow_is_refused_in_one_line(kind: type[Between], says: str) -> None:
    with pytest.raises(CaptureError, match=says) as refusal:
        capture(kind(), (example(),))
    assert "\n" not in str(refusal.value)


class Looked(nn.Module):
    """Reads rows by an autograd function that torch keeps as a call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        out: Tensor = self.last(ModIndex.apply(hidden, [torch.zeros_like(x[:, 0], dtype=torch.long)]))
        return out


def test_an_autograd_function_of_torch_is_the_op_that_it_computes() -> None:
    x = torch.randn(4, 8)
    original = Looked().eval()
    model = sortify(original, (x,)).eval()
    assert len(model.plan.axes) == 1
    torch.testing.assert_close(model(x), original(x))


def test_other_autograd_functions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifting, "FUNCTIONS", {})
    with pytest.raises(CaptureError, match=r"the autograd function .*ModIndex at .*test_lifting.py:\d+") as refusal:
        capture(Looked(), (torch.randn(4, 8),))
    assert "\n" not in str(refusal.value)


def test_a_source_line_names_no_folder_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "lib"), str(tmp_path / "lib" / "site")])
    monkeypatch.chdir(tmp_path)
    found = {
        place: places.seen_from_here(str(tmp_path.parent / place)) for place in ("a/b.py", f"{tmp_path.name}/c.py")
    }
    assert found == {"a/b.py": "b.py", f"{tmp_path.name}/c.py": "c.py"}
    assert places.seen_from_here(str(tmp_path / "lib" / "site" / "package" / "model.py")) == "package/model.py"
    assert places.seen_from_here(str(tmp_path / "lib" / "module.py")) == "module.py"


def test_what_is_saved_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    sortify(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), (torch.rand(2, 8),)).save(tmp_path / "sorted")
    told = [(tmp_path / "sorted" / name).read_text() for name in ("graph.json", "sortify.json")]
    folders = [place for place in sys.path if place] + [str(tmp_path)]
    assert not [place for place in folders for text in told if place in text]
