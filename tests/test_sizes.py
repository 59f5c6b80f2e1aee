"""Sizes as the tracer writes them: the same number as a count times symbols, and chunks of padded sequences split."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable

import pytest
import sympy
import torch
import torch.nn.functional as F
from compare import assert_close_outputs
from torch import Tensor, nn
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from sortify import sortify
from sortify.axes.algebra import Size
from sortify.axes.sizes import size_of_expression
from sortify.errors import InputError
from sortify.graph.arithmetic import value_of

S, T = (sympy.Symbol(name, positive=True, integer=True) for name in "st")
PADDED = S + Mod(8 - Mod(S, 8), 8)
CASES = {
    "a number": sympy.Integer(6),
    "a product": 6 * S * T**2,
    "a sum": S + T,
    "padded to a multiple": PADDED,
    "padded, by the rule of Python": S + PythonMod(-S, 8),
    "padded, a sum": S + T + Mod(8 - Mod(S + T, 8), 8),
    "cut to a multiple": S - Mod(S, 8),
    "padded by a chunk more on both sides": PADDED + 16,
    "cut to a multiple, and more": S - Mod(S, 8) + 16,
    "cut to a multiple, and a little more": S - Mod(S, 8) + 3,
    "a sum with a factor in common": 6 * S + 9 * T + 3,
    "chunks": FloorDiv(PADDED, 8),
    "a chunk": FloorDiv(PADDED, FloorDiv(PADDED, 8)),
    "chunks times a chunk": FloorDiv(PADDED, 8) * FloorDiv(PADDED, FloorDiv(PADDED, 8)),
    "another remainder": S + Mod(S, 8),
    "another multiple": S + Mod(8 - Mod(S, 4), 8),
    "halves of both": FloorDiv(S, 2) * FloorDiv(T, 2),
}


def number(size: Size, values: dict[str, int]) -> int:
    return size.count * math.prod(value_of(symbol, values) for symbol in size.symbols)


@pytest.mark.parametrize("expression", CASES.values(), ids=list(CASES))
def test_a_size_is_the_number_that_the_tracer_meant(expression: sympy.Expr) -> None:
    for s, t in ((1, 5), (7, 2), (8, 8), (9, 3), (16, 1), (37, 11)):
        assert number(size_of_expression(expression), {"s": s, "t": t}) == expression.subs({S: s, T: t})


@pytest.mark.parametrize("name", ["padded to a multiple", "padded, by the rule of Python", "chunks times a chunk"])
def test_padded_sizes_are_multiples(name: str) -> None:
    assert size_of_expression(CASES[name]) == Size(8, ("((s + 7)//8)",))


def test_what_is_common_to_a_sum_is_its_count() -> None:
    assert size_of_expression(CASES["cut to a multiple, and more"]) == Size(8, ("((s//8)) + 2",))
    assert size_of_expression(CASES["padded by a chunk more on both sides"]).count == 8
    assert size_of_expression(CASES["a sum with a factor in common"]).count == 3


def test_a_chunk_has_the_size_of_a_chunk() -> None:
    assert size_of_expression(CASES["a chunk"]) == Size(8)
    for text in size_of_expression(CASES["chunks"]).symbols:
        ast.parse(text)


class Chunked(nn.Module):
    """A sequence is padded to whole chunks, summed up within them, and cut to its length again."""

    def __init__(self, padding: Callable[[int], int]) -> None:
        super().__init__()
        self.rise, self.out, self.padding = nn.Linear(6, 32), nn.Linear(32, 3), padding

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        hidden = F.pad(self.rise(x), (0, 0, 0, self.padding(length)))
        chunks = hidden.reshape(x.shape[0], -1, 4, 32).relu().cumsum(2)
        joined = chunks.reshape(x.shape[0], -1, 32)[:, :length]
        out: Tensor = self.out(joined)
        return out


@pytest.mark.parametrize("padding", [lambda n: (4 - n % 4) % 4, lambda n: -n % 4])
def test_what_stands_beside_padded_chunks_is_elastic(padding: Callable[[int], int]) -> None:
    original = Chunked(padding).eval()
    model = sortify(original, (torch.randn(2, 10, 6),), dynamic={"x": (1,)}).eval()
    assert [axis.size for axis in model.axes.values()] == [32]
    for length in (3, 4, 9):
        x = torch.randn(3, length, 6)
        assert_close_outputs(model(x), original(x), 1e-6)
        half = model.space.subnet(width=0.5)
        with model.using(half):
            assert_close_outputs(model(x), model.extract(subnet=half).eval()(x), 1e-6)


class ChunkByChunk(nn.Module):
    """As linear attention is written: a state goes from chunk to chunk of the padded sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rise, self.out = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        hidden = F.pad(self.rise(x), (0, 0, 0, -length % 4))
        chunks = hidden.reshape(x.shape[0], -1, 4, 32)
        inside = chunks.relu() @ chunks.relu().transpose(-1, -2)
        state, found = chunks.new_zeros(x.shape[0], 1, 32), []
        for number in range(chunks.shape[1]):
            found.append(inside[:, number] @ chunks[:, number] + state)
            state = state + chunks[:, number].sum(1, keepdim=True)
        out: Tensor = self.out(torch.stack(found, 1).reshape(x.shape[0], -1, 32)[:, :length])
        return out


@pytest.mark.parametrize("example", [3, 7])
def test_sizes_that_the_tracer_took_for_numbers_are_numbers(example: int) -> None:
    """One chunk, or two: the graph holds as many steps, the width beside them is elastic."""
    original = ChunkByChunk().eval()
    model = sortify(original, (torch.randn(2, example, 6),), dynamic={"x": (1,)}).eval()
    assert [axis.size for axis in model.axes.values()] == [32]
    longest = 4 * math.ceil(example / 4)
    for length in (longest - 2, longest):
        x = torch.randn(2, length, 6)
        assert_close_outputs(model(x), original(x), 1e-6)
    with pytest.raises(InputError, match="graphs hold where"):
        model(torch.randn(2, longest + 1, 6))
