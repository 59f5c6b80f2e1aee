"""Values, names and calls of a captured graph as Python source.

Graphs and names may come from a file of anybody. So nothing becomes source as it is: names are made of letters, digits
and underscores, strings go through `repr`, and what is not known is refused.
"""

from __future__ import annotations

import builtins
import keyword
import math
import operator
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from sortify.errors import SortifyError
from sortify.graph.graphs import target_name
from sortify.graph.structure import shorten

MODULES = ("builtins", "math", "operator", "Mapping", "Path", "Any", "torch", "F", "load_file", "nn")
"""Names that the source uses for itself."""
_INFIX: Mapping[Any, str] = types.MappingProxyType(
    {
        operator.add: "+",
        operator.sub: "-",
        operator.mul: "*",
        operator.floordiv: "//",
        operator.truediv: "/",
        operator.mod: "%",
        operator.pow: "**",
        operator.eq: "==",
        operator.ne: "!=",
        operator.lt: "<",
        operator.le: "<=",
        operator.gt: ">",
        operator.ge: ">=",
    }
)
_FUNCTIONS: Mapping[str, str] = types.MappingProxyType(
    {
        "sortify.device_type": "torch.device({0}).type",
        "torch.amp._enter_autocast": "torch.amp.autocast_mode._enter_autocast({0})",
        "torch.amp._exit_autocast": "torch.amp.autocast_mode._exit_autocast({0})",
        "torch.set_grad_enabled": "torch._C._set_grad_enabled({0})",
    }
)
"""Functions that are not spelled as their name."""
_METHODS = frozenset(
    {
        torch.ops.aten.view.default,
        torch.ops.aten.expand.default,
        torch.ops.aten.contiguous.default,
        torch.ops.aten.sym_size.int,
    }
)
"""Ops that are spelled as methods of their first argument."""
_RENAMED = types.MappingProxyType({"sym_size": "size"})
_OWN = ("aten", "prims")
"""Namespaces of operators that come with torch."""


