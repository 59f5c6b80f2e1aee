"""Rules of ops that work element by element: dimensions broadcast and stay what they are."""

from __future__ import annotations

import torch

from sortify.axes.algebra import UNIT, Expr
from sortify.axes.rules.table import Call, Dims, overloads, rule

# Ops whose output element depends on the elements at the same (broadcast) place alone.
PACKETS = """
abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor
ceil celu clamp clamp_max clamp_min copysign cos cosh deg2rad div elu eq erf erfc erfinv exp exp2 expm1 floor
floor_divide fmod ge gelu gt hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan le leaky_relu lerp
lgamma log log10 log1p log2 log_sigmoid logical_and logical_not logical_or logical_xor logit lt masked_fill
maximum minimum mish mul nan_to_num ne neg pow rad2deg reciprocal relu relu6 remainder round rsqrt rsub selu
sigmoid sign silu sin sinc sinh softplus softshrink sqrt square sub tan tanh threshold trunc where xlogy
__and__ __or__ __xor__ true_divide subtract multiply divide negative float_power gelu_
absolute angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh bitwise_left_shift bitwise_right_shift clip complex
digamma fix fmax fmin frac gcd greater greater_equal heaviside hypot i0 igamma igammac imag isclose isneginf isposinf
isreal lcm ldexp less less_equal logaddexp logaddexp2 nextafter not_equal polar polygamma real rrelu sgn signbit
special_bessel_j0 special_bessel_j1 special_digamma special_entr special_erf special_erfc special_erfcx special_erfinv
special_exp2 special_expit special_expm1 special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p
special_log_ndtr special_logit special_ndtr special_ndtri special_psi special_sinc special_xlog1py special_xlogy
__lshift__ __rshift__ __ilshift__ __irshift__ __iand__ __ior__ __ixor__
""".split()

# Ops that copy, convert or randomly drop elements, or fill a tensor of the same shape.
COPIES = """
alias bernoulli clone contiguous detach dropout feature_dropout alpha_dropout feature_alpha_dropout
empty_like fill full_like lift_fresh lift_fresh_copy normal_functional ones_like positive rand_like randn_like
requires_grad to type_as uniform zero zeros_like _to_copy conj resolve_conj resolve_neg exponential
cauchy geometric log_normal random conj_physical
""".split()


def broadcast(call: Call, operands: list[Dims]) -> Dims:
    """Align from the right as torch does; size 1 stretches, everything else is the same dimension."""
    rank = max((len(dims) for dims in operands), default=0)
    result: list[Expr] = []
    for place in range(-rank, 0):
        present = [dims[place] for dims in operands if len(dims) >= -place and dims[place] is not UNIT]
        for other in present[1:]:
            call.unify(present[0], other)
        result.append(present[0] if present else UNIT)
    return tuple(result)


def _existing(packets: list[str]) -> list[str]:
    return overloads(
        *(name for name in packets if hasattr(torch.ops.aten, name) or hasattr(torch.ops.aten, f"{name}_"))
    )


def _tensor_in_tensor_out(names: list[str]) -> list[str]:
    """The overloads that take a tensor and return one: `pow.Scalar(2, x)` does, `add.int` does not."""
    kept = []
    for name in names:
        _, packet, overload = name.split(".")
        schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
        takes = any(str(argument.type) == "Tensor" for argument in schema.arguments)
        if takes and [str(result.type) for result in schema.returns] == ["Tensor"]:
            kept.append(name)
    return kept


POINTWISE = _tensor_in_tensor_out(_existing(sorted(set(PACKETS))))
SAME_SHAPE = [*_tensor_in_tensor_out(_existing(sorted(set(COPIES)))), "aten.normal_.default"]


@rule(*POINTWISE)
def pointwise(call: Call) -> Dims:
    return broadcast(call, call.tensors())


@rule(*SAME_SHAPE)
def same_shape(call: Call) -> Dims:
    """The first tensor gives the shape; probabilities are its own, a second tensor (`type_as`) only gives its type."""
    dims = call.dims_of(call.node.args[0])
    return broadcast(call, [dims, call.dims("p")])


@rule("aten.copy_.default", "aten.copy.default")
def copy(call: Call) -> Dims:
    """The second tensor, broadcast to the first, is written over it."""
    dims = call.dims("self")
    broadcast(call, [dims, call.dims("src")])
    return dims


@rule("aten.broadcast_tensors.default")
def broadcast_tensors(call: Call) -> list[Dims]:
    """All tensors, stretched to one shape."""
    operands = [call.dims_of(tensor) for tensor in call["tensors"]]
    return [broadcast(call, operands) for _ in operands]


@rule("aten.native_dropout.default")
def native_dropout(call: Call) -> list[Dims]:
    """The result and the mask of what was kept."""
    return [call.dims("input"), call.dims("input")]


@rule("aten.div.out", "aten.mul.out", "aten.add.out", "aten.sub.out", "aten.copy.out", "aten.clamp_min.out")
def kept_for_later(call: Call) -> Dims:
    """Written to a tensor that the caller keeps, as spectral norms keep their vectors from call to call.

    A part of what the full network left there is not what the sub-network would have left.
    """
    for dims in call.tensors():
        call.fix(dims, "its result is kept from call to call, and is that of one size only")
    return call.dims("out")


@rule("aten.prelu.default")
def prelu(call: Call) -> Dims:
    """input [N, C, ...], weight [C] or [1]."""
    dims, (weight,) = call.dims("self"), call.dims("weight")
    if weight is not UNIT:
        call.unify(dims[1 if len(dims) > 1 else 0], weight)
    return dims


@rule(
    *[
        f"aten.{name}.{overload}"
        for name in ("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax")
        for overload in getattr(torch.ops.aten, name).overloads()
        if overload in ("int", "default")
    ]
)
def softmax(call: Call) -> Dims:
    """Normalises over a dimension in an order that does not matter: permutations pass through."""
    return call.dims("self")
