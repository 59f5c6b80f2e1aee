"""Rules of ops that multiply and sum: linear maps, matrix products, convolutions, attention."""

from __future__ import annotations

from sortify.axes import algebra
from sortify.axes.algebra import ONE, UNIT, Expr, Size, fixed_atom, is_fixed, mark, open_atom
from sortify.axes.rules.pointwise import broadcast
from sortify.axes.rules.table import Call, Dims, rule


@rule("aten.linear.default")
def linear(call: Call) -> Dims:
    """input [*, I], weight [O, I], bias [O]."""
    *batch, inner = call.dims("input")
    weight, bias = call.dims("weight"), call.dims("bias")
    call.unify(inner, weight[-1])
    if bias:
        call.unify_all(bias, weight[:-1])
    return (*batch, *weight[:-1])


@rule("aten.addmm.default")
def addmm(call: Call) -> Dims:
    """self [O] or [N, O], mat1 [N, I], mat2 [I, O]."""
    (rows, inner), (other, columns) = call.dims("mat1"), call.dims("mat2")
    call.unify(inner, other)
    return broadcast(call, [(rows, columns), call.dims("self")])


@rule("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default", "aten.dot.default")
def matmul(call: Call) -> Dims:
    """[*, N, K] times [*, K, M]; one-dimensional operands as in torch.matmul."""
    left, right = (call.dims_of(node) for node in call.node.args[:2])
    rows = left[-2:-1]
    columns = right[-1:] if len(right) > 1 else ()
    inner = right[-2] if len(right) > 1 else right[0]
    call.unify(left[-1], inner)
    batch = broadcast(call, [left[:-2], right[:-2]])
    if _two_activations(call):
        _mark_attention(batch, [left[-1], *rows, *columns])
    return (*batch, *rows, *columns)


@rule("aten.baddbmm.default")
def baddbmm(call: Call) -> Dims:
    """self broadcastable to [B, N, M], batch1 [B, N, K], batch2 [B, K, M]."""
    (b1, rows, inner), (b2, other, columns) = call.dims("batch1"), call.dims("batch2")
    call.unify(inner, other)
    call.unify(b1, b2)
    _mark_attention((b1,), [inner, rows, columns])
    return broadcast(call, [(b1, rows, columns), call.dims("self")])


@rule("aten.outer.default")
def outer(call: Call) -> Dims:
    return (*call.dims("self"), *call.dims("vec2"))


def _two_activations(call: Call) -> bool:
    """Whether both operands are computed: a product of two activations is attention-like."""
    return all(node.op != "placeholder" for node in call.node.all_input_nodes)


def _mark_attention(batch: Dims, others: list[Expr]) -> None:
    """Batch-like dimensions of a product of two activations are heads; the summed ones head_dim."""
    for dim in batch:
        mark(dim, "heads")
    for dim in others:
        mark(dim, "head_dim")


@rule("aten.scaled_dot_product_attention.default")
def attention(call: Call) -> Dims:
    """query [*, H, L, E], key [*, G, S, E], value [*, G, S, V], mask broadcastable to [*, H, L, S]."""
    *batch, rows, inner = call.dims("query")
    *key_batch, keys, key_inner = call.dims("key")
    *value_batch, values, width = call.dims("value")
    call.unify(inner, key_inner)
    call.unify(keys, values)
    if call.get("is_causal"):
        call.fix([rows, keys], "each position only sees those before it")
    if call.get("enable_gqa") and batch and key_batch:
        heads, groups = algebra.size_of(batch[-1]), algebra.size_of(key_batch[-1])
        ratio = heads.over(groups) or ONE
        call.unify(key_batch[-1], value_batch[-1])
        call.unify(batch[-1], algebra.product([key_batch[-1], open_atom(ratio, "repeat")]))
        key_batch[-1] = value_batch[-1] = algebra.resolve(batch[-1])
    heads_like = broadcast(call, [tuple(batch), tuple(key_batch), tuple(value_batch)])
    broadcast(call, [(*heads_like, rows, keys), call.dims("attn_mask")])
    _mark_attention(heads_like, [inner, width])
    return (*heads_like, rows, width)


