"""Rules of the rarer ops that lay out tensors: stacking by name, diagonals, blocks, complex views, matrices."""

from __future__ import annotations

from sortify.axes import algebra
from sortify.axes.algebra import UNIT, Expr
from sortify.axes.rules.pointwise import broadcast
from sortify.axes.rules.table import Call, Dims, overloads, rule


@rule("aten.view_as_real.default")
def view_as_real(call: Call) -> Dims:
    """Complex [*] to [*, 2]."""
    return (*call.dims("self"), call.fixed(2, "real and imaginary parts"))


@rule("aten.view_as_complex.default")
def view_as_complex(call: Call) -> Dims:
    """[*, 2] to complex [*]."""
    *dims, parts = call.dims("self")
    call.fix([parts], "real and imaginary parts")
    return tuple(dims)


@rule("aten.view.dtype")
def view_dtype(call: Call) -> Dims:
    """The same memory as another dtype of the same width."""
    old = call.node.all_input_nodes[0].meta["val"].dtype
    if old.itemsize != call.node.meta["val"].dtype.itemsize:
        raise NotImplementedError
    return call.dims("self")


@rule("aten.ravel.default")
def ravel(call: Call) -> Dims:
    return tuple(algebra.reshape(call.dims("self"), call.shape, call.place))


@rule("aten.atleast_1d.default", "aten.atleast_2d.default", "aten.atleast_3d.default")
def atleast(call: Call) -> Dims:
    return _raised(call.dims("self"), int(str(call.node.target).split(".")[1][-2]))


def _raised(dims: Dims, rank: int) -> Dims:
    """The dimensions of `atleast_1d`, `atleast_2d` or `atleast_3d`."""
    if len(dims) < min(rank, 2):
        dims = (UNIT,) * (min(rank, 2) - len(dims)) + dims
    return (*dims, UNIT) if rank == 3 and len(dims) == 2 else dims


@rule("aten.hstack.default", "aten.vstack.default", "aten.dstack.default", "aten.column_stack.default")
def stack_by_name(call: Call) -> Dims:
    """Joined along the second (one-dimensional: the first), the first or the third dimension."""
    kind = str(call.node.target).split(".")[1][0]
    parts = [call.dims_of(tensor) for tensor in call["tensors"]]
    if kind == "c":
        parts = [(*dims, *[UNIT] * (2 - len(dims))) for dims in parts]
    else:
        parts = [_raised(dims, {"h": 1, "v": 2, "d": 3}[kind]) for dims in parts]
    at = {"h": min(1, len(parts[0]) - 1), "v": 0, "d": 2, "c": 1}[kind]
    for dims in parts[1:]:
        for place, (a, b) in enumerate(zip(parts[0], dims, strict=True)):
            if place != at:
                call.unify(a, b)
    joined = algebra.concat(dims[at] for dims in parts)
    if algebra.is_fixed(joined):
        joined = call.fixed(call.shape[at], "joined from fixed parts")
    return (*parts[0][:at], joined, *parts[0][at + 1 :])


@rule("aten.block_diag.default")
def block_diag(call: Call) -> Dims:
    """Matrices one below and beside the other."""
    parts = [_raised(call.dims_of(tensor), 2) for tensor in call["tensors"]]
    made = [algebra.concat(dims[place] for dims in parts) for place in (0, 1)]
    fixed = [call.fixed(size, "joined from fixed parts") for size in call.shape]
    return tuple(whole if algebra.is_fixed(dim) else dim for dim, whole in zip(made, fixed, strict=True))


@rule("aten.kron.default")
def kron(call: Call) -> Dims:
    """Every element of the first times the whole second: the second is the inner factor."""
    left, right = call.dims("self"), call.dims("other")
    rank = max(len(left), len(right))
    left, right = ((UNIT,) * (rank - len(dims)) + dims for dims in (left, right))
    return tuple(algebra.product(pair) for pair in zip(left, right, strict=True))


@rule("aten.meshgrid.default", "aten.meshgrid.indexing")
def meshgrid(call: Call) -> list[Dims]:
    """One dimension per tensor, in all of them; `xy` swaps the first two."""
    parts = [call.dims_of(tensor) or (UNIT,) for tensor in call["tensors"]]
    grid: list[Expr] = [dim for dims in parts for dim in dims]
    if call.get("indexing") == "xy" and len(grid) > 1:
        grid[:2] = grid[1::-1]
    return [tuple(grid)] * len(parts)


@rule("aten.diagonal.default")
def diagonal(call: Call) -> Dims:
    """Of a square the one dimension that both sides are; anything else takes positions by number."""
    dims, square = _square(call, call["dim1"], call["dim2"])
    return (*dims, square)


