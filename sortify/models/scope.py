"""What `with` blocks set on a model, for what runs inside them: in their own thread, or asyncio task, alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

ACTIVE, STANDING_IN, TOGETHER, NOTED = "active", "standing in", "together", "noted"
"""What blocks set on a model."""
Name = tuple[int, str]
"""Which model, and what is set."""
Stack = tuple[tuple[int, Any], ...]
"""The values of the open blocks, the innermost last, each with the number of its block."""

_SET = ContextVar[Mapping[Name, Stack]]("sortify", default=MappingProxyType({}))
_NUMBERS = itertools.count()


class Scope:
    """The values that open blocks have set on one model.

    They are kept in a context variable, never changed in place: asyncio tasks begin with what is set where they are
    made, plain threads with nothing, and neither sees what another one sets. A block takes out its own value when it
    ends, in whatever order blocks end. Copies, and pickles, begin with nothing.
    """

    def __init__(self) -> None:
        self._number = next(_NUMBERS)

    def __reduce__(self) -> tuple[Any, ...]:
        return Scope, ()

    def get(self, name: str, otherwise: Any = None) -> Any:
        """What the innermost block has set."""
        stack = _SET.get().get((self._number, name))
        return stack[-1][1] if stack else otherwise

    def replace(self, name: str, value: Any) -> bool:
        """Set another value until the innermost block ends; False where no block is open."""
        stack = self._stack(name)
        if stack:
            self._put(name, (*stack[:-1], (stack[-1][0], value)))
        return bool(stack)

    @contextmanager
    def set(self, name: str, value: Any) -> Iterator[None]:
        """Set a value for the length of a `with` block."""
        block = next(_NUMBERS)
        self._put(name, (*self._stack(name), (block, value)))
        try:
            yield
        finally:
            self._put(name, tuple(each for each in self._stack(name) if each[0] != block))

    def _stack(self, name: str) -> Stack:
        return _SET.get().get((self._number, name), ())

    def _put(self, name: str, stack: Stack) -> None:
        key = (self._number, name)
        rest = {known: values for known, values in _SET.get().items() if known != key}
        _SET.set(MappingProxyType({**rest, key: stack} if stack else rest))
