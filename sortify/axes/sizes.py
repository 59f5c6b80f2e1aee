"""The sizes that the tracer saw, as counts times symbols.

The tracer writes a size that hangs on an open one as an expression. Padding up to a multiple of a number comes in
several spellings that sympy does not see through; they are one product here, so that cutting the padded dimension
into its chunks is a split like any other.
"""

from __future__ import annotations

from functools import lru_cache

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from sortify.axes.algebra import Size


def sizes_of(value: torch.Tensor) -> tuple[Size, ...]:
    """The sizes of a traced tensor."""
    return tuple(size_of_dimension(s) for s in value.shape)


def size_of_dimension(value: int | torch.SymInt) -> Size:
    """A dimension of a fake tensor as a count times symbols; anything else is one opaque symbol."""
    return Size(value) if isinstance(value, int) else size_of_expression(value.node.expr)


@lru_cache(maxsize=65536)
def size_of_expression(expression: sympy.Expr) -> Size:
    """A product as a count times symbols, with at most one factor that is itself an expression."""
    expression = expression.replace(_is_padded, _unpadded)
    if expression.is_Integer:
        return Size(int(expression))
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


def _is_padded(expression: sympy.Basic) -> bool:
    return isinstance(expression, sympy.Add) and _split(expression) is not None


def _unpadded(expression: sympy.Add) -> sympy.Expr:
    found = _split(expression)
    assert found is not None
    whole, multiple = found
    return multiple * FloorDiv(whole, multiple)


def _split(expression: sympy.Add) -> tuple[sympy.Expr, sympy.Integer] | None:
    """For the next multiple of m from s on, `s + (-s) % m`, the pair `s + m - 1`, m; for `s - s % m` the pair s, m."""
    for term in expression.args:
        rest = expression - term
        sign, remainder = term.as_coeff_Mul()
        if not isinstance(remainder, (Mod, PythonMod)) or not remainder.args[1].is_Integer:
            continue
        inner, multiple = remainder.args
        if sign == 1 and (inner == -rest or any(inner == multiple - kind(rest, multiple) for kind in (Mod, PythonMod))):
            return rest + multiple - 1, multiple
        if sign == -1 and inner == rest:
            return rest, multiple
    return None