@rule("aten.einsum.default")
def einsum(call: Call) -> Dims:
    """Each letter is one dimension; `...` broadcasts."""
    equation = call["equation"].replace(" ", "")
    operands = [call.dims_of(t) for t in call["tensors"]]
    left, arrow, right = equation.partition("->")
    letters: dict[str, Expr] = {}
    ellipses: list[Dims] = []
    terms = left.split(",")
    for term, dims in zip(terms, operands, strict=True):
        before, dots, after = term.partition("...")
        middle = len(dims) - len(before) - len(after)
        named = [*zip(before, dims, strict=False), *zip(after, dims[len(before) + middle :], strict=True)]
        for letter, dim in named:
            if letter in letters and letters[letter] is not UNIT and dim is not UNIT:
                call.unify(letters[letter], dim)
            if letter not in letters or letters[letter] is UNIT:
                letters[letter] = dim
        if dots:
            ellipses.append(dims[len(before) : len(before) + middle])
    if not arrow:
        names = sorted(letter for letter in letters if left.count(letter) == 1)
        right = ("..." if ellipses else "") + "".join(names)
    spread = broadcast(call, ellipses)
    before, dots, after = right.partition("...")
    _mark_einsum(call, letters, terms, right, spread)
    return (*(letters[n] for n in before), *(spread if dots else ()), *(letters[n] for n in after))


def _mark_einsum(call: Call, letters: dict[str, Expr], terms: list[str], right: str, spread: Dims) -> None:
    if len(terms) != 2 or not _two_activations(call):
        return
    for letter, dim in letters.items():
        batch_like = all(letter in term for term in terms) and letter in right
        mark(dim, "heads" if batch_like else "head_dim")
    for dim in spread:
        mark(dim, "heads")


@rule(
    "aten.conv1d.default",
    "aten.conv2d.default",
    "aten.conv3d.default",
    "aten.conv1d.padding",
    "aten.conv2d.padding",
    "aten.conv3d.padding",
    "aten.convolution.default",
    "aten._convolution.default",
)
def convolution(call: Call) -> Dims:
    """input [N, I, *], weight [O, I / groups, *], bias [O]."""
    return _convolution(call, transposed=call.get("transposed", False))


@rule("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def transposed_convolution(call: Call) -> Dims:
    """input [N, I, *], weight [I, O / groups, *], bias [O]."""
    return _convolution(call, transposed=True)


def _convolution(call: Call, *, transposed: bool) -> Dims:
    dims, weight, bias = call.dims("input"), call.dims("weight"), call.dims("bias")
    kernel = len(weight) - 2
    channels, groups = dims[-kernel - 1], call.get("groups", 1)
    call.fix(weight[2:], "kernel size")
    call.fix(dims[-kernel:], "image size")
    outputs = (
        _grouped(call, channels, weight, groups, transposed)
        if groups > 1
        else _plain(call, channels, weight, transposed)
    )
    for dim in bias:
        call.unify(dim, outputs)
    mark(channels, "convolution_input")
    for dim in (channels, outputs, *weight[:2]):
        mark(dim, "convolved")
    image = [call.fixed(size, "image size") for size in call.shape[-kernel:]]
    return (*dims[: -kernel - 1], algebra.resolve(outputs), *image)


def _plain(call: Call, channels: Expr, weight: Dims, transposed: bool) -> Expr:
    inputs, outputs = weight[:2] if transposed else weight[1::-1]
    call.unify(channels, inputs)
    return outputs


def _grouped(call: Call, channels: Expr, weight: Dims, groups: int, transposed: bool) -> Expr:
    """Channels are groups x the rest on both sides, with the same groups."""
    count, (first, second) = Size(groups), weight[:2]
    group = open_atom(count, "groups")
    inner = _rest(channels, count)
    call.unify(channels, algebra.product([group, inner]))
    if transposed:
        outputs = algebra.product([group, second])
        call.unify(first, algebra.product([group, inner]))
    else:
        call.unify(second, inner)
        outputs = first
        call.unify(first, algebra.product([group, _rest(first, count)]))
    call.literal("groups", None, group)
    return outputs


def _rest(dim: Expr, outer: Size) -> Expr:
    size = algebra.size_of(dim).over(outer) or ONE
    return fixed_atom(size, "fixed channels") if is_fixed(dim) else open_atom(size)
