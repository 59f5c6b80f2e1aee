"""Whole-number arithmetic and comparisons written as text, as torch writes the sizes of a traced graph.

Texts are read, never run: what is not understood is refused.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

LARGEST_POWER = 8


def value_of(rule: str, values: Mapping[str, int]) -> int:
    """Compute a rule.

    Raises:
        ValueError: it is not understood, or gives no whole number.
        ArithmeticError: it divides by zero.
    """
    found = _computed(rule, values)
    if found != int(found):
        raise ValueError(f"{found} is no whole number")
    return int(found)


def holds(condition: str, values: Mapping[str, int]) -> bool:
    """Whether a condition holds.

    Raises:
        ValueError: it is not understood.
        ArithmeticError: it divides by zero.
    """
    return bool(_computed(condition, values))


def understood(text: str, values: Mapping[str, int]) -> bool:
    """Whether a rule or condition can be computed from these names."""
    try:
        _computed(text, values)
    except ArithmeticError:
        return True
    except ValueError:
        return False
    return True


def follows(rule: str, values: Mapping[str, int], size: int) -> bool:
    """Whether a rule is understood and gives `size` at these values."""
    try:
        return value_of(rule, values) == size
    except (ValueError, ArithmeticError):
        return False


def renamed(rule: str, names: Mapping[str, str]) -> str:
    """A rule with other names in it."""
    return re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), rule)


def _computed(text: str, values: Mapping[str, int]) -> Any:
    try:
        return _value(_parsed(text), values)
    except (SyntaxError, TypeError, RecursionError, MemoryError):
        raise ValueError("the rule is not understood") from None


@lru_cache(maxsize=4096)
def _parsed(text: str) -> ast.AST:
    return ast.parse(text, mode="eval").body


def _divided(a: Any, b: Any) -> Any:
    """Exact where it can be."""
    return a // b if isinstance(a, int) and isinstance(b, int) and b and a % b == 0 else a / b


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Div: _divided,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.BitAnd: lambda a, b: bool(a) and bool(b),
    ast.BitOr: lambda a, b: bool(a) or bool(b),
    ast.Invert: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "CeilDiv": lambda a, b: -(-a // b),
    "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv,
    "ToFloat": float,
    "FloorToInt": math.floor,
    "TruncToInt": math.trunc,
    "CeilToInt": math.ceil,
    "floor": math.floor,
    "ceiling": math.ceil,
    "Eq": operator.eq,
    "Ne": operator.ne,
}


def _value(tree: ast.AST, values: Mapping[str, int]) -> Any:
    match tree:
        case ast.Constant(value=value) if type(value) in (int, float, bool):
            return value
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))) if 0 <= power <= LARGEST_POWER:
            return _value(left, values) ** power
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, values), _value(right, values))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(operand, values))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*[_value(each, values) for each in arguments])
    raise ValueError("the rule is not understood")