class Names:
    """Identifiers, each handed out once, until it is free again."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), *MODULES, *taken}

    def new(self, wanted: str) -> str:
        """An identifier that is like `wanted` and that nothing else has."""
        plain = re.sub(r"[^A-Za-z0-9]+", "_", wanted).strip("_")
        plain = plain if plain[:1].isalpha() else f"v_{plain}".rstrip("_")
        number, found = 1, plain
        while found in self._taken:
            number += 1
            found = f"{plain}_{number}"
        self._taken.add(found)
        return found

    def free(self, names: Iterable[str]) -> None:
        """Let identifiers that were handed out be so again."""
        self._taken.difference_update(names)


def comment(text: str) -> str:
    """Text that can stand in a comment or a docstring: on one line, and without anything that ends either."""
    return re.sub(r"[^A-Za-z0-9_./ \-\[\]:,=<>()*%+]", "_", text)


def place(root: str, name: str) -> str:
    """A tensor by its dotted name in the state dict: `self.blocks[0].fc.weight`."""
    return root + "".join(_step(part) for part in name.split("."))


def is_name(text: str) -> bool:
    """Whether a text can stand for itself as a name."""
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text)


def _step(part: str) -> str:
    if part.isascii() and part.isdecimal() and str(int(part)) == part:
        return f"[{part}]"
    plain = is_name(part) and not part.startswith("_")
    return f".{part}" if plain and not hasattr(nn.Module, part) and part != "training" else f"[{part!r}]"


def literal(value: Any, names: Mapping[fx.Node, str]) -> str:
    """A value as source; `names` are the variables of nodes.

    Raises:
        SortifyError: of a kind that source cannot hold.
    """
    if isinstance(value, fx.Node):
        return names[value]
    if type(value) is float and not math.isfinite(value):
        return f"float({str(value)!r})"
    if value is None or type(value) in (bool, int, float, str):
        return repr(value)
    if type(value) in (torch.dtype, torch.layout, torch.memory_format):
        return repr(value)
    spell = _KINDS.get(type(value))
    if spell is None and isinstance(value, (list, tuple, dict)):  # kinds of torch.fx, which stand for plain ones
        spell = next(rule for kind, rule in _KINDS.items() if isinstance(value, kind))
    if spell is None:
        raise SortifyError(f"python: a {type(value).__name__} ({shorten(value)}) cannot be written as source")
    return spell(value, lambda part: literal(part, names))


Spell = Callable[[Any], str]


def _listed(values: Iterable[Any], spell: Spell) -> str:
    return ", ".join(map(spell, values))


_KINDS: dict[type[Any], Callable[[Any, Spell], str]] = {
    type(...): lambda value, spell: "...",
    complex: lambda value, spell: f"complex({spell(value.real)}, {spell(value.imag)})",
    slice: lambda value, spell: f"slice({_listed((value.start, value.stop, value.step), spell)})",
    torch.device: lambda value, spell: f"torch.device({str(value)!r})",
    torch.Size: lambda value, spell: f"torch.Size([{_listed(value, spell)}])",
    list: lambda value, spell: f"[{_listed(value, spell)}]",
    tuple: lambda value, spell: f"({_listed(value, spell)}{',' if len(value) == 1 else ''})",
    dict: lambda value, spell: "{" + ", ".join(f"{spell(key)}: {spell(part)}" for key, part in value.items()) + "}",
}


def call(node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    """The call of a node as source.

    Raises:
        SortifyError: it calls what torch alone does not have.
    """
    args = [literal(value, names) for value in node.args]
    given = [*args, *(f"{key}={literal(value, names)}" for key, value in node.kwargs.items())]
    if node.target is operator.getitem and not node.kwargs:
        return f"{_atom(args[0])}[{args[1]}]"
    if node.target in _INFIX and not node.kwargs:
        return f" {_INFIX[node.target]} ".join(map(_atom, args))
    if node.target is torch.ops.aten.slice.Tensor and not node.kwargs:
        return _sliced(*args)
    if isinstance(node.target, torch._ops.OpOverload):
        return _operator(node.target, given, named="self" in node.kwargs)
    name = target_name(node.target)
    if name in _FUNCTIONS:
        return _FUNCTIONS[name].format(", ".join(given))
    if not name.startswith(("builtins.", "math.", "operator.", "torch.")):
        raise SortifyError(f"python: {name} is no function of Python or torch; take another format")
    return f"{name}({', '.join(given)})"


def _sliced(tensor: str, dim: str = "0", start: str = "None", end: str = "None", step: str = "1") -> str:
    """A slice along one dimension as people write it: `x[:, 0:8]`."""
    begin, to = ("" if start in ("None", "0") else start), ("" if end in ("None", str(sys.maxsize)) else end)
    before = "..., " if dim == "-1" else ":, " * int(dim) if dim.isdecimal() else None
    if before is None:
        return f"torch.ops.aten.slice.Tensor({', '.join((tensor, dim, start, end, step))})"
    return f"{_atom(tensor)}[{before}{begin}:{to}{'' if step == '1' else f':{step}'}]"


def _atom(text: str) -> str:
    return text if re.fullmatch(r"\d+|[A-Za-z_][\w.]*", text) else f"({text})"


def _operator(target: torch._ops.OpOverload, given: Sequence[str], named: bool) -> str:
    """An operator as torch spells it for people where that is the same function, else as it is called inside."""
    space, _, name = target._schema.name.partition("::")
    if space not in _OWN:
        raise SortifyError(f"python: {space}::{name} is no operator of torch itself; take another format")
    rest = ", ".join(given)
    if target in _METHODS and not named:
        return f"{_atom(given[0])}.{_RENAMED.get(name, name)}({', '.join(given[1:])})"
    if space == "aten" and not named and not name.startswith("_"):
        if isinstance(getattr(torch, name, None), types.BuiltinFunctionType):
            return f"torch.{name}({rest})"
        if hasattr(torch._C._nn, name) and getattr(nn.functional, name, None) is getattr(torch._C._nn, name):
            return f"F.{name}({rest})"
    return f"torch.ops.{space}.{name}.{target._overloadname}({rest})"
