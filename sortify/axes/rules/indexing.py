"""Rules of ops that pick positions by number or by data, and of ops that create tensors."""

from __future__ import annotations

import torch

from sortify.axes.algebra import UNIT, Expr, open_atom
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


@rule("aten.embedding_bag.default", "aten.embedding_bag.padding_idx")
def embedding_bag(call: Call) -> list[Dims]:
    """Sums or means of rows of weight [V, D], bag by bag: [B, D]; extremes would also give their positions."""
    rows, width = call.dims("weight")
    for dims in (call.dims("indices"), call.dims("offsets"), call.dims("per_sample_weights")):
        call.fix(dims, "it numbers rows picked by data")
    call.fix([rows, *([width] if call["mode"] == 2 else [])], "its rows are picked by data")
    bags, *others = call.shapes
    made = [tuple(call.fixed(size, "bags") for size in shape) for shape in others]
    return [(call.fixed(bags[0], "bags"), width), *made]


@rule(
    *(f"aten.{name}.default" for name in ("histc", "bincount", "multinomial", "_unique2", "unique_consecutive")),
    *("aten.unique_dim.default", "aten.repeat_interleave.Tensor"),
)
def counted(call: Call) -> Dims | list[Dims]:
    """What is counted, drawn or listed by value: nothing is elastic."""
    for dims in call.tensors():
        call.fix(dims, "its values are counted or drawn")
    made: list[Dims] = [tuple(call.fixed(size, "counted or drawn by value") for size in s) for s in call.shapes]
    return made if isinstance(call.node.meta["val"], (list, tuple)) else made[0]


@rule("aten.bucketize.Tensor", "aten.isin.Tensor_Tensor", "aten.isin.Tensor_Scalar")
def among(call: Call) -> Dims:
    """Every element by itself, compared with a table."""
    table = "boundaries" if "boundaries" in call.arguments else "test_elements"
    call.fix(call.dims(table), "every element is compared with all of it")
    return call.dims("elements" if "elements" in call.arguments else "self")


@rule("aten.searchsorted.Tensor")
def searchsorted(call: Call) -> Dims:
    """A table in order, one for all or one for each row."""
    table, dims = call.dims("sorted_sequence"), call.dims("self")
    call.fix([*table[-1:], *call.dims("sorter")], "every element is compared with all of it")
    if len(table) > 1:
        call.unify_all(table[:-1], dims[:-1])
    return dims


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
    "aten.triu_indices.default",
    "aten.randperm.default",
    "aten.logspace.default",
    *(f"aten.{name}_window.default" for name in ("hann", "hamming", "blackman", "bartlett", "kaiser")),
)
def count(call: Call) -> Dims:
    return tuple(call.fixed(size, "its values count positions") for size in call.shape)
