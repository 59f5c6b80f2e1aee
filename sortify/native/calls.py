"""Calls of constructors: noted while a class is made, as plain settings, and as code again."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def noting(kind: type[nn.Module]) -> Iterator[list[dict[str, Any]]]:
    """The arguments with which a class is called meanwhile, by name."""
    calls, real = list[dict[str, Any]](), kind.__init__
    signature = inspect.signature(real)
    rest = {p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD}

    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs).arguments
        calls.append({key: value for key, value in list(bound.items())[1:] if key not in rest})
        for name in rest & bound.keys():
            calls[-1].update(bound[name])
        real(self, *args, **kwargs)

    kind.__init__ = init  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        kind.__init__ = real  # type: ignore[method-assign]


def defaults(kind: type[nn.Module]) -> dict[str, Any]:
    """The defaults of a constructor; arguments that a class hands on have theirs where they are named."""
    given: dict[str, Any] = {}
    for each in reversed(kind.__mro__):
        if "__init__" in vars(each):
            known = inspect.signature(each).parameters.values()
            given |= {p.name: p.default for p in known if p.default is not p.empty}
    return given


# -- values as settings


def is_plain(value: Any) -> bool:
    """Whether a value is what JSON can hold."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def plain(value: Any) -> Any:
    """A value as settings: lists for tuples, of an object its arguments, None for what stays as it is."""
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if is_plain(value):
        return value
    arguments = arguments_of(value)
    return None if arguments is None else {name: plain(part) for name, part in arguments.items()}


def restored(value: Any, wanted: Any) -> Any:
    """A value like `value` that has other settings.

    Raises:
        ValueError: a list of objects would have another length.
        Exception: whatever a class says of its arguments.
    """
    if isinstance(value, (list, tuple)):
        if is_plain(value) and len(value) != len(wanted):
            return type(value)(wanted)
        return type(value)(restored(part, new) for part, new in zip(value, wanted, strict=True))
    if is_plain(value):
        return wanted
    arguments = arguments_of(value)
    if arguments is None:
        return value
    return type(value)(**{name: restored(part, wanted[name]) for name, part in arguments.items()})


def arguments_of(value: Any) -> dict[str, Any] | None:
    """The arguments that make an object like this one; None where its attributes do not tell them."""
    if isinstance(value, (type, nn.Module)) or callable(value) or not hasattr(value, "__dict__"):
        return None
    found: dict[str, Any] = {}
    for parameter in inspect.signature(type(value)).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return None
        if parameter.name in vars(value):
            found[parameter.name] = vars(value)[parameter.name]
        elif parameter.default is parameter.empty:
            return None
    try:
        again = type(value)(**found)
    except Exception:  # whatever the class says of them
        return None
    return found if vars(again) == vars(value) else None


# -- values as code


def expression(value: Any) -> str | None:
    """Code that makes a value, with modules by their full names; None where there is none."""
    if isinstance(value, (list, tuple)):
        parts = [expression(part) for part in value]
        inner = ", ".join(part for part in parts if part is not None)
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        left, right = "()" if isinstance(value, tuple) else "[]"
        return None if None in parts else f"{left}{inner}{comma}{right}"
    if is_plain(value):
        return repr(value)
    if isinstance(value, functools.partial):
        return _call("functools.partial", [value.func, *value.args], value.keywords)
    if callable(value):
        return _named(value)
    arguments, kind = arguments_of(value), _named(type(value))
    return None if arguments is None or kind is None else _call(kind, [], arguments)


def _call(function: str, args: list[Any], kwargs: Mapping[str, Any]) -> str | None:
    given = [expression(value) for value in args]
    named = {name: expression(value) for name, value in kwargs.items()}
    if None in given or None in named.values():
        return None
    return f"{function}({', '.join([*map(str, given), *(f'{name}={code}' for name, code in named.items())])})"


def _named(value: Any) -> str | None:
    """Where a class or function is to be found."""
    place, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    try:
        found: Any = importlib.import_module(str(place))
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return f"{place}.{name}" if found is value else None


def modules_of(value: Any) -> set[str]:
    """The modules that the code of a value names."""
    if isinstance(value, (list, tuple)):
        return set().union(*map(modules_of, value))
    if is_plain(value):
        return set()
    if isinstance(value, functools.partial):
        return {"functools"}.union(*map(modules_of, [value.func, *value.args, *value.keywords.values()]))
    if callable(value):
        return {str(value.__module__)}
    return {type(value).__module__}.union(*map(modules_of, (arguments_of(value) or {}).values()))
