"""Checks that stand in for the real one in the tests of the runner: light, and importable by a fresh process."""

from __future__ import annotations

import os
import time
from typing import Any


def well(name: str) -> dict[str, Any]:
    """A pass."""
    return {"name": name, "zoo": "fake", "status": "pass", "pid": os.getpid()}


def badly(name: str) -> dict[str, Any]:
    """What the name says: take too long, take too much memory, die, raise; else pass."""
    if name.startswith("slow"):
        time.sleep(60)
    if name.startswith("large"):
        held = bytearray(300 * 2**20)
        held[:: 2**12] = b"x" * len(held[:: 2**12])
        time.sleep(60)
    if name.startswith("crash"):
        os._exit(7)
    if name.startswith("raise"):
        raise RuntimeError("told to")
    return well(name)
