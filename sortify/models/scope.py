"""What `with` blocks set on a model, for what runs inside them: in their own thread, or asyncio task, alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

ACTIVE, STANDING_IN, TOGETHER, NOTED = "active", "standing in", "together", "noted"
"""What blocks set on a model."""


@dataclass(frozen=True, eq=False)
class _Block:
    """An open `with` block: what it has set, and which one it is."""

    value: Any
    number: int


Name = tuple[int, str]
"""Which model, and what is set."""
_OPEN = ContextVar[Mapping[Name, tuple[_Block, ...]] | None]("sortify", default=None)
"""The open blocks, the innermost last. Never changed in place: another context may hold the same mapping."""
_NUMBERS = itertools.count()


class Scope:
    """The values that open blocks have set on one model.

    They are kept in a context variable: asyncio tasks begin with what is set where they are made, plain threads with
    nothing, and neither sees what another one sets. A block takes out its own value when it ends, in whatever order
    blocks end. Copies of a scope begin with nothing.
    """

    def __init__(self) -> None:
        self._number = next(_NUMBERS)

    def __reduce__(self) -> tuple[Any, ...]:
        return Scope, ()

    def get(self, name: str, otherwise: Any = None) -> Any:
        """What the innermost block has set."""
        blocks = self._blocks(name)
        return blocks[-1].value if blocks else otherwise

    def replace(self, name: str, value: Any) -> bool:
        """Set another value until the innermost block ends; False where no block is open."""
        blocks = self._blocks(name)
        if blocks:
            self._put(name, (*blocks[:-1], replace(blocks[-1], value=value)))
        return bool(blocks)

    @contextmanager
    def set(self, name: str, value: Any) -> Iterator[None]:
        """Set a value for the length of a `with` block."""
        number = next(_NUMBERS)
        self._put(name, (*self._blocks(name), _Block(value, number)))
        try:
            yield
        finally:
            self._put(name, tuple(block for block in self._blocks(name) if block.number != number))

    def _blocks(self, name: str) -> tuple[_Block, ...]:
        known = _OPEN.get()
        return () if known is None else known.get((self._number, name), ())

    def _put(self, name: str, blocks: tuple[_Block, ...]) -> None:
        known = dict(_OPEN.get() or {})
        known.pop((self._number, name), None)
        if blocks:
            known[self._number, name] = blocks
        _OPEN.set(known)
