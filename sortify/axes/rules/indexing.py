"""Rules of ops that pick positions by number or by data, and of ops that create tensors."""

from __future__ import annotations

import torch
from torch import fx

from sortify.axes.algebra import UNIT, Expr, open_atom
from sortify.axes.rules.pointwise import broadcast
from sortify.axes.rules.table import Call, Dims, overloads, rule


@rule("aten.embedding.default")
def embedding(call: Call) -> Dims:
    """weight [V, D], indices [*] to [*, D]; the rows are picked by data."""
    rows, width = call.dims("weight")
    call.fix([rows], "its rows are picked by data")
    return (*call.dims("indices"), width)


@rule("aten.index_select.default")
def index_select(call: Call) -> Dims:
    dims = list(call.dims("self"))
    at = call.axis("dim", len(dims))
    call.fix([dims[at], *call.dims("index")], "its positions are picked by data")
    dims[at] = call.fixed(call.shape[at], "picked by data")
    return tuple(dims)


@rule("aten.gather.default")
def gather(call: Call) -> Dims:
    dims, index = call.dims("self"), call.dims("index")
    call.fix([*dims, *index], "its positions are picked by data")
    return tuple(call.fixed(size, "picked by data") for size in call.shape)


@rule("aten.index.Tensor")
def index(call: Call) -> Dims:
    """Dimensions with an index tensor are picked by data; the others pass through."""
    dims, indices = call.dims("self"), list(call["indices"])
    if any(isinstance(i, fx.Node) and i.meta["val"].dtype in (torch.bool, torch.uint8) for i in indices):
        for tensor in call.tensors():
            call.fix(tensor, "its positions are picked by a mask")
        return tuple(call.fixed(size, "picked by a mask") for size in call.shape)
    used = [place for place, i in enumerate(indices) if i is not None]
    picked = broadcast(call, [call.dims_of(indices[place]) for place in used])
    call.fix([dims[place] for place in used], "its positions are picked by data")
    call.fix(picked, "it numbers positions picked by data")
    rest = [d for place, d in enumerate(dims) if place not in used]
    at = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    return (*rest[:at], *picked, *rest[at:])


@rule("aten.one_hot.default")
def one_hot(call: Call) -> Dims:
    return (*call.dims("self"), call.fixed(call.shape[-1], "classes of a one-hot code"))


def _makers() -> list[str]:
    wanted = ("zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty")
    return [n for n in overloads(*wanted) if _takes_plain_size(n)]


def _takes_plain_size(name: str) -> bool:
    _, packet, overload = name.split(".")
    arguments = getattr(getattr(torch.ops.aten, packet), overload)._schema.arguments
    return any(a.name == "size" for a in arguments) and not any(a.name == "names" for a in arguments)


@rule(*_makers())
def create(call: Call) -> Dims:
    """A tensor filled with one value or with noise: any order and any length of it will do."""
    dims: list[Expr] = []
    for position, size in enumerate(call.shape):
        dims.append(open_atom(size, "filled"))
        if isinstance(call["size"][position], int) and dims[-1] is not UNIT:
            call.literal("size", position, dims[-1])
    return tuple(dims)


@rule(
    "aten.arange.default",
    "aten.arange.start",
    "aten.arange.start_step",
    "aten.linspace.default",
    "aten.scalar_tensor.default",
    "aten.eye.default",
    "aten.eye.m",
    "aten.tril_indices.default",
    "aten.randperm.default",
    "aten.hann_window.default",
)
def count(call: Call) -> Dims:
    return tuple(call.fixed(size, "its values count positions") for size in call.shape)
