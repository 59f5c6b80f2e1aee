"""Which blocks can be bypassed, on small networks whose answer is known by construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo_attention as attention
import zoo_conv as conv
import zoo_dense as dense
from torch import Tensor, nn

from sortify import sortify
from sortify.axes.analysis import analyse
from sortify.capture.capture import Captured, capture
from sortify.depth import Chain, find_chains

ROW = (torch.rand(3, 8),)
TOKENS = (torch.arange(18).reshape(3, 6) % 20,)
SEQUENCE = (torch.rand(3, 6, 10),)
IMAGE = (torch.rand(3, 3, 8, 8),)


def found(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Captured, list[Chain], list[str]]:
    captured = capture(module.eval(), inputs)
    chains, notes = find_chains(captured, analyse(captured))
    return captured, chains, notes


class Net(nn.Module):
    """A stem, blocks, a head; `step` says what a block does with its two layers."""

    def __init__(self, step: Callable[..., Tensor], blocks: int = 2, width: int = 16, inner: int = 24) -> None:
        super().__init__()
        self.step = step
        self.stem = nn.Linear(8, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(width), "up": nn.Linear(width, inner), "down": nn.Linear(inner, width)})
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = self.step(x, layer["norm"], layer["up"], layer["down"])
        return self.head(x)


Layer = Callable[[Tensor], Tensor]


def parallel(x: Tensor, norm: Layer, up: Layer, down: Layer) -> Tensor:
    """Two branches of one norm, added together (GPT-J)."""
    y = norm(x)
    return x + down(F.gelu(up(y))) + down(torch.tanh(up(y)))


def after_relu(x: Tensor, norm: Layer, up: Layer, down: Layer) -> Tensor:
    return torch.relu(x + down(up(x)))


def scaled(x: Tensor, norm: Layer, up: Layer, down: Layer) -> Tensor:
    return 0.5 * x + 0.5 * norm(down(up(x)))


def subtracted(x: Tensor, norm: Layer, up: Layer, down: Layer) -> Tensor:
    return x + -down(F.silu(up(norm(x))))


def only_multiplied(x: Tensor, norm: Layer, up: Layer, down: Layer) -> Tensor:
    return x * torch.sigmoid(down(F.relu(up(x))))


def no_shortcut(x: Tensor, norm: Layer, up: Layer, down: Layer) -> Tensor:
    return norm(down(F.relu(up(x))))


def nothing_learned(x: Tensor, norm: Layer, up: Layer, down: Layer) -> Tensor:
    return down(up(norm(x + torch.relu(x))))


def a_norm_only(x: Tensor, norm: Layer, up: Layer, down: Layer) -> Tensor:
    return down(up(x + norm(x)))


def shortcut_through_a_layer(x: Tensor, norm: Layer, up: Layer, down: Layer) -> Tensor:
    return down(up(x)) + norm(down(torch.relu(up(x))))


class SharedPair(nn.Module):
    """Two different residual parts that follow each other three times, with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"one": nn.Linear(8, 8), "up": nn.Linear(8, 16), "down": nn.Linear(16, 8)})
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = x + self.layers["one"](x).relu()
            x = x + self.layers["down"](self.layers["up"](x).relu())
        return self.head(x)


class Leaking(nn.Module):
    """What a block computes inside is used by the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head, self.side = nn.Linear(16, 5), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.relu(self.up(x))
        x = x + self.down(y)
        return self.head(x) + self.side(y)


class Alternating(nn.Module):
    """Blocks of two kinds in turns: one period is one block."""

    def __init__(self, periods: int) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.layers = nn.ModuleList(dense.ResidualBlock(16, inner) for _ in range(periods) for inner in (24, 12))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class OnlyInEval(nn.Module):
    """The shortcut exists in eval mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(torch.relu(self.up(x)))
        return self.head(y if self.training else x + y)


@dataclass(frozen=True)
class Case:
    """A network and its chains: a name and a number of blocks each, in the order of the forward pass."""

    build: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    chains: tuple[tuple[str, int], ...]


CASES = {
    "pre-norm": Case(lambda: dense.ResidualMLP(), ROW, (("blocks", 4),)),
    "pre-norm transformer": Case(lambda: attention.TokenNet(attention.SplitQKV), SEQUENCE, (("blocks", 2),)),
    "post-norm transformer": Case(attention.PostNorm, TOKENS, (("layers", 3),)),
    "residual stages": Case(conv.ResNet, IMAGE, (("stage1", 2), ("stage2", 2))),
    "parallel branches": Case(lambda: Net(parallel), ROW, (("layers", 2),)),
    "relu after the sum": Case(lambda: Net(after_relu), ROW, (("layers", 2),)),
    "scaled shortcut": Case(lambda: Net(scaled), ROW, (("layers", 2),)),
    "negative branch": Case(lambda: Net(subtracted), ROW, (("layers", 2),)),
    "period of two": Case(lambda: Alternating(2), ROW, (("layers", 2),)),
    "a lone block": Case(lambda: Net(subtracted, 1), ROW, (("layers.0", 1),)),
    "decoder": Case(attention.EncoderDecoder, (TOKENS[0], TOKENS[0][:, :4]), (("encoder", 2), ("decoder", 2))),
    "shared block": Case(dense.SharedBlock, ROW, (("block", 3),)),
    "shared block of two parts": Case(SharedPair, ROW, (("layers", 3),)),
    "plain MLP": Case(dense.MLP, ROW, ()),
    "DenseNet": Case(conv.DenseNet, IMAGE, ()),
    "only multiplied": Case(lambda: Net(only_multiplied), ROW, ()),
    "no shortcut": Case(lambda: Net(no_shortcut), ROW, ()),
    "nothing learned inside": Case(lambda: Net(nothing_learned), ROW, ()),
    "a norm is no block": Case(lambda: Net(a_norm_only), ROW, ()),
    "a layer on the shortcut": Case(lambda: Net(shortcut_through_a_layer), ROW, ()),
    "an inside value used outside": Case(Leaking, ROW, ()),
}


