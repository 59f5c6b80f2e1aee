"""The sizes that torch's tracer leaves open, and what it took for granted about them.

The tracer writes sizes as expressions over symbols. While it traces it decides how the code goes on, and notes what
must hold of the sizes for that: `Eq((s0 + 63)//64, 1)` where a loop ran once. Padding up to a multiple of a number
comes in several spellings that sympy does not see through; `simplified` writes them as one product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

Place = tuple[int, int]
"""Number of the input tensor, dimension."""


@lru_cache(maxsize=65536)
def simplified(expression: sympy.Basic) -> sympy.Basic:
    """The same value, with padded sizes as products."""
    return expression.replace(_is_padded, _unpadded)


def _is_padded(expression: sympy.Basic) -> bool:
    return isinstance(expression, sympy.Add) and _split(expression) is not None


def _unpadded(expression: sympy.Add) -> sympy.Expr:
    found = _split(expression)
    assert found is not None
    whole, multiple, more = found
    return multiple * FloorDiv(whole, multiple) + more


def _split(expression: sympy.Add) -> tuple[sympy.Expr, sympy.Integer, sympy.Expr] | None:
    """For the next multiple of m from s on, `s + (-s) % m`: `s + m - 1`, m, 0; for `s - s % m`: s, m, 0.

    A number that is added to either comes third.
    """
    for term in expression.args:
        rest = expression - term
        sign, remainder = term.as_coeff_Mul()
        if not isinstance(remainder, (Mod, PythonMod)) or not remainder.args[1].is_Integer:
            continue
        inner, multiple = remainder.args
        for more in dict.fromkeys((sympy.S.Zero, rest.as_coeff_Add()[0])):
            own = rest - more
            up = (-own, *(multiple - kind(own, multiple) for kind in (Mod, PythonMod)))
            if sign == 1 and inner in up:
                return own + multiple - 1, multiple, more
            if sign == -1 and inner == own:
                return own, multiple, more
    return None


def hint(size: int | torch.SymInt) -> int:
    """The size of a dimension at the example inputs; 1 where only the data decide it."""
    known = size if isinstance(size, int) else cast("int | None", size.node.hint)
    return 1 if known is None else int(known)


def known_sizes(environment: Any) -> Mapping[sympy.Expr, sympy.Integer]:
    """Expressions that the tracer took for numbers: where `Eq((s0 + 63)//64, 1)` is a condition, it writes 1."""
    found = _KNOWN.get(environment)
    if found is None or found[0] != len(environment.guards):
        guards = {simplified(environment.replace(guard.expr)) for guard in environment.guards}
        equal = {g.lhs: g.rhs for g in guards if isinstance(g, sympy.Eq) and g.rhs.is_Integer and g.lhs.free_symbols}
        found = _KNOWN[environment] = len(environment.guards), equal
    return found[1]


_KNOWN: WeakKeyDictionary[Any, tuple[int, Mapping[sympy.Expr, sympy.Integer]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Traced:
    """The open sizes of the inputs of one traced graph.

    Attributes:
        places: every open dimension -> its size, an expression over `s0_1` (dimension 1 of input tensor 0) and the
            like; where that is its own name, others follow from it.
        conditions: what must hold for the graph to be what the code would do, over the same names.
    """

    places: Mapping[Place, str] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()


def traced(exported: fx.GraphModule) -> Traced:
    """What the tracer noted about the sizes of the inputs of an exported module."""
    names: dict[sympy.Symbol, sympy.Expr] = {}
    places: dict[Place, str] = {}
    conditions: dict[str, None] = {}
    environment: Any = None
    for place, size in _open_sizes(exported.graph):
        environment = size.node.shape_env
        expression = environment.replace(size.node.expr)
        own = sympy.Symbol(name_of(place), positive=True, integer=True)
        count, symbol = expression.as_coeff_Mul()
        if symbol.is_Symbol and symbol not in names:
            names[symbol], places[place] = FloorDiv(own, count), str(own)
            conditions |= {str(sympy.Eq(Mod(own, count), 0)): None} if count != 1 else {}
        elif expression.free_symbols <= names.keys():
            places[place] = str(simplified(expression.xreplace(names)))
    guards = {environment.replace(guard.expr): None for guard in environment.guards} if environment else {}
    for guard in guards:
        if guard.free_symbols and guard.free_symbols <= names.keys():
            conditions[str(simplified(guard.xreplace(names)))] = None
    conditions.pop("True", None)
    return Traced(places, tuple(conditions))


def name_of(place: Place) -> str:
    """How conditions call the size of a dimension of an input tensor."""
    return f"s{place[0]}_{place[1]}"


def _open_sizes(graph: fx.Graph) -> Iterator[tuple[Place, torch.SymInt]]:
    inputs = [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]
    tensors: list[Any] = [value for value in inputs if isinstance(value, torch.Tensor)]
    for number, tensor in enumerate(tensors):
        for dim, size in enumerate(tensor.shape):
            if isinstance(size, torch.SymInt) and not size.node.expr.is_number:
                yield (number, dim), size
