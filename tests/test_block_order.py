"""Ranked blocks: the full network stays, small depths keep the most important blocks, and every cost stays exact."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import assert_close_outputs, max_error
from parts_models import Router
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sortify import SortedModel, load, sortify
from sortify.errors import DataError
from sortify.models.scores import Scores, fingerprint
from sortify.ordering.block_order import AS_IT_RUNS, FIRST_STAYS, in_order
from sortify.ordering.importance import MEASURES, measure

PLANTED = [0.3, 3.0, 0.1, 1.0]
"""How strong each block is."""
ORDER = [1, 3, 0, 2]


class Body(nn.Module):
    """A residual block; what `shared` gives is added inside."""

    def __init__(self, width: int, strength: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(strength)

    def forward(self, x: Tensor, shared: Tensor | None) -> Tensor:
        y = torch.tanh(self.fc1(x))
        return x + self.fc2(y if shared is None else y * shared)


class Stack(nn.Module):
    """`[B, 6]` to `[B, 3]` through four blocks; `reads` says which of two projections of the input each block reads."""

    def __init__(self, reads: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        longer = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 16))
        self.projections = nn.ModuleList([nn.Linear(6, 16), longer][: len(set(reads))])
        self.blocks = nn.ModuleList(Body(8, strength) for strength in PLANTED)
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        projected = [torch.sigmoid(project(x)) for project in self.projections]
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = block(x, projected[self.reads[number]] if self.reads else None)
        return self.head(x)


@functools.cache
def converted(reads: tuple[int, ...] = ()) -> SortedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sortify(Stack(reads).eval(), (torch.randn(4, 6),)).eval()


def fresh(reads: tuple[int, ...] = ()) -> SortedModel:
    return copy.deepcopy(converted(reads))


def data() -> list[Any]:
    torch.manual_seed(3)
    return [(torch.randn(16, 6), torch.arange(16) % 3)]


def places(model: SortedModel) -> list[int]:
    (chain,) = model.chains.values()
    return [int(block.name.rpartition(".")[2]) for block in chain.blocks]


def assert_costs_are_exact(model: SortedModel) -> None:
    """Parameters and FLOPs of every depth are those of the extracted model, and in place it computes the same."""
    args, kwargs = model.examples
    for depth in range(5):
        subnet = model.space.subnet(width=0.5, depth=depth / 4 or 0.05)
        assert subnet.depths[0][1] == depth
        small = model.extract(subnet=subnet)
        with torch.no_grad(), model.using(subnet), FlopCounterMode(display=False) as counter:
            found = small(*args, **kwargs)
        with torch.no_grad(), model.using(subnet):
            assert_close_outputs(model(*args, **kwargs), found, 1e-5)
        cost = model.cost(subnet)
        assert (sum(p.numel() for p in small.parameters()), counter.get_total_flops()) == (cost.params, cost.flops)
        assert model.costs([subnet])[0] == cost


@pytest.mark.parametrize("by", MEASURES)
def test_planted_blocks_are_ranked_and_the_function_stays(by: str) -> None:
    model = fresh()
    x = torch.randn(5, 6)
    with torch.no_grad():
        expected = model(x)
        with model.using(depth=0.25):
            first = model(x)
    done = model.order(by, data(), blocks=True)
    (scores,) = measure(model, by, data()).blocks.values()
    assert bool((scores[:-1] >= scores[1:]).all())
    assert places(model) == ORDER
    assert done.blocks == {"blocks": tuple(f"blocks.{place}" for place in ORDER)}
    assert done.left_blocks == {}
    with torch.no_grad():
        assert_close_outputs(model(x), expected, 1e-5)
        with model.using(depth=0.25):
            assert max_error(model(x), first) > 1e-3
            only = Stack().eval()
            only.load_state_dict(model.state_dict())
            assert_close_outputs(model(x), only.head(only.blocks[1](only.stem(x), None)), 1e-5)
    assert_costs_are_exact(model)
    assert model.verify().passed


def test_blocks_stay_as_they_are_unless_asked_for() -> None:
    model = fresh()
    done = model.order()
    assert places(model) == [0, 1, 2, 3]
    assert done.blocks == {}
    assert not model.blocks_ranked
    assert model.ordered == "magnitude"


def test_what_all_blocks_read_keeps_the_first_block_first() -> None:
    model = fresh((0, 0, 0, 0))
    done = model.order(blocks=True)
    assert places(model) == [0, 1, 3, 2]
    assert done.left_blocks == {"blocks": FIRST_STAYS}
    assert_costs_are_exact(model)


@pytest.mark.parametrize("reads", [(), (0, 0, 0, 0), (0, 1, 0, 1), (0, 1, 1, 0), (0, 0, 1, 1)])
@pytest.mark.parametrize("wanted", [(1, 3, 0, 2), (3, 2, 1, 0), (0, 3, 1, 2), (2, 0, 1, 3)])
def test_costs_are_exact_in_every_order_that_is_taken(reads: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    model = fresh(reads)
    (chain,) = model.chains.values()
    assert len(chain.blocks) == 4
    blueprint, left = in_order(model.blueprint, {chain.name: wanted})
    model = SortedModel(blueprint, model.tensors, model.example_tensors).eval()
    pinned = [0, *(place for place in wanted if place)]
    expected = {None: list(wanted), FIRST_STAYS: pinned, AS_IT_RUNS: [0, 1, 2, 3]}
    assert places(model) == expected[left.get(chain.name)]
    assert reads or not left
    assert_costs_are_exact(model)


def test_a_wrong_order_shows_in_the_costs() -> None:
    """Blocks in another order with the costs of before: what the law above is there to catch."""
    model = fresh((0, 1, 0, 1))
    (chain,) = model.plan.chains
    turned = replace(chain, blocks=tuple(chain.blocks[place] for place in (1, 0, 2, 3)))
    wrong = replace(model.blueprint, plan=replace(model.plan, chains=(turned,)))
    with pytest.raises(AssertionError):
        assert_costs_are_exact(SortedModel(wrong, model.tensors, model.example_tensors).eval())
    with pytest.raises(ValueError, match="is no order of 4 blocks"):
        in_order(model.blueprint, {"blocks": [0, 1, 1, 2]})


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = fresh()
    model.order(blocks=True)
    model.save(tmp_path / "sorted")
    again = load(tmp_path / "sorted")
    assert places(again) == ORDER
    assert again.blocks_ranked
    assert again.ordered == "magnitude"
    assert_costs_are_exact(again)
    assert again.order(blocks=True).blocks == {"blocks": tuple(f"blocks.{place}" for place in ORDER)}


def test_what_was_evaluated_before_does_not_count_any_more() -> None:
    model = fresh()
    model.order()
    before = fingerprint(model)
    members = model.space.members()
    model.record_scores(Scores("accuracy", before, {subnet: float(n) for n, subnet in enumerate(members)}))
    assert "measured" in model.choose(1.0).rule
    model.order(blocks=True)
    assert fingerprint(model) != before
    assert "measured" not in model.choose(1.0).rule


def test_blocks_of_a_model_in_parts_are_refused() -> None:
    torch.manual_seed(0)
    model = sortify(Router().eval(), (torch.randn(12, 8),)).eval()
    with pytest.raises(DataError, match="blocks of a model in parts cannot be ranked"):
        model.order(blocks=True)
