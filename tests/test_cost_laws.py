"""Laws of spaces and costs on captured models: nesting, growth, exact counts, and that every member runs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sorted_zoo import found
from torch import nn

from examples.check_costs import CASES, differences
from sortify import SortedModel, sortify
from sortify.network.extract import extract
from sortify.space.space import Space, Subnet

LAW = settings(derandomize=True, deadline=None, max_examples=60, database=None)
MODELS = ["residual_mlp", "swiglu", "qkv_per_head", "grouped_query_expand", "resnext", "densenet", "group_norm"]
METRICS = ("params", "flops", "activation_bytes")


def anywhere(space: Space) -> st.SearchStrategy[Subnet]:
    """Sub-networks with every axis and chain at a size of its own."""
    full = space.full
    sizes = [st.integers(1, size) for _, size in full.sizes] + [st.integers(0, depth) for _, depth in full.depths]

    def made(values: tuple[int, ...]) -> Subnet:
        named = [name for name, _ in (*full.sizes, *full.depths)]
        pairs, axes = list(zip(named, values, strict=True)), len(full.sizes)
        return Subnet(tuple(pairs[:axes]), tuple(pairs[axes:]))

    return st.tuples(*sizes).map(made)


def larger(a: Subnet, b: Subnet) -> Subnet:
    """The smallest sub-network that contains both."""
    both = [
        tuple((n, max(x, y)) for (n, x), (_, y) in zip(p, q, strict=True))
        for p, q in ((a.sizes, b.sizes), (a.depths, b.depths))
    ]
    return Subnet(both[0], both[1])


@pytest.mark.parametrize("name", MODELS)
def test_costs_grow_along_nesting(name: str) -> None:
    space = found(name)[1].space

    @LAW
    @given(anywhere(space), anywhere(space))
    def law(a: Subnet, b: Subnet) -> None:
        whole = larger(a, b)
        assert whole in space
        assert whole.contains(a)
        assert a.contains(b) == (larger(a, b) == a)
        ours, theirs = space.cost(whole), space.cost(a)
        assert all(getattr(ours, metric) >= getattr(theirs, metric) for metric in METRICS)
        assert list(space.costs([a, b, whole])) == [space.cost(each) for each in (a, b, whole)]

    law()


@pytest.mark.parametrize("name", MODELS)
def test_a_chain_is_nested_and_about_even(name: str) -> None:
    space = found(name)[1].space
    chain = space.chain(6)
    assert all(large.contains(small) and large != small for small, large in pairwise(chain))
    assert (chain[0], chain[-1]) == (space.smallest, space.full)
    costs = [space.cost(each).flops for each in chain]
    steps = [b - a for a, b in pairwise(costs)]
    assert min(steps) > 0
    assert len(chain) < 6 or max(steps) <= 0.45 * (costs[-1] - costs[0])


@pytest.mark.parametrize("name", ["residual_mlp", "grouped_query_expand", "densenet", "group_norm"])
def test_every_member_runs(name: str) -> None:
    captured, blueprint = found(name)
    args, kwargs = blueprint.signature.call(captured.examples)
    members = blueprint.space.members()
    assert members
    runner = blueprint.sorted_runners["eval"]
    inputs = list(captured.examples)
    for member in members:
        with torch.no_grad():
            expected = extract(blueprint, captured.tensors, member).eval()(*args, **kwargs)
            found_here = runner((member.values,), captured.tensors, inputs)
        torch.testing.assert_close(found_here, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["torchvision/VisionTransformer", "transformers/llama", "transformers/t5"])
def test_costs_of_library_models_are_what_is_counted(name: str) -> None:
    """A small part of examples/check_costs.py."""
    torch.manual_seed(0)
    model = sortify(CASES[name].build().eval(), CASES[name].inputs())
    assert differences(model, 4) == []


def test_a_wrong_cost_is_seen() -> None:
    model = sortify(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.rand(2, 4),))
    assert differences(model, 2) == []

    class Wrong(SortedModel):
        def cost(self, subnet: Subnet | None = None, **sizes: int) -> object:  # type: ignore[override]
            return super().cost(self.space.full, **sizes)

    wrong = Wrong(model.blueprint, model.tensors, model.example_tensors)
    assert len(differences(wrong, 2)) > 0
