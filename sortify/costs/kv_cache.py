"""Which tensors a language model would keep of earlier tokens when it writes one token after another: keys and values.

A captured graph computes all positions at once, so what is kept is found in two steps. The graph says what attention
reads of other positions. Running says whether that is all: with every earlier token replaced by another, and only
these tensors given their first values there, the last position must come out as before; and what was kept must not
hang on later tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sortify.capture.capture import Captured
from sortify.capture.interpreter import run_side_by_side
from sortify.capture.lifting import Program
from sortify.difference import difference
from sortify.graph.structure import flatten
from sortify.graph.symbols import hint

aten = torch.ops.aten
COPIES = frozenset(
    {
        aten.expand.default,
        aten.repeat.default,
        aten.repeat_interleave.self_int,
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.transpose.int,
        aten.permute.default,
        aten.clone.default,
        aten.contiguous.default,
    }
)
"""Ops that only rearrange or repeat their first argument: a cache holds what stands before them."""


@dataclass(frozen=True)
class Kept:
    """A tensor of which a cache holds one slice for each token.

    Attributes:
        node: its name in the evaluation graph; dim: the dimension of the tokens.
        batch: the open number of samples.
    """

    node: str
    dim: int
    batch: str


@dataclass(frozen=True)
class _Stream:
    """One open number of tokens: the inputs and outputs, by number, whose dimension 1 it is, and what may be kept."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kept: tuple[Kept, ...]


def kept_for(captured: Captured, examples: Sequence[Tensor], allowed: float) -> tuple[Kept, ...]:
    """What a cache holds; nothing where more than keys and values would be needed, or later tokens change it.

    Args:
        captured: the model; examples: inputs of one call.
        allowed: the largest difference, relative to the outputs' scale.
    """
    program, tensors = captured.programs["eval"], captured.tensors
    if any(tensor.is_meta for tensor in tensors.values()):
        return ()
    streams = [each for each in _streams(program) if each.kept and each.outputs]
    return tuple(kept for each in streams if _enough(program, tensors, examples, each, allowed) for kept in each.kept)


# -- reading the graph ------------------------------------------------------------------------------------------------


