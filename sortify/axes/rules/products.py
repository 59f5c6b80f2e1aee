"""Rules of the rarer products: over chosen dimensions, bilinear, group by group, of vectors."""

from __future__ import annotations

from sortify.axes import algebra
from sortify.axes.algebra import ONE, Expr, Size, is_fixed, mark, open_atom
from sortify.axes.rules.pointwise import broadcast
from sortify.axes.rules.table import RULES, Call, Dims, rule

ALIGNED_BYTES = 16


@rule("aten.tensordot.default")
def tensordot(call: Call) -> Dims:
    """Sums over `dims_self` of the first and `dims_other` of the second; what is left follows in order."""
    left, right = call.dims("self"), call.dims("other")
    ours = [d % len(left) for d in call["dims_self"]]
    theirs = [d % len(right) for d in call["dims_other"]]
    for a, b in zip(ours, theirs, strict=True):
        call.unify(left[a], right[b])
    rest = [d for i, d in enumerate(left) if i not in ours]
    return (*rest, *(d for i, d in enumerate(right) if i not in theirs))


@rule("aten.inner.default")
def inner(call: Call) -> Dims:
    """[*, K] and [*, K]: summed over the last dimension of both."""
    left, right = call.dims("self"), call.dims("other")
    if not left or not right:
        return left or right
    call.unify(left[-1], right[-1])
    return (*left[:-1], *right[:-1])


@rule("aten.vdot.default", "aten.linalg_vecdot.default")
def vecdot(call: Call) -> Dims:
    """Sums the products of two tensors that broadcast over one dimension."""
    both = broadcast(call, call.tensors()[:2] if len(call.tensors()) > 1 else call.tensors() * 2)
    at = call.get("dim", -1) % len(both)
    return both[:at] + both[at + 1 :]


@rule("aten.addbmm.default")
def addbmm(call: Call) -> Dims:
    """self broadcastable to [N, M], plus the sum over B of batch1 [B, N, K] times batch2 [B, K, M]."""
    (b1, rows, inner), (b2, other, columns) = call.dims("batch1"), call.dims("batch2")
    call.unify(inner, other)
    call.unify(b1, b2)
    return broadcast(call, [(rows, columns), call.dims("self")])


@rule("aten.addmv.default")
def addmv(call: Call) -> Dims:
    """self broadcastable to [N], plus mat [N, K] times vec [K]."""
    rows, inner = call.dims("mat")
    call.unify_all((inner,), call.dims("vec"))
    return broadcast(call, [(rows,), call.dims("self")])


@rule("aten.addr.default")
def addr(call: Call) -> Dims:
    """self broadcastable to [N, M], plus vec1 [N] times vec2 [M]."""
    return broadcast(call, [(*call.dims("vec1"), *call.dims("vec2")), call.dims("self")])


@rule("aten.bilinear.default")
def bilinear(call: Call) -> Dims:
    """input1 [*, I], input2 [*, J], weight [O, I, J], bias [O]."""
    (*batch, first), (*other, second) = call.dims("input1"), call.dims("input2")
    outputs, *inputs = call.dims("weight")
    call.unify_all(batch, other)
    call.unify_all(inputs, (first, second))
    for dim in call.dims("bias"):
        call.unify(dim, outputs)
    return (*batch, outputs)


@rule("aten.cdist.default")
def cdist(call: Call) -> Dims:
    """x1 [*, P, M], x2 [*, R, M] to distances [*, P, R]."""
    (*batch, rows, inner), (*other, columns, width) = call.dims("x1"), call.dims("x2")
    call.unify(inner, width)
    mark(inner, "summed")
    return (*broadcast(call, [tuple(batch), tuple(other)]), rows, columns)


@rule("aten._grouped_mm.default")
def grouped_mm(call: Call) -> Dims:
    """Rows in groups, one matrix per group: self [N, K], mat2 [G, K, M], offs [G] (or the other way about).

    The kernel wants rows of whole 16 bytes in memory, so widths are cut in such units.
    """
    left, right = call.dims("self"), call.dims("mat2")
    if len(left) != 2 or len(right) != 3:
        raise NotImplementedError
    (rows, inner), (groups, other, columns) = left, right
    call.fix([rows, groups, *call.dims("offs")], "its rows are put in groups by data")
    call.unify(inner, other)
    itemsize = call.node.all_input_nodes[0].meta["val"].element_size()
    for dim in (inner, columns):
        _in_units(call, dim, itemsize)
    for dim in call.dims("bias")[-1:]:
        call.unify(dim, columns)
    return (rows, algebra.resolve(columns))


def grouped_rows(call: Call) -> Dims:
    """Like grouped_mm, of any width: input [N, K], weight [G, K, M], offs [G]."""
    (rows, inner), (groups, other, columns) = call.dims("input"), call.dims("weight")
    call.fix([rows, groups, *call.dims("offs")], "its rows are put in groups by data")
    call.unify(inner, other)
    return (rows, columns)


# Ops that another package adds to torch when it is imported, so they may not exist yet.
FOREIGN = {"transformers.grouped_mm_fallback.default": grouped_rows}
RULES.update(FOREIGN)


def _in_units(call: Call, dim: Expr, itemsize: int) -> None:
    """Split a width into units of 16 bytes: in the captured dtype, and in one of two bytes where that divides too."""
    size = algebra.size_of(dim)
    units = [n for n in (ALIGNED_BYTES // 2, ALIGNED_BYTES // itemsize) if size.over(Size(n))]
    if is_fixed(dim) or not units:
        call.fix([dim], "its rows are no multiple of 16 bytes")
        return
    unit = call.fixed(max(units), f"it is cut in units of {ALIGNED_BYTES} bytes")
    call.unify(dim, algebra.product([open_atom(size.over(Size(max(units))) or ONE), unit]))
