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


@rule("aten._weight_norm.default")
def weight_norm(call: Call) -> Dims:
    """v * g / |v|: v of any shape, g its lengths, of size 1 in every dimension that the length sums over.

    A sub-network's weight has the length g by its own, shorter v: what a layer of that size with these v and g is.
    """
    return broadcast(call, [call.dims("v"), call.dims("g")])


@rule("aten._weight_norm_interface.default")
def weight_norm_and_lengths(call: Call) -> list[Dims]:
    return [weight_norm(call), call.dims("g")]


@rule("aten.native_layer_norm.default")
def native_layer_norm(call: Call) -> list[Dims]:
    """Like layer_norm, with the mean and the scale of every row."""
    dims: Dims = layer_norm(call)
    rows: Dims = (*dims[: -len(call["normalized_shape"])], *[UNIT] * len(call["normalized_shape"]))
    return [dims, rows, rows]


@rule("aten._fused_rms_norm.default")
def fused_rms_norm(call: Call) -> list[Dims]:
    dims, rows, _ = native_layer_norm(call)
    return [dims, rows]


# Ops that normalise and keep every element in its place.
NORMALISATIONS = frozenset(name for name, function in RULES.items() if function in (layer_norm, batch_norm, group_norm))

_REDUCTIONS = overloads(
    *"mean sum nansum amax amin prod all any logsumexp linalg_vector_norm norm frobenius_norm".split(),
    *"std var var_mean std_mean max min argmax argmin median nanmedian count_nonzero aminmax".split(),
    *"quantile nanquantile linalg_matrix_norm kthvalue mode".split(),
)


def _reduces(name: str) -> bool:
    """One tensor in: `max.other` takes two and works element by element, `max.dim` reduces."""
    _, packet, overload = name.split(".")
    schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
    tensors = [a for a in schema.arguments if str(a.type) == "Tensor"]
    named = any("str" in str(a.type) for a in schema.arguments if a.name == "dim")
    return len(tensors) == 1 and str(schema.arguments[0].type) == "Tensor" and not named


# Reductions that return positions.
_FINDING = frozenset(
    [
        *overloads("argmax", "argmin", "kthvalue", "mode"),
        *(f"aten.{name}.dim" for name in ("max", "min", "median", "nanmedian")),
    ]
)


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
    if str(call.node.target) in _FINDING:
        call.fix([dims[d] for d in chosen], "its positions are the result")
    kept = _kept(dims, chosen, bool(call.get("keepdim", False)))
    return [kept for _ in outputs] if isinstance(value, (list, tuple)) else kept


def _kept(dims: Dims, reduced: set[int], keepdim: bool) -> Dims:
    return tuple(UNIT if i in reduced else d for i, d in enumerate(dims) if keepdim or i not in reduced)


@rule("aten.max.other", "aten.min.other")
def extreme_of_two(call: Call) -> Dims:
    return broadcast(call, call.tensors())


@rule(*(n for n in overloads("cumsum", "cumprod", "logcumsumexp") if "dimname" not in n))
def scan(call: Call) -> Dims:
    """Order matters along the scanned dimension."""
    dims = call.dims("self")
    call.fix([dims[call.axis("dim", len(dims))]], "it is scanned in order")
    return dims


@rule("aten.cummax.default", "aten.cummin.default")
def extreme_so_far(call: Call) -> list[Dims]:
    """Values and positions."""
    dims = scan(call)
    return [dims, dims]


@rule("aten.diff.default")
def diff(call: Call) -> Dims:
    """Differences of neighbours, with more of them before and after where given; the other dimensions are the same."""
    dims = list(call.dims("self"))
    at = call.axis("dim", len(dims))
    for other in filter(None, (call.dims("self"), call.dims("prepend"), call.dims("append"))):
        call.fix([other[at]], "its neighbours are subtracted")
        call.unify_all([*dims[:at], *dims[at + 1 :]], [*other[:at], *other[at + 1 :]])
    dims[at] = call.fixed(call.shape[at], "differences of neighbours")
    return tuple(dims)


@rule(*overloads("trapezoid", "trapz", "cumulative_trapezoid"))
def trapezoid(call: Call) -> Dims:
    """Areas between neighbours along `dim`, all together or so far; x, their places, is along `dim` or as wide as y."""
    dims, places = list(call.dims("y")), call.dims("x")
    at = call.axis("dim", len(dims))
    own = dims.pop(at)
    call.fix([own], "its neighbours are added")
    if len(places) == 1:
        call.fix(places, "places of neighbours")
    elif places:
        full = [*[UNIT] * (len(dims) + 1 - len(places)), *places]
        call.fix([full.pop(at)], "places of neighbours")
        dims = list(broadcast(call, [tuple(dims), tuple(full)]))
    if len(call.shape) > len(dims):
        dims.insert(at, call.fixed(call.shape[at], "areas between neighbours"))
    return tuple(dims)


@rule(*overloads("renorm"))
def renorm(call: Call) -> Dims:
    """Each position of one dimension is scaled by its length over all others."""
    return call.dims("self")


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


def _losses() -> list[str]:
    wanted = "mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits".split()
    return overloads(*wanted, "soft_margin_loss", "poisson_nll_loss", "kl_div")


@rule(*_losses())
def loss(call: Call) -> Dims:
    """Element by element, then left so (reduction 0), or reduced to one number."""
    both = broadcast(call, call.tensors())
    return both if call.get("reduction", 1) == 0 else ()


@rule(*(f"aten.{name}.default" for name in ("cross_entropy_loss", "nll_loss_nd", "nll_loss", "nll_loss2d")))
def class_loss(call: Call) -> Dims:
    """self [C] or [N, C, *]; target numbers the classes, or (of the rank of self) holds their probabilities."""
    dims, target = list(call.dims("self")), list(call.dims("target"))
    at = min(1, len(dims) - 1)
    counted = [dims.pop(at), *call.dims("weight"), *([target.pop(at)] if len(target) > len(dims) else [])]
    call.fix(counted, "it is numbered by targets")
    call.unify_all(dims, target)
    return tuple(dims) if call.get("reduction", 1) == 0 else ()


@rule("aten.cosine_similarity.default", "aten.pairwise_distance.default")
def similarity(call: Call) -> Dims:
    """Two tensors that broadcast, compared along `dim` (distances: the last one)."""
    both = broadcast(call, call.tensors())
    at = call.get("dim", -1) % len(both)
    mark(both[at], "summed")
    return _kept(both, {at}, bool(call.get("keepdim", False)))
