"""The sizes that the tracer saw, as counts times symbols."""

from __future__ import annotations

from functools import lru_cache

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

from sortify.axes.algebra import Size
from sortify.graph.symbols import known_sizes, simplified


def sizes_of(value: torch.Tensor) -> tuple[Size, ...]:
    """The sizes of a traced tensor."""
    return tuple(size_of_dimension(s) for s in value.shape)


def size_of_dimension(value: int | torch.SymInt) -> Size:
    """A dimension of a fake tensor as a count times symbols; anything else is one opaque symbol."""
    if isinstance(value, int):
        return Size(value)
    known = known_sizes(value.node.shape_env)
    return size_of_expression(simplified(value.node.expr).xreplace(known) if known else value.node.expr)


@lru_cache(maxsize=65536)
def size_of_expression(expression: sympy.Expr) -> Size:
    """A product as a count times symbols, with at most one factor that is itself an expression."""
    expression = simplified(expression)
    if expression.is_Integer:
        return Size(int(expression))
    if expression.is_Add:
        count, rest = expression.as_content_primitive()
        return Size(int(count), (str(rest),)) if count.is_Integer else Size(1, (str(expression),))
    count, factors = expression.as_coeff_mul()
    symbols, opaque = list[str](), list[str]()
    for factor in factors:
        base, exponent = factor.as_base_exp()
        if base.is_Symbol and exponent.is_Integer and exponent > 0:
            symbols += [str(base)] * int(exponent)
        elif isinstance(factor, FloorDiv):
            opaque.append(str(factor))
        else:
            return Size(1, (str(expression),))
    if not count.is_Integer or len(opaque) > 1:
        return Size(1, (str(expression),))
    return Size(int(count), tuple(sorted(symbols + opaque)))
