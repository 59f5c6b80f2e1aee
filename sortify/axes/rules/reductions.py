"""Rules of normalisations and reductions: what is summed over may come in any order and length."""

from __future__ import annotations

import torch

from sortify.axes import algebra
from sortify.axes.algebra import ONE, UNIT, Size, mark, open_atom
from sortify.axes.rules.pointwise import broadcast
from sortify.axes.rules.table import RULES, Call, Dims, overloads, rule


@rule("aten.layer_norm.default", "aten.rms_norm.default")
def layer_norm(call: Call) -> Dims:
    """Normalises over the last dimensions; weight and bias have their shape."""
    dims, shape = call.dims("input"), call["normalized_shape"]
    last = dims[-len(shape) :]
    for name in ("weight", "bias"):
        if call.dims(name):
            call.unify_all(last, call.dims(name))
    for index, dim in enumerate(last):
        call.literal("normalized_shape", index, dim)
    return dims


@rule("aten.batch_norm.default", "aten.instance_norm.default")
def batch_norm(call: Call) -> Dims:
    """input [N, C, *]; weight, bias and running statistics [C]."""
    dims = call.dims("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        for dim in call.dims(name):
            call.unify(dims[1], dim)
    return dims


@rule("aten.group_norm.default")
def group_norm(call: Call) -> Dims:
    """input [N, C, *] with C = groups x channels of a group; the groups are the outer factor."""
    dims, count = call.dims("input"), Size(call["num_groups"])
    groups = open_atom(count, "norm_groups")
    rest = algebra.size_of(dims[1]).over(count) or ONE
    call.unify(dims[1], algebra.product([groups, open_atom(rest)]))
    for name in ("weight", "bias"):
        for dim in call.dims(name):
            call.unify(dims[1], dim)
    call.literal("num_groups", None, groups)
    return dims


# Ops that normalise and keep every element in its place.
NORMALISATIONS = frozenset(name for name, function in RULES.items() if function in (layer_norm, batch_norm, group_norm))

_REDUCTIONS = overloads(
    *"mean sum nansum amax amin prod all any logsumexp linalg_vector_norm norm frobenius_norm".split(),
    *"std var var_mean std_mean max min argmax argmin median count_nonzero".split(),
)


def _reduces(name: str) -> bool:
    """One tensor in: `max.other` takes two and works element by element, `max.dim` reduces."""
    _, packet, overload = name.split(".")
    schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
    tensors = [a for a in schema.arguments if str(a.type) == "Tensor"]
    named = any("str" in str(a.type) for a in schema.arguments if a.name == "dim")
    return len(tensors) == 1 and str(schema.arguments[0].type) == "Tensor" and not named


@rule(*[name for name in _REDUCTIONS if _reduces(name)])
def reduce(call: Call) -> Dims | list[Dims]:
    """Sums, means, norms and extremes; an op that returns positions fixes the dimension instead."""
    dims = call.dims_of(call.node.args[0])
    chosen = call.get("dim")
    if chosen is None or chosen == []:
        chosen = list(range(len(dims)))
    chosen = {d % max(len(dims), 1) for d in (chosen if isinstance(chosen, (list, tuple)) else [chosen])}
    value = call.node.meta["val"]
    outputs = value if isinstance(value, (list, tuple)) else [value]
    if any(not (v.dtype.is_floating_point or v.dtype.is_complex or v.dtype == torch.bool) for v in outputs) and (
        not _integer_input(call)
    ):
        call.fix([dims[d] for d in chosen], "its positions are the result")
    kept = _kept(dims, chosen, bool(call.get("keepdim", False)))
    return [kept for _ in outputs] if isinstance(value, (list, tuple)) else kept


def _integer_input(call: Call) -> bool:
    dtype = call.node.all_input_nodes[0].meta["val"].dtype
    return not dtype.is_floating_point and len(call.shapes) == 1 and call.node.meta["val"].dtype == dtype


def _kept(dims: Dims, reduced: set[int], keepdim: bool) -> Dims:
    return tuple(UNIT if i in reduced else d for i, d in enumerate(dims) if keepdim or i not in reduced)


@rule("aten.max.other", "aten.min.other")
def extreme_of_two(call: Call) -> Dims:
    return broadcast(call, call.tensors())


_IMAGE_OPS = """
max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa
_upsample_bicubic2d_aa reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
""".split()


@rule(*overloads(*_IMAGE_OPS))
def pool(call: Call) -> Dims:
    """Pooling, resizing and padding of images: channels pass through, image sizes are fixed."""
    dims, shape = call.dims_of(call.node.args[0]), call.shape
    image = _image_rank(call)
    call.fix(dims[-image:], "image size")
    return (*dims[:-image], *(call.fixed(size, "image size") for size in shape[-image:]))


def _image_rank(call: Call) -> int:
    """The number of image dimensions: what a kernel, output or padding argument counts, else rank - 2."""
    return len(call.dims_of(call.node.args[0])) - 2 if len(call.dims_of(call.node.args[0])) > 3 else _flat_rank(call)


def _flat_rank(call: Call) -> int:
    """A three-dimensional input is [N, C, L] or, for image ops, [C, H, W]: sizes that change tell."""
    old = [algebra.size_of(d) for d in call.dims_of(call.node.args[0])]
    return 1 if old[-2] == call.shape[-2] else 2


@rule("aten.cumsum.default", "aten.cumprod.default", "aten.diff.default", "aten.logcumsumexp.default")
def scan(call: Call) -> Dims:
    """Order matters along the scanned dimension."""
    dims = list(call.dims("self"))
    at = call.axis("dim", len(dims))
    call.fix([dims[at]], "it is scanned in order")
    if call.shape[at] != algebra.size_of(dims[at]):
        dims[at] = call.fixed(call.shape[at], "scanned in order")
    return tuple(dims)


@rule("aten.sort.default", "aten.sort.stable", "aten.topk.default")
def order(call: Call) -> list[Dims]:
    dims = list(call.dims("self"))
    at = call.axis("dim", len(dims))
    call.fix([dims[at]], "it is put in the order of its values")
    dims[at] = call.fixed(call.shape[at], "in the order of values")
    return [tuple(dims), tuple(dims)]


@rule("aten.argsort.default", "aten.argsort.stable")
def argsort(call: Call) -> Dims:
    dims = call.dims("self")
    call.fix([dims[call.axis("dim", len(dims))]], "it is put in the order of its values")
    return dims


@rule("aten.tril.default", "aten.triu.default")
def triangle(call: Call) -> Dims:
    dims = call.dims("self")
    call.fix(dims[-2:], "positions above or below a diagonal are cleared")
    return dims


@rule("aten.cosine_similarity.default", "aten.pairwise_distance.default")
def similarity(call: Call) -> Dims:
    left, right = call.dims_of(call.node.args[0]), call.dims_of(call.node.args[1])
    call.unify_all(left, right)
    at = call.get("dim", -1) % len(left)
    mark(left[at], "summed")
    return left[:at] + left[at + 1 :]
