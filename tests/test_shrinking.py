"""Sub-networks as copies of the original module with smaller layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sortify import NativeError, SortedModel, difference, sortify, to_module
from sortify.native import shrinking


class Block(nn.Module):
    """A depthwise block with a residual path."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.up, self.down = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(self.spatial(x)))))


def images() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Convolutions: depthwise, grouped, transposed; blocks in a list; norms."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16))
    blocks = nn.Sequential(*(Block(16) for _ in range(4)))
    head = [nn.Conv2d(16, 16, 3, groups=4), nn.ConvTranspose2d(16, 8, 2, groups=2), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(stem, blocks, *head, nn.Flatten(), nn.Linear(8, 5)), (torch.rand(2, 3, 12, 12),)


class Attention(nn.Module):
    """Heads by attributes; the number of channels of a picture happens to be the number of heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.picture_channels = heads, width // heads, heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))


class Layer(nn.Module):
    """A transformer block; `kind` makes its attention."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), attention
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.first(x)
        own = isinstance(self.attention, Attention)
        x = x + (self.attention(normed) if own else self.attention(normed, normed, normed, need_weights=False)[0])
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Words(nn.Module):
    """A small language model with tied embeddings."""

    def __init__(self, make: Callable[[], nn.Module], named: bool = False) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 32), nn.Linear(32, 11, bias=False)
        layers = {f"layer_{i}": Layer(32, make()) for i in range(3)}
        self.layers = nn.ModuleDict(layers) if named else nn.ModuleList(layers.values())
        self.norm, self.head.weight = nn.LayerNorm(32), self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers.values() if isinstance(self.layers, nn.ModuleDict) else self.layers:
            x = layer(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def own_attention() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return Words(lambda: Attention(32, 4)), (torch.randint(11, (2, 7)),)


def torch_attention() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return Words(lambda: nn.MultiheadAttention(32, 4, batch_first=True), named=True), (torch.randint(11, (2, 7)),)


def recurrent() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.cell, self.out = nn.Linear(6, 16), nn.LSTM(16, 24, batch_first=True), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.cell(torch.relu(self.read(x)))[0][:, -1])  # type: ignore[no-any-return]

    return Reader(), (torch.rand(2, 5, 6),)


MODELS = {make.__name__: make for make in (images, own_attention, torch_attention, recurrent)}


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[SortedModel, nn.Module, tuple[Tensor, ...]]:
    original, inputs = MODELS[request.param]()
    return sortify(original.eval(), inputs), original, inputs


@pytest.mark.parametrize("fraction", [0.5, 0.75])
def test_a_copy_with_smaller_layers_computes_what_the_sub_network_does(case: Any, fraction: float) -> None:
    model, original, inputs = case
    before = copy.deepcopy(original.state_dict())
    subnet = model.space.subnet(**{g: fraction for g in model.space.groups if g in ("width", "heads", "depth")})
    small = to_module(model, subnet, original)
    assert type(small.module) is type(original)
    with torch.no_grad(), model.using(subnet):
        assert difference(model(*inputs), small.module(*inputs)) <= 1e-5
    assert sum(p.numel() for p in small.module.parameters()) == model.cost(subnet).params
    assert difference(before, original.state_dict()) == 0  # the original is as it was


def test_it_trains_on_and_its_weights_are_read_back(case: Any) -> None:
    model, original, inputs = case
    subnet = model.space.subnet(**{group: 0.5 for group in model.space.groups if group in ("width", "heads")})
    small = to_module(model, subnet, original.train()).module
    assert small.training
    assert set(small.state_dict()) == set(original.state_dict())
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    first = small(*inputs).square().mean()
    first.backward()
    optimizer.step()
    assert small(*inputs).square().mean() < first
    again = to_module(model, subnet, original.eval()).module
    again.load_state_dict(small.state_dict())
    assert difference(again(*inputs), small.eval()(*inputs)) == 0