@pytest.mark.parametrize("name", CASES)
def test_chains(name: str) -> None:
    case = CASES[name]
    captured, chains, notes = found(case.build(), case.inputs)
    assert [(chain.name, len(chain.blocks)) for chain in chains] == list(case.chains)
    assert notes == []
    for chain in chains:
        _check_order(chain)
        for block in chain.blocks:
            assert set(block.regions) == {"train", "eval"}
            for mode, region in block.regions.items():
                _check_region(captured, mode, region.entry, region.exit, region.nodes)


def _check_region(captured: Captured, mode: str, entry: str, exit: str, nodes: tuple[str, ...]) -> None:
    """Single entry, single exit: nothing strictly inside is used outside, and the entry is before."""
    by_name = {node.name: node for node in captured.programs[mode].graph.nodes}
    inside = {by_name[name] for name in nodes}
    assert nodes[-1] == exit
    assert entry not in nodes
    assert by_name[entry].meta["val"].shape == by_name[exit].meta["val"].shape
    assert all(user in inside for node in inside - {by_name[exit]} for user in node.users)


def _check_order(chain: Chain) -> None:
    """Each block takes what the one before it gives, in both modes."""
    for mode in ("train", "eval"):
        regions = [block.regions[mode] for block in chain.blocks]
        assert [r.exit for r in regions[:-1]] == [r.entry for r in regions[1:]], mode


def test_blocks_are_named_by_their_modules() -> None:
    _, chains, _ = found(Net(after_relu), ROW)
    assert [block.name for block in chains[0].blocks] == ["layers.0", "layers.1"]


def test_a_block_of_one_mode_is_left_alone_and_told() -> None:
    _, chains, notes = found(OnlyInEval(), ROW)
    assert chains == []
    assert len(notes) == 1
    assert notes[0].endswith("the train graph has no such block")


def test_a_bypassed_block_hands_its_input_on() -> None:
    """Running all but the blocks' nodes, with each exit replaced by its entry, is the network without them."""
    net = Net(subtracted)
    captured, (chain,), _ = found(net, ROW)
    graph = captured.programs["eval"].graph
    by_name = {node.name: node for node in graph.nodes}
    for block in reversed(chain.blocks):
        region = block.regions["eval"]
        by_name[region.exit].replace_all_uses_with(by_name[region.entry])
    graph.eliminate_dead_code()
    assert [str(node.target) for node in graph.nodes if node.op == "call_function"] == ["aten.linear.default"] * 2


class OneReads(nn.Module):
    """An encoder block whose output a single decoder block reads: each is a block, neither owns the other."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(8, 12), nn.Linear(8, 12)
        self.encode, self.keys, self.decode = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        memory, y = self.source(x), self.target(x)
        memory = memory + torch.relu(self.encode(memory))
        return self.head(y + self.decode(y * torch.sigmoid(self.keys(memory))))


class Braided(OneReads):
    """The first block reads what the second one adds to, so the second would hold a part of the first."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.source(x), self.target(x)
        a = a + self.decode(torch.relu(self.encode(a) + self.encode(b)))
        return self.head(b + self.keys(torch.tanh(b) * a))


class Folded(nn.Module):
    """torch's attention, which folds heads into the batch: sizes are computed inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(10, 12), nn.Linear(12, 5)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.attention(x, x, x)[0])


@pytest.mark.parametrize(("module", "inputs", "count"), [(OneReads, ROW, 2), (Braided, ROW, 1), (Folded, SEQUENCE, 1)])
def test_blocks_share_no_node_and_can_be_left_out(
    module: type[nn.Module], inputs: tuple[Tensor, ...], count: int
) -> None:
    captured, chains, _ = found(module(), inputs)
    assert len(chains) == count
    for mode in captured.programs:
        regions = [set(block.regions[mode].nodes) for chain in chains for block in chain.blocks]
        assert sum(map(len, regions)) == len(set().union(*regions))
    model = sortify(module(), inputs)
    for subnet in (model.space.full, model.space.smallest):
        with torch.no_grad(), model.using(subnet):
            assert torch.allclose(model.extract(subnet=subnet)(*inputs), model(*inputs), atol=1e-6)