def _streams(program: Program) -> Iterator[_Stream]:
    """The numbers of tokens that stay open, with the keys and values of all attention over them."""
    nodes = list(program.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"][2 + len(program.tensors) :]
    flat: Any = nodes[-1].args[0]
    rows = [tuple(_sizes(node)) if _is_tokens(node.meta.get("val")) else ("", "") for node in inputs]
    for batch, symbol in dict.fromkeys(each for each in rows if all(each)):
        own = tuple(number for number, row in enumerate(rows) if row == (batch, symbol))
        per_token = [len(sizes) > 1 and sizes[1] == symbol for sizes in map(_sizes, flat)]
        kept = tuple(Kept(node.name, dim, batch) for node, dim in candidates(nodes, symbol))
        yield _Stream(own, tuple(number for number, is_so in enumerate(per_token) if is_so), kept)


def candidates(nodes: Sequence[fx.Node], symbol: str) -> Iterable[tuple[fx.Node, int]]:
    """What attention reads of other positions, before heads are repeated, and the dimension of the tokens.

    Args:
        nodes: of the captured evaluation graph, as traced; symbol: the open number of tokens.
    """
    found = dict[tuple[fx.Node, int], None]()
    for node in nodes:
        for operand, dim in READS.get(node.target, _nothing)(node):
            if _sizes(operand)[dim] == symbol:
                found |= dict.fromkeys(_smallest(operand, symbol))
    return found


def _is_tokens(value: Any) -> bool:
    """Whether an input is a batch of rows of whole numbers, both of open size."""
    rows = isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point()
    return rows and all(isinstance(size, torch.SymInt) for size in value.shape)


def _sizes(node: Any) -> list[str]:
    """The open sizes of a tensor, '' for those that are fixed."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    shape: Iterable[Any] = value.shape if isinstance(value, Tensor) else ()
    return [str(size) if isinstance(size, torch.SymInt) else "" for size in shape]


def _smallest(node: fx.Node, symbol: str) -> Iterator[tuple[fx.Node, int]]:
    """The smallest tensor that `node` is a copy of, in which tokens are a dimension of their own."""
    best: tuple[int, fx.Node, int] | None = None
    while True:
        places = [place for place, size in enumerate(_sizes(node)) if size == symbol]
        count = math.prod(map(hint, node.meta["val"].shape))
        if len(places) == 1 and (best is None or count < best[0]):
            best = count, node, places[0]
        if node.target not in COPIES or not isinstance(node.args[0], fx.Node):
            break
        node = node.args[0]
    if best is not None:
        yield best[1:]


Reads = Iterator[tuple[fx.Node, int]]


def _nothing(node: fx.Node) -> Reads:
    return iter(())


def _attention(node: fx.Node) -> Reads:
    """Keys and values of `scaled_dot_product_attention(query, key, value)`: (..., tokens, width)."""
    yield from ((operand, -2) for operand in node.args[1:3] if isinstance(operand, fx.Node))


def _product(first: int) -> Callable[[fx.Node], Reads]:
    """Attention in two products, of the operands from number `first` on: query by keys, weights by values."""

    def reads(node: fx.Node) -> Reads:
        left, right = node.args[first : first + 2]
        if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
            return
        rows, inner = ([""] * 2 + _sizes(left))[-2:]
        columns = ([""] * 2 + _sizes(right))[-1]
        if inner and rows == inner:  # weights (..., tokens, tokens) by values (..., tokens, width)
            yield right, -2
        elif columns and rows == columns:  # query (..., tokens, width) by keys (..., width, tokens)
            yield right, -1

    return reads


def _einsum(node: fx.Node) -> Reads:
    """The same, where letters say which dimension is which."""
    operands: Any = node.args[1]
    terms, _, result = str(node.args[0]).replace(" ", "").partition("->")
    left, _, right = terms.partition(",")
    if "." in terms or len(operands) != 2 or not result:
        return
    sizes = {
        **dict(zip(right, _sizes(operands[1]), strict=False)),
        **dict(zip(left, _sizes(operands[0]), strict=False)),
    }
    for letter in right:
        others = [a for a in left if a != letter and sizes[a] and sizes[a] == sizes[letter]]
        if sizes[letter] and others and (letter in left) != (letter in result):
            yield operands[1], right.index(letter)


READS: Mapping[Any, Callable[[fx.Node], Reads]] = {
    aten.scaled_dot_product_attention.default: _attention,
    aten.matmul.default: _product(0),
    aten.bmm.default: _product(0),
    aten.baddbmm.default: _product(1),
    aten.einsum.default: _einsum,
}
"""Op -> the operands, each with its dimension of tokens, that are read at other positions than the result's."""


# -- running it -------------------------------------------------------------------------------------------------------


def _enough(
    program: Program, tensors: Mapping[str, Tensor], inputs: Sequence[Tensor], stream: _Stream, allowed: float
) -> bool:
    """Whether the kept tensors are all that the last position needs of the earlier ones, as running shows it."""
    length = inputs[stream.inputs[0]].shape[1]
    dims = {each.node: each.dim for each in stream.kept}

    def run(
        inputs: Sequence[Tensor], noted: Mapping[str, Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """The outputs at the last position and before it, and what a cache would hold of the earlier tokens."""
        held = dict[str, Tensor]()

        def watch(node: fx.Node, value: Any) -> Any:
            dim = dims.get(node.name)
            if dim is not None:
                if noted is not None:
                    value = torch.cat([noted[node.name], value.narrow(dim, length - 1, 1)], dim)
                held[node.name] = value.narrow(dim, 0, length - 1).clone()
            return value

        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            (whole,) = run_side_by_side(program, lambda name: [tensors[name]], inputs, watch)
        leaves = flatten(whole)[0]
        outputs = [leaves[number] for number in stream.outputs]
        return [t[:, -1] for t in outputs], [t[:, :-1] for t in outputs], held

    if length < 2:
        return False
    try:
        last, earlier, held = run(inputs)
        changed = _changed(inputs, stream.inputs, slice(0, -1))
        matters = difference(last, run(changed)[0])
        replayed = difference(last, run(changed, held)[0])
        _, still_earlier, still_held = run(_changed(inputs, stream.inputs, slice(-1, None)))
    except (RuntimeError, IndexError):  # a model that takes only some tokens, as one end in each sample
        return False
    return matters > allowed >= max(replayed, difference(earlier, still_earlier), difference(held, still_held))


def _changed(inputs: Sequence[Tensor], which: Sequence[int], place: slice) -> list[Tensor]:
    """The inputs with other tokens at some positions, drawn from those that stand anywhere in them."""
    generator, found = torch.Generator().manual_seed(0), list(inputs)
    for number in which:
        tokens = inputs[number].clone()
        drawn = torch.randint(tokens.numel(), tokens.shape, generator=generator).to(tokens.device)
        tokens[:, place] = tokens.flatten()[drawn][:, place]
        found[number] = tokens
    return found