def test_numbers_follow_and_those_that_only_happen_to_be_as_large_stay() -> None:
    original, inputs = own_attention()
    model = sortify(original.eval(), inputs)
    small = to_module(model, model.space.subnet(heads=0.5, depth=2 / 3), original)
    numbers = {name.rpartition(".")[2]: value for name, value in small.changes.items() if "attention" in name}
    assert numbers == {"heads": 2, "out_features": 48, "in_features": 16}
    assert len(small.module.layers) == 2  # type: ignore[arg-type]
    assert small.module.layers[0].attention.picture_channels == 4  # type: ignore[index,union-attr]
    assert small.module.head.weight is small.module.embedding.weight  # type: ignore[union-attr]


def test_layers_of_torch_tell_their_own_sizes() -> None:
    original, inputs = images()
    model = sortify(original.eval(), inputs)
    small: Any = to_module(model, model.space.subnet(width=0.5), original).module
    block = small[1][0]
    assert (block.spatial.groups, block.spatial.in_channels, block.norm.num_features, block.width) == (8, 8, 8, 8)
    assert (small[2].groups, small[2].in_channels, small[2].out_channels) == (4, 8, 8)
    assert (small[3].in_channels, small[3].out_channels, small[3].weight.shape[0]) == (8, 4, 8)


# -- what is refused


class Stubborn(nn.Module):
    """Sizes as numbers in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(x).view(-1, 4, 8).relu().view(-1, 32))  # type: ignore[no-any-return]


class Loose(nn.Module):
    """Blocks that are in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.out = nn.Conv2d(3, 16, 1), Block(16), Block(16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(self.one(self.stem(x))))  # type: ignore[no-any-return]


def test_sizes_in_the_code_are_refused() -> None:
    original = Stubborn().eval()
    model = sortify(original, (torch.rand(2, 8),))
    smallest = model.space.smallest
    with pytest.raises(NativeError, match=r"does not run: shape .*; its code may hold sizes as numbers"):
        to_module(model, smallest, original)


def test_blocks_in_no_list_are_refused() -> None:
    original = Loose().eval()
    model = sortify(original, (torch.rand(2, 3, 8, 8),))
    with pytest.raises(NativeError, match="two is to be left out, but it is in no list"):
        to_module(model, model.space.subnet(depth=0.5), original)


def test_what_the_layer_cannot_be_is_refused() -> None:
    original, inputs = torch_attention()
    model = sortify(original.eval(), inputs)
    with pytest.raises(NativeError, match="does not run: expected `qkv_weight` first dim to be 3x embed_dim"):
        to_module(model, model.space.subnet(width=0.5), original)  # it ties the size of a head to the width


def test_another_module_is_refused() -> None:
    original, inputs = images()
    model = sortify(original.eval(), inputs)
    with pytest.raises(NativeError, match=r"not the one that was converted: 0\.0\.weight is missing"):
        to_module(model, model.space.smallest, own_attention()[0])
    with pytest.raises(NativeError, match="meta device"):
        to_module(copy.deepcopy(model).to("meta"), model.space.smallest, original)


def test_a_copy_with_other_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original, inputs = recurrent()
    model = sortify(original.eval(), inputs)
    monkeypatch.setattr(shrinking, "furthest", lambda *args: 0.25)
    with pytest.raises(NativeError, match=r"gives outputs that differ by 2.5e-01"):
        to_module(model, model.space.smallest, original)


class Penalised(nn.Module):
    """A number that only training uses, as large as a width but none."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.limit = nn.Linear(8, 16), nn.Linear(16, 4), 16

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.up(x))
        out: Tensor = self.down(hidden)
        return out + hidden.sum(1, keepdim=True) / self.limit if self.training else out


def test_training_decides_too() -> None:
    original = Penalised()
    model = sortify(original, (torch.rand(2, 8),))
    small = to_module(model, model.space.subnet(width=0.5), original)
    module: Any = small.module
    assert module.up.weight.shape == (8, 8)
    assert module.limit == 16
    x = torch.rand(3, 8)
    extracted = model.extract(width=0.5)
    assert difference(extracted.train()(x), module.train()(x)) <= 1e-6
    module.limit = 8
    assert difference(extracted(x), module(x)) > 1e-2
    assert difference(extracted.eval()(x), module.eval()(x)) <= 1e-6