def _square(call: Call, first: int, second: int) -> tuple[list[Expr], Expr]:
    """The dimensions without two of them, and these two as one."""
    dims = list(call.dims_of(call.node.args[0]))
    a, b = first % len(dims), second % len(dims)
    if call.get("offset", 0) == 0 and algebra.size_of(dims[a]) == algebra.size_of(dims[b]):
        call.unify(dims[a], dims[b])
        square = algebra.resolve(dims[a])
    else:
        call.fix([dims[a], dims[b]], "single positions are taken from it")
        square = call.fixed(call.shape[-1], "taken from a fixed dimension")
    return [dim for place, dim in enumerate(dims) if place not in (a, b)], square


@rule("aten.diagonal_scatter.default")
def diagonal_scatter(call: Call) -> Dims:
    """src is written over the diagonal."""
    rest, square = _square(call, call["dim1"], call["dim2"])
    *others, last = call.dims("src")
    call.unify_all(rest, others)
    if algebra.is_fixed(square):
        call.fix([last], "it is written over single positions")
    else:
        call.unify(square, last)
    return call.dims("self")


@rule("aten.trace.default")
def trace(call: Call) -> Dims:
    call.unify(*call.dims("self"))
    return ()


@rule("aten.diag_embed.default")
def diag_embed(call: Call) -> Dims:
    """The last dimension becomes both sides of a square, with zeros off its diagonal."""
    *dims, last = call.dims("self")
    rank = len(dims) + 2
    a, b = sorted((call["dim1"] % rank, call["dim2"] % rank))
    if call.get("offset", 0) != 0:
        call.fix([last], "it is placed beside the diagonal")
        last = call.fixed(call.shape[a], "placed beside the diagonal")
    dims.insert(a, last)
    dims.insert(b, last)
    return tuple(dims)


@rule("aten.rot90.default", "aten.fliplr.default", "aten.flipud.default")
def turned(call: Call) -> Dims:
    dims, name = list(call.dims("self")), str(call.node.target)
    moved = call.get("dims") or ([1] if "fliplr" in name else [0])
    call.fix([dims[d] for d in moved], "its positions are moved by number")
    if "rot90" in name and call["k"] % 2:
        a, b = moved
        dims[a], dims[b] = dims[b], dims[a]
    return tuple(dims)


@rule("aten.repeat_interleave.self_Tensor")
def repeat_by_data(call: Call) -> Dims:
    """How often each position is repeated is data."""
    if call.get("dim") is None:
        raise NotImplementedError
    dims = list(call.dims("self"))
    at = call.axis("dim", len(dims))
    call.fix([dims[at], *call.dims("repeats")], "each of its positions is repeated as data says")
    dims[at] = call.fixed(call.shape[at], "repeated as data says")
    return tuple(dims)


_MATRICES = """
linalg_inv linalg_inv_ex linalg_det linalg_slogdet linalg_cholesky linalg_cholesky_ex linalg_svd linalg_svdvals
linalg_eigh linalg_eigvalsh linalg_qr linalg_matrix_exp matrix_exp linalg_matrix_power linalg_lu
linalg_lu_factor cholesky inverse det logdet slogdet
""".split()


@rule(*overloads(*_MATRICES), "aten.linalg_pinv.atol_rtol_float", "aten.linalg_pinv.atol_rtol_tensor")
def matrices(call: Call) -> Dims | list[Dims]:
    """Decompositions and inverses, matrix by matrix: rows and columns are fixed, other dimensions pass through."""
    dims = call.dims_of(call.node.args[0])
    call.fix(dims[-2:], "a matrix is taken apart or inverted as a whole")
    batch = dims[:-2]
    made: list[Dims] = [
        (*batch, *(call.fixed(size, "of a whole matrix") for size in shape[len(batch) :])) for shape in call.shapes
    ]
    return made if isinstance(call.node.meta["val"], (list, tuple)) else made[0]


@rule("aten.linalg_solve.default", "aten.linalg_solve_triangular.default")
def solve(call: Call) -> Dims:
    """A system of equations, whole."""
    for dims in call.tensors():
        call.fix(dims, "a system of equations is solved as a whole")
    return tuple(call.fixed(size, "of a whole system of equations") for size in call.shape)


@rule("aten.linalg_cross.default")
def cross(call: Call) -> Dims:
    """Vectors of three numbers along `dim`; the other dimensions broadcast."""
    first, second = call.dims("self"), call.dims("other")
    at = call.axis("dim", len(first))
    call.fix([first[at], second[at]], "it holds three coordinates")
    return broadcast(call, [first, second])
