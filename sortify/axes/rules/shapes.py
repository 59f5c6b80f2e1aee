"""Rules of ops that move, split, join or stretch dimensions without computing."""

from __future__ import annotations

from sortify.axes import algebra
from sortify.axes.algebra import ONE, UNIT, Expr, Mismatch, Size, is_fixed, open_atom
from sortify.axes.rules.table import Call, Dims, rule


def sized(call: Call, argument: str, dims: Dims) -> Dims:
    """Note every entry of a size list as the size of the output dimension that it makes."""
    for index, (value, dim) in enumerate(zip(call[argument], dims, strict=True)):
        if value != -1:
            call.literal(argument, index, dim)
    return dims


@rule("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
def view(call: Call) -> Dims:
    dims = tuple(algebra.reshape(call.dims("self"), call.shape, call.place))
    return sized(call, "size" if "size" in call.arguments else "shape", dims)


@rule("aten.flatten.using_ints")
def flatten(call: Call) -> Dims:
    return tuple(algebra.reshape(call.dims("self"), call.shape, call.place))


@rule("aten.unflatten.int")
def unflatten(call: Call) -> Dims:
    dims = tuple(algebra.reshape(call.dims("self"), call.shape, call.place))
    start = call.axis("dim", len(call.dims("self")))
    made = dims[start : start + len(call["sizes"])]
    for index, (value, dim) in enumerate(zip(call["sizes"], made, strict=True)):
        if value != -1:
            call.literal("sizes", index, dim)
    return dims


@rule("aten.permute.default")
def permute(call: Call) -> Dims:
    dims = call.dims("self")
    return tuple(dims[d] for d in call["dims"])


@rule("aten.transpose.int", "aten.swapaxes.default", "aten.swapdims.default")
def transpose(call: Call) -> Dims:
    dims = list(call.dims("self"))
    a, b = [call.arguments[name] for name in list(call.arguments)[1:3]]
    dims[a], dims[b] = dims[b], dims[a]
    return tuple(dims)


@rule("aten.t.default", "aten.numpy_T.default")
def reverse(call: Call) -> Dims:
    return call.dims("self")[::-1]


@rule("aten.mT.default", "aten.adjoint.default", "aten.mH.default", "aten.matrix_H.default")
def transpose_matrix(call: Call) -> Dims:
    *batch, rows, columns = call.dims("self")
    return (*batch, columns, rows)


@rule("aten.movedim.int", "aten.movedim.intlist")
def movedim(call: Call) -> Dims:
    dims = call.dims("self")
    source, target = call["source"], call["destination"]
    sources = [s % len(dims) for s in (source if isinstance(source, list) else [source])]
    targets = [t % len(dims) for t in (target if isinstance(target, list) else [target])]
    rest = [d for i, d in enumerate(dims) if i not in sources]
    for place, origin in sorted(zip(targets, sources, strict=True)):
        rest.insert(place, dims[origin])
    return tuple(rest)


@rule("aten.unsqueeze.default")
def unsqueeze(call: Call) -> Dims:
    dims = list(call.dims("self"))
    dims.insert(call.axis("dim", len(dims) + 1), UNIT)
    return tuple(dims)


@rule("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(call: Call) -> Dims:
    dims = call.dims("self")
    chosen = call.get("dim", list(range(len(dims))))
    chosen = {d % max(len(dims), 1) for d in (chosen if isinstance(chosen, list) else [chosen])}
    return tuple(d for i, d in enumerate(dims) if not (i in chosen and d is UNIT))


@rule("aten.expand.default", "aten.broadcast_to.default")
def expand(call: Call) -> Dims:
    """New dimensions hold copies of one element, so any order and any length of them will do."""
    old, shape = call.dims("self"), call.shape
    padded = (UNIT,) * (len(shape) - len(old)) + old
    dims = tuple(
        open_atom(size, "repeat") if dim is UNIT and size != ONE else dim
        for dim, size in zip(padded, shape, strict=True)
    )
    return sized(call, "size", dims)


@rule("aten.expand_as.default")
def expand_as(call: Call) -> Dims:
    old, other = call.dims("self"), call.dims("other")
    padded = (UNIT,) * (len(other) - len(old)) + old
    for mine, theirs in zip(padded, other, strict=True):
        if mine is not UNIT:
            call.unify(mine, theirs)
    return other


@rule("aten.view_as.default", "aten.reshape_as.default")
def view_as(call: Call) -> Dims:
    dims = tuple(algebra.reshape(call.dims("self"), call.shape, call.place))
    call.unify_all(dims, call.dims("other"))
    return dims


@rule("aten.repeat.default", "aten.tile.default")
def repeat(call: Call) -> Dims:
    """Tiling puts whole copies one after the other: the copies are the outer factor."""
    argument = "repeats" if "repeats" in call.arguments else "dims"
    missing = len(call.dims("self")) - len(call[argument])
    counts = [1] * missing + call[argument]
    old = (UNIT,) * -missing + call.dims("self")
    result: list[Expr] = []
    for index, (dim, count, size) in enumerate(zip(old, counts, call.shape, strict=True)):
        if isinstance(count, int) and not size.symbols:
            copies = open_atom(count, "repeat") if count > 1 else UNIT
            if count > 1:
                call.literal(argument, index - max(missing, 0), copies)
            result.append(algebra.product([copies, dim]))
        else:
            call.fix([dim], "it is repeated an unknown number of times")
            result.append(call.fixed(size, "repeated an unknown number of times"))
    return tuple(result)


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(call: Call) -> Dims:
    """Each element is followed by its copies: the copies are the inner factor."""
    if call.get("dim") is None:
        raise NotImplementedError
    dims, count = list(call.dims("self")), call["repeats"]
    at = call.axis("dim", len(dims))
    copies = open_atom(count, "repeat")
    call.literal("repeats", None, copies)
    dims[at] = algebra.product([dims[at], copies])
    if call.get("output_size") is not None:
        call.literal("output_size", None, dims[at])
    return tuple(dims)


@rule("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(call: Call) -> Dims:
    """Segments one after the other; tensors of shape [0], which torch leaves out, are left out."""
    parts = [call.dims_of(t) for t in call["tensors"]]
    parts = [dims for dims in parts if dims and not _empty(dims)] or parts[:1]
    at = call.axis("dim", len(parts[0]))
    for dims in parts[1:]:
        for place, (a, b) in enumerate(zip(parts[0], dims, strict=True)):
            if place != at:
                call.unify(a, b)
    result = list(parts[0])
    joined = algebra.concat(dims[at] for dims in parts)
    result[at] = call.fixed(call.shape[at], "joined from fixed parts") if is_fixed(joined) else joined
    return tuple(result)


def _empty(dims: Dims) -> bool:
    return len(dims) == 1 and algebra.size_of(dims[0]).count == 0


@rule("aten.stack.default")
def stack(call: Call) -> Dims:
    parts = [call.dims_of(t) for t in call["tensors"]]
    for dims in parts[1:]:
        call.unify_all(parts[0], dims)
    result = list(parts[0])
    result.insert(call.axis("dim", len(result) + 1), call.fixed(len(parts), "it counts stacked tensors"))
    return tuple(result)


@rule("aten.split_with_sizes.default", "aten.split.sizes", "aten.unsafe_split_with_sizes.default")
def split_with_sizes(call: Call) -> list[Dims]:
    dims = call.dims("self")
    at = call.axis("dim", len(dims))
    argument = "split_sizes" if "split_sizes" in call.arguments else "split_size"
    pieces = _pieces(call, dims[at], [shape[at] for shape in call.shapes])
    for index, piece in enumerate(pieces):
        call.literal(argument, index, piece)
    return [(*dims[:at], piece, *dims[at + 1 :]) for piece in pieces]


@rule(
    "aten.chunk.default",
    "aten.unsafe_chunk.default",
    "aten.split.Tensor",
    "aten.unsafe_split.Tensor",
    "aten.tensor_split.sections",
    "aten.tensor_split.indices",
)
def split_by_number(call: Call) -> list[Dims]:
    """Capture writes sizes into every split that has them; what is left splits a size that only the inputs decide."""
    dims = call.dims("self")
    at = call.axis("dim", len(dims))
    call.fix([dims[at]], "it is split into pieces of unknown size")
    pieces = [call.fixed(shape[at], "split from a fixed dimension") for shape in call.shapes]
    return [(*dims[:at], piece, *dims[at + 1 :]) for piece in pieces]


def _pieces(call: Call, dim: Expr, sizes: list[Size]) -> list[Expr]:
    if is_fixed(dim) or any(size.symbols for size in sizes):
        call.fix([dim], "it is split into pieces of unknown size")
        return [call.fixed(size, "split from a fixed dimension") for size in sizes]
    rest, pieces = [dim], []
    try:
        for size in sizes:
            piece, rest = algebra.cut(rest, size.count)
            pieces.append(algebra.concat(piece))
    except Mismatch as reason:
        call.fix([dim], str(reason))
        return [call.fixed(size, str(reason)) for size in sizes]
    return pieces


@rule("aten.glu.default")
def glu(call: Call) -> Dims:
    """The first half, gated by the second: both halves are one dimension."""
    dims = list(call.dims("self"))
    at = call.axis("dim", len(dims))
    half = call.shape[at]
    first, second = _pieces(call, dims[at], [half, half])
    call.unify(first, second)
    dims[at] = first
    return tuple(dims)


@rule("aten.unbind.int")
def unbind(call: Call) -> list[Dims]:
    dims = call.dims("self")
    at = call.axis("dim", len(dims))
    call.fix([dims[at]], "each of its positions is used on its own")
    return [dims[:at] + dims[at + 1 :] for _ in call.shapes]


@rule("aten.slice.Tensor", "aten.narrow.default")
def slice_(call: Call) -> Dims:
    dims, shape = call.dims("self"), call.shape
    at = call.axis("dim", len(dims))
    dim, old = dims[at], algebra.size_of(dims[at])
    start, end, step = call.get("start") or 0, call.get("end"), call.get("step", 1)
    if "length" in call.arguments:
        end = start + call["length"] if isinstance(start, int) and isinstance(call["length"], int) else None
    if shape[at] == old and start == 0:
        if "length" in call.arguments:
            call.literal("length", None, dim)
        return dims
    if step != 1 or old.symbols or not isinstance(start, int) or not isinstance(end, (int, type(None))):
        call.fix([dim], "single positions are taken from it")
        return (*dims[:at], call.fixed(shape[at], "taken from a fixed dimension"), *dims[at + 1 :])
    begin = max(start + old.count, 0) if start < 0 else min(start, old.count)
    length = shape[at].count
    before, piece, _ = _pieces(call, dim, [Size(begin), Size(length), Size(old.count - begin - length)])
    _slice_literals(call, before, piece, begin + length == old.count)
    return (*dims[:at], piece, *dims[at + 1 :])


def _slice_literals(call: Call, before: Expr, piece: Expr, to_the_end: bool) -> None:
    if call.get("start"):
        call.literal("start", None, before)
    if "length" in call.arguments:
        call.literal("length", None, piece)
    elif call.get("end") is not None and not (to_the_end and call["end"] >= 2**31):
        call.literal("end", None, before, piece)


@rule("aten.select.int")
def select(call: Call) -> Dims:
    dims = call.dims("self")
    at = call.axis("dim", len(dims))
    call.fix([dims[at]], "one of its positions is taken by number")
    return dims[:at] + dims[at + 1 :]


@rule("aten.constant_pad_nd.default", "aten.pad.default")
def pad(call: Call) -> Dims:
    """Padding with a constant adds segments whose order does not matter; other modes fix."""
    dims, amounts, shape = list(call.dims("self")), call["pad"], call.shape
    constant = call.get("mode", "constant") == "constant"
    for pair in range(len(amounts) // 2):
        at, (before, after) = len(dims) - 1 - pair, amounts[2 * pair : 2 * pair + 2]
        if before == 0 and after == 0:
            continue
        plain = all(isinstance(n, int) and n >= 0 for n in (before, after)) and not shape[at].symbols
        if not (constant and plain) or is_fixed(dims[at]):
            call.fix([dims[at]], "it is padded or cropped")
            dims[at] = call.fixed(shape[at], "padded")
            continue
        ends = [open_atom(n) if n else None for n in (before, after)]
        for offset, end in enumerate(ends):
            if end is not None:
                call.literal("pad", 2 * pair + offset, end)
        dims[at] = algebra.concat(e for e in (ends[0], dims[at], ends[1]) if e is not None)
    return tuple(dims)


@rule("aten.pixel_shuffle.default")
def pixel_shuffle(call: Call) -> Dims:
    """[*, C * r * r, H, W] to [*, C, H * r, W * r]."""
    return _shuffled(call, call["upscale_factor"], outward=True)


@rule("aten.pixel_unshuffle.default")
def pixel_unshuffle(call: Call) -> Dims:
    """[*, C, H * r, W * r] to [*, C * r * r, H, W]."""
    return _shuffled(call, call["downscale_factor"], outward=False)


def _shuffled(call: Call, factor: int, *, outward: bool) -> Dims:
    *batch, channels, rows, columns = call.dims("self")
    call.fix([rows, columns], "image size")
    square = call.fixed(factor * factor, "it becomes part of the image size")
    if outward:
        inner = open_atom(call.shape[-3])
        call.unify(channels, algebra.product([inner, square]))
        channels = inner
    else:
        channels = algebra.product([channels, square])
    height, width = (call.fixed(size, "image size") for size in call.shape[-2:])
    return (*batch, algebra.resolve(channels), height, width)


@rule("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(call: Call) -> Dims:
    """[N, g * c, ...]: seen as g x c, transposed, flattened again."""
    batch, channels, *rest = call.dims("self")
    groups = call.fixed(call["groups"], "shuffle groups")
    inner = open_atom(algebra.size_of(channels).over(Size(call["groups"])) or ONE)
    call.unify(channels, algebra.product([groups, inner]))
    return (batch, algebra.product([inner, groups]), *rest)


@rule("aten.roll.default", "aten.flip.default")
def roll(call: Call) -> Dims:
    dims = call.dims("self")
    moved = call["dims"] or range(len(dims))
    call.fix([dims[d] for d in moved], "its positions are moved by number")
    return dims
