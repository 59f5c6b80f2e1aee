"""What the ops that contract cost: sums of products of dimension sizes, two FLOPs per multiply-add.

Counted as `torch.utils.flop_counter.FlopCounterMode` counts them. Ops that it knows only on some devices or not at
all (recurrent layers, grouped products) cost what the matrix products inside them cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from sortify.axes import algebra
from sortify.axes.algebra import UNIT, Expr, resolve
from sortify.axes.rules import CONTRACTIONS, RULES
from sortify.axes.rules.contraction import convolution, transposed_convolution
from sortify.axes.rules.products import FOREIGN
from sortify.axes.rules.recurrent import cell, layers_of, packed, recurrent
from sortify.axes.rules.table import Dims

Known = Mapping[fx.Node, Any]
Factors = list[tuple[Expr, ...]]


def flops_of(node: fx.Node, known: Known) -> Factors:
    """The products to add up for one node; each counts twice. None for an op that does not contract."""
    name = str(node.target)
    return FLOPS.get(name, _not_counted)(node, known) if name in CONTRACTIONS else []


def _of(known: Known, node: Any) -> Dims:
    found = known.get(node) if isinstance(node, fx.Node) else None
    found = found[0] if isinstance(found, list) else found
    return tuple(resolve(d) for d in found) if isinstance(found, tuple) else ()


def _with_inner(first: int) -> Callable[[fx.Node, Known], Factors]:
    """Output size times the last dimension of the operand at index `first`."""
    return lambda node, known: [(*_of(known, node), _of(known, node.args[first])[-1])]


def _convolution(node: fx.Node, known: Known) -> Factors:
    transposed = len(node.args) > 6 and node.args[6] is True
    return _transposed(node, known) if transposed else [(*_of(known, node), *_of(known, node.args[1])[1:])]


def _transposed(node: fx.Node, known: Known) -> Factors:
    return [(*_of(known, node.args[0]), *_of(known, node.args[1])[1:])]


def _attention(node: fx.Node, known: Known) -> Factors:
    query, key, value = (_of(known, node.args[i]) for i in range(3))
    return [(*query, key[-2]), (*query[:-1], key[-2], value[-1])]


def _matrices(node: fx.Node, known: Known) -> Factors:
    """Products with a vector are not counted, as FlopCounterMode does not count them."""
    matrices = all(len(_of(known, operand)) > 1 for operand in node.args[:2])
    return _with_inner(0)(node, known) if matrices else []


def _tensordot(node: fx.Node, known: Known) -> Factors:
    left = _of(known, node.args[0])
    return [(*_of(known, node), *(left[d] for d in node.args[2]))]  # type: ignore[union-attr, index]


def _not_counted(node: fx.Node, known: Known) -> Factors:
    return []


# -- einsum: pair by pair, in the order in which torch takes the operands ---------------------------------------------

Letters = dict[str, Expr]


def _einsum(node: fx.Node, known: Known) -> Factors:
    """A letter that one operand alone has left is summed before the product; products that sum nothing are free."""
    left, _, _ = str(node.args[0]).replace(" ", "").partition("->")
    nodes: Any = node.args[1]
    operands = [_letters(t, _of(known, operand)) for t, operand in zip(left.split(","), nodes, strict=True)]
    kept = _kept_letters(str(node.args[0]).replace(" ", ""), operands)
    path = list(node.kwargs.get("path") or (node.args[2] if len(node.args) > 2 else None) or ())  # type: ignore[arg-type]
    factors: Factors = []
    while len(operands) > 1:
        i, j = sorted((path.pop(0), path.pop(0))) if path else (0, 1)
        b, a = operands.pop(j), operands.pop(i)
        elsewhere = kept.union(*operands)
        a = {x: dim for x, dim in a.items() if x in b or x in elsewhere}
        b = {x: dim for x, dim in b.items() if x in a or x in elsewhere}
        both = a | b
        rest = {x: dim for x, dim in both.items() if x in elsewhere}
        if len(rest) < len(both):
            factors.append(tuple(both.values()))
        operands.insert(len(operands) if node.kwargs.get("path") else 0, rest)
    return factors


def _letters(term: str, dims: Dims) -> Letters:
    """The dimensions of one operand by letter; those of `...` are numbered from the right; size 1 is left out."""
    before, dots, after = term.partition("...")
    spread = len(dims) - len(before) - len(after)
    names = [*before, *(f".{spread - i}" for i in range(spread if dots else 0)), *after]
    return {name: dim for name, dim in zip(names, dims, strict=True) if algebra.resolve(dim) is not UNIT}


def _kept_letters(equation: str, operands: list[Letters]) -> set[str]:
    """The letters of the output; without `->` those that stand once, and what `...` stands for."""
    left, arrow, right = equation.partition("->")
    found = {x for x in right if x != "."} if arrow else {x for x in left if left.count(x) == 1}
    spread = {x for letters in operands for x in letters if x.startswith(".")}
    return found | spread if "..." in right or not arrow else found


# -- recurrent layers -------------------------------------------------------------------------------------------------


def _recurrent(node: fx.Node, known: Known) -> Factors:
    """At every step each layer multiplies its input and its state with all gates, and projects where it does."""
    args: Any = node.args
    rest = args[3:] if RULES[str(node.target)] is packed else args[2:]  # after the states
    params, has_biases, layers, _, _, bidirectional = rest[:6]
    steps = _of(known, args[0])[:-1]
    factors: Factors = []
    for weights in layers_of(list(params), has_biases, layers, 2 if bidirectional else 1):
        for weight in (weights.inputs, weights.hidden, weights.projection):
            factors += [(*steps, *_of(known, weight))] if weight is not None else []
    return factors


def _cell(node: fx.Node, known: Known) -> Factors:
    rows = _of(known, node.args[0])[:-1]
    return [(*rows, *_of(known, weight)) for weight in node.args[2:4]]


FLOPS: dict[str, Callable[[fx.Node, Known], Factors]] = {
    "aten.linear.default": _with_inner(0),
    "aten.addmm.default": _with_inner(1),
    "aten.baddbmm.default": _with_inner(1),
    **dict.fromkeys(("aten.matmul.default", "aten.mm.default", "aten.bmm.default"), _matrices),
    **{name: _convolution for name, function in RULES.items() if function is convolution},
    **{name: _transposed for name, function in RULES.items() if function is transposed_convolution},
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.einsum.default": _einsum,
    "aten.tensordot.default": _tensordot,
    "aten.inner.default": _matrices,
    **dict.fromkeys(("aten._grouped_mm.default", *FOREIGN), _with_inner(0)),
    **{name: _recurrent for name, function in RULES.items() if function in (recurrent, packed)},
    **{name: _cell for name, function in RULES.items() if function is cell},
}
