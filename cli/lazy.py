"""sortify and torch, imported when a command first asks for something: they take seconds, and `--help` must not."""

from __future__ import annotations

import importlib
from typing import Any


class Later:
    """Stands for a module that is imported at the first use of one of its names."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)


sortify = Later("sortify")
torch = Later("torch")
