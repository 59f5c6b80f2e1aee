"""Rules of the user's own: for custom ops, or instead of a rule of the table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from sortify.axes.rules.table import RULES, Call, find_op
from sortify.errors import AxesError


def register_rule(
    op: str | torch._ops.OpOverload, rule: Callable[[Call], Any], *, replace: bool = False
) -> Callable[[Call], Any]:
    """Tell what an op does to dimensions, for all conversions from now on.

    A rule gets a `Call`: `call.dims("x")` are the dimensions of the tensor argument `x`, `call["dim"]` is any other
    argument. It says which dimensions are one and the same (`call.unify`), which no sub-network may cut (`call.fix`),
    which integer arguments are sizes (`call.literal`), and returns the dimensions of the output: a tuple for a tensor,
    a list of tuples for several. What it says is checked by the proof of every conversion that uses it.

    Args:
        op: the overload, as `namespace.name.overload` ("mylib.scale.default") or as the object in `torch.ops`.
        rule: a function of one argument.
        replace: take the place of a rule that the op has.

    Returns:
        The rule.

    Raises:
        AxesError: there is no such op, it has a rule already, or `rule` does not take one argument.
    """
    name = str(op)
    try:
        find_op(name)
    except ValueError as error:
        raise AxesError(
            f"register_rule: {error}; expected namespace.name.overload, such as aten.relu.default, of a library that "
            "is imported"
        ) from error
    try:
        inspect.signature(rule).bind(None)
    except TypeError as error:
        raise AxesError(f"register_rule: the rule for {name} must take one argument, the call: {error}") from error
    if name in RULES and not replace:
        raise AxesError(f"register_rule: {name} has a rule; say replace=True to put yours in its place")
    RULES[name] = rule
    return rule
