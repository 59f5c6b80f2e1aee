"""Kinds of samplers and of objectives by name, to which users add their own."""

from __future__ import annotations

from typing import Any, TypeVar

from sortify.errors import TrainingError

Kind = TypeVar("Kind")


class Kinds(dict[str, Kind]):
    """Kinds of one sort by the name that the command line and `TrainConfig` take.

    Args:
        what: such as "a sampler", for errors.
        parts: that every kind has.
    """

    def __init__(self, what: str, *parts: str) -> None:
        super().__init__()
        self._what, self._parts = what, ("name", *parts)

    def add(self, kind: Any) -> None:
        """Add a kind under its own name.

        Raises:
            ValueError: the name is taken, or something is missing.
        """
        missing = [part for part in self._parts if not hasattr(kind, part)]
        if missing:
            raise ValueError(f"{self._what} needs {', '.join(missing)}; {kind.__name__} lacks them")
        if kind.name in self:
            raise ValueError(f"{self._what} named '{kind.name}' exists already")
        self[kind.name] = kind

    def find(self, name: str) -> Kind:
        """Return the kind of a name.

        Raises:
            TrainingError: none has it.
        """
        if name not in self:
            raise TrainingError(f"unknown {self._what.split()[-1]} '{name}'; there are {', '.join(sorted(self))}")
        return self[name]
