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
""".split()

# Ops that copy, convert or randomly drop elements, or fill a tensor of the same shape.
COPIES = """
alias bernoulli clone contiguous detach dropout feature_dropout alpha_dropout feature_alpha_dropout
empty_like fill full_like lift_fresh lift_fresh_copy normal_functional ones_like positive rand_like randn_like
requires_grad to type_as uniform zero zeros_like _to_copy conj resolve_conj resolve_neg exponential
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
SAME_SHAPE = _tensor_in_tensor_out(_existing(sorted(set(COPIES))))


@rule(*POINTWISE)
def pointwise(call: Call) -> Dims:
    return broadcast(call, call.tensors())


@rule(*SAME_SHAPE)
def same_shape(call: Call) -> Dims:
    """The first tensor gives the shape; probabilities are its own, a second tensor (`type_as`) only gives its type."""
    dims = call.dims_of(call.node.args[0])
    return broadcast(call, [dims, call.dims("p")])


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
        for name in ("softmax", "log_softmax", "_softmax", "_log_softmax")
        for overload in getattr(torch.ops.aten, name).overloads()
        if overload in ("int", "default")
    ]
)
def softmax(call: Call) -> Dims:
    """Normalises over a dimension in an order that does not matter: permutations pass through."""
    return call.dims("self")
