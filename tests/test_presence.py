"""Which ops a sub-network runs: alternatives of blocks, and what follows from the graph."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sorted_zoo import blueprint_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sortify.costs.presence import ALWAYS, NEVER, Needs, both, either
from sortify.network.extract import extract
from sortify.space.space import Subnet

LAW = settings(derandomize=True, deadline=None, max_examples=200, database=None)
blocks = st.dictionaries(st.integers(0, 2), st.integers(0, 2), max_size=3).map(lambda d: tuple(sorted(d.items())))
alternatives = st.lists(blocks, max_size=3).map(lambda found: either([tuple(found)]))
DEPTHS = list(itertools.product(range(4), repeat=3))


def met(needs: Needs, depths: tuple[int, ...]) -> bool:
    return any(all(depths[chain] > number for chain, number in each) for each in needs)


@LAW
@given(alternatives, alternatives)
def test_either_and_both_mean_what_they_say(a: Needs, b: Needs) -> None:
    for depths in DEPTHS:
        assert met(either([a, b]), depths) == (met(a, depths) or met(b, depths))
        assert met(both(a, b), depths) == (met(a, depths) and met(b, depths))


@LAW
@given(alternatives, alternatives)
def test_equal_needs_are_written_alike(a: Needs, b: Needs) -> None:
    alike = all(met(a, depths) == met(b, depths) for depths in DEPTHS)
    assert (a == b) == alike


def test_the_ends() -> None:
    assert either([]) == NEVER
    assert either([NEVER, ALWAYS, (((0, 1),),)]) == ALWAYS
    assert both(ALWAYS, (((0, 1),),)) == (((0, 1),),)
    assert both(NEVER, ALWAYS) == NEVER


class Cross(nn.Module):
    """A block that adds what it reads from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.other, self.down = (
            nn.LayerNorm(8),
            nn.Linear(8, 12),
            nn.Linear(8, 12),
            nn.Linear(12, 8),
        )

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x)) + self.other(memory)))


class EncoderDecoder(nn.Module):
    """An encoder of three blocks that only the decoder's two blocks read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder_end = nn.Linear(5, 8), nn.Linear(8, 8)
        self.encoder = nn.ModuleList([Cross() for _ in range(3)])
        self.decoder = nn.ModuleList([Cross() for _ in range(2)])
        self.start, self.head = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        memory = self.embed(x)
        for layer in self.encoder:
            memory = layer(memory, x.mean(-1, keepdim=True).expand(-1, 8))
        memory = self.encoder_end(memory)
        found = self.start(y)
        for layer in self.decoder:
            found = layer(found, memory)
        return self.head(found)


def test_what_only_a_bypassed_block_reads_is_not_counted() -> None:
    captured, blueprint = blueprint_of(EncoderDecoder(), (torch.rand(3, 5), torch.rand(3, 5)))
    full = blueprint.space.full
    assert [len(chain.blocks) for chain in blueprint.plan.chains] == [3, 2]
    names = [name for name, _ in full.depths]
    seen: dict[int, set[tuple[int, int]]] = {0: set(), 1: set(), 2: set()}
    for encoder, decoder in itertools.product(range(4), range(3)):
        subnet = Subnet(full.sizes, tuple(zip(names, (encoder, decoder), strict=True)))
        small = extract(blueprint, captured.tensors, subnet).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            small(*captured.examples)
        expected = sum(p.numel() for p in small.parameters()), counter.get_total_flops()
        found = blueprint.costs(subnet.values)
        assert (found.params, found.flops) == expected, subnet
        seen[decoder].add(expected)
    assert [len(found) for found in seen.values()] == [1, 4, 4]  # without a decoder block there is no encoder


@pytest.mark.parametrize("wrong", [NEVER, ALWAYS])
def test_wrong_needs_are_seen(wrong: Needs) -> None:
    assert not all(met(wrong, depths) == met((((0, 1),),), depths) for depths in DEPTHS)
