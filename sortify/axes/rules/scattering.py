"""Rules of ops that write to, add to or read from positions given by data; other dimensions pass through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from sortify.axes import algebra
from sortify.axes.algebra import UNIT, Expr
from sortify.axes.rules.pointwise import broadcast
from sortify.axes.rules.table import Call, Dims, overloads, rule

BY_DATA = "its positions are picked by data"
STRETCHES = frozenset(["aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default"])
COPIES = frozenset(["aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.to.dtype"])


# -- an index tensor per dimension: x[:, i, j]


def is_mask(value: fx.Node) -> bool:
    """Whether an index is a mask, which stands for the positions where it is true."""
    return value.meta["val"].dtype in (torch.bool, torch.uint8)


def indexed(call: Call) -> tuple[Dims, int, int]:
    """What an index list leaves: the dimensions not indexed, and at which place how many picked ones come in.

    A mask of rank r stands for r dimensions and gives one; all picked dimensions broadcast together.
    """
    dims, used, rank, at = call.dims("self"), list[int](), 0, 0
    for value in call["indices"]:
        covers = 1
        if isinstance(value, fx.Node):
            mask = is_mask(value)
            covers = value.meta["val"].dim() if mask else 1
            rank = max(rank, 1 if mask else value.meta["val"].dim())
            used += range(at, at + covers)
            call.fix(call.dims_of(value), BY_DATA if mask else "it numbers positions picked by data")
        at += covers
    call.fix([dims[place] for place in used], BY_DATA)
    rest = tuple(d for place, d in enumerate(dims) if place not in used)
    together = bool(used) and used == list(range(used[0], used[-1] + 1))
    return rest, used[0] if together else 0, rank


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(call: Call) -> Dims:
    """Dimensions with an index tensor are picked by data; the others pass through."""
    rest, at, rank = indexed(call)
    picked = [call.fixed(size, "picked by data") for size in call.shape[at : at + rank]]
    return (*rest[:at], *picked, *rest[at:])


@rule(*(name for name in overloads("index_put") if "hacked" not in name), "aten._unsafe_index_put.default")
def index_put(call: Call) -> Dims:
    """The values broadcast to what `self[indices]` would be."""
    rest, at, rank = indexed(call)
    targets: list[Expr | None] = [*rest[:at], *[None] * rank, *rest[at:]]
    values = call.dims("values")
    for dim, target in zip(values[::-1], targets[::-1], strict=False):
        if target is None:
            call.fix([dim], "it is written to positions picked by data")
        elif dim is not UNIT:
            call.unify(dim, target)
    return call.dims("self")


# -- one index for one dimension, along which whole slices move


@rule(*overloads("index_add", "index_copy", "index_reduce"))
def index_add(call: Call) -> Dims:
    """self and source share every dimension but `dim`."""
    dims, source = call.dims("self"), call.dims("source")
    at = call.axis("dim", len(dims))
    call.fix([dims[at], source[at], *call.dims("index")], BY_DATA)
    _others_equal(call, at, [dims, source])
    return dims


@rule(*overloads("index_fill"))
def index_fill(call: Call) -> Dims:
    dims = call.dims("self")
    call.fix([dims[call.axis("dim", len(dims))], *call.dims("index")], BY_DATA)
    return dims


@rule("aten.select_scatter.default", "aten.slice_scatter.default")
def slice_scatter(call: Call) -> Dims:
    """src is written over one position, or a slice, of `dim`."""
    dims, source = call.dims("self"), list(call.dims("src"))
    at = call.axis("dim", len(dims))
    if len(source) < len(dims):
        source.insert(at, UNIT)
    call.fix([dims[at], source[at]], "part of it is written over by number")
    _others_equal(call, at, [dims, tuple(source)])
    return dims


def _others_equal(call: Call, at: int, operands: Sequence[Dims]) -> None:
    for dims in operands[1:]:
        call.unify_all(
            [*operands[0][:at], *operands[0][at + 1 :]],
            [*dims[:at], *dims[at + 1 :]],
        )


# -- an index of the rank of the tensor: one position for every element


@rule("aten.gather.default")
def gather(call: Call) -> Dims:
    """Along `dim` positions are picked by data; another dimension of equal size in both keeps its order."""
    dims, index = call.dims("self"), call.dims("index")
    at = call.axis("dim", len(dims))
    call.fix([dims[at] for _ in dims[:1]], BY_DATA)
    call.fix([index[at] for _ in dims[:1]], "it numbers positions picked by data")
    for place in range(len(dims)):
        if place != at:
            _in_step(call, [dims[place], index[place]])
    return tuple(
        call.fixed(size, "picked by data") if place == at else index[place] for place, size in enumerate(call.shape)
    )


@rule("aten.take_along_dim.default")
def take_along_dim(call: Call) -> Dims:
    """Like gather, where the other dimensions broadcast."""
    if call.get("dim") is None:
        raise NotImplementedError
    dims, index = call.dims("self"), call.dims("indices")
    at = call.axis("dim", len(dims))
    call.fix([dims[at]], BY_DATA)
    call.fix([index[at]], "it numbers positions picked by data")
    rest = broadcast(call, [(*dims[:at], *dims[at + 1 :]), (*index[:at], *index[at + 1 :])])
    return (*rest[:at], call.fixed(call.shape[at], "picked by data"), *rest[at:])


@rule(*overloads("scatter", "scatter_add", "scatter_reduce"))
def scatter(call: Call) -> Dims:
    """Along `dim` positions are picked by data; another dimension of equal size in all keeps its order."""
    dims, others = call.dims("self"), [d for d in (call.dims("index"), call.dims("src")) if d]
    if not dims:
        return dims
    at = call.axis("dim", len(dims))
    call.fix([dims[at], *(other[at] for other in others)], BY_DATA)
    for place, dim in enumerate(dims):
        if place != at:
            _in_step(call, [dim, *(other[place] for other in others)])
    return dims


def _in_step(call: Call, dims: Sequence[Expr]) -> None:
    """One and the same dimension where the sizes agree; a shorter index takes the first positions and fixes."""
    if all(algebra.size_of(dim) == algebra.size_of(dims[0]) for dim in dims):
        for dim in dims[1:]:
            call.unify(dims[0], dim)
    else:
        call.fix(dims, "only its first positions are taken")


@rule(*overloads("masked_scatter"))
def masked_scatter(call: Call) -> Dims:
    """The source is taken element by element, in order, wherever the mask is true.

    Where the mask was stretched along the last dimensions, whole rows are taken: these keep their order.
    """
    dims, mask, source = call.dims("self"), call.dims("mask"), call.dims("source")
    sizes, rows = [algebra.size_of(dim) for dim in dims], 0
    for place in range(1, min(len(dims), len(source)) + 1):
        equal = algebra.size_of(source[-place]) == sizes[-place] and len(mask) >= place
        if not equal or not _stretched(call["mask"], place):
            break
        rows = place
    for place in range(1, rows + 1):
        call.unify(dims[-place], source[-place])
        if mask[-place] is not UNIT:
            call.unify(dims[-place], mask[-place])
    for operand in (dims, mask, source):
        call.fix(operand[: len(operand) - rows], "its elements are taken in order")
    return dims


def _stretched(node: fx.Node, place: int) -> bool:
    """Whether a tensor holds copies of one element along its dimension `-place`."""
    while str(node.target) in COPIES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if node.meta["val"].shape[-place] == 1:
        return True
    origin = node.args[0] if str(node.target) in STRETCHES else None
    if not isinstance(origin, fx.Node):
        return False
    shape = origin.meta["val"].shape
    return len(shape) < place or shape[-place] == 1


# -- results whose size is known only when the model runs


@rule("aten.where.default", "aten.nonzero.default", "aten.nonzero_numpy.default", "aten.masked_select.default")
def positions(call: Call) -> Dims | list[Dims]:
    """Positions, or elements, that data picks: nothing is elastic."""
    for dims in call.tensors():
        call.fix(dims, BY_DATA)
    made: list[Dims] = [tuple(call.fixed(size, "picked by data") for size in shape) for shape in call.shapes]
    return made if isinstance(call.node.meta["val"], (list, tuple)) else made[0]
