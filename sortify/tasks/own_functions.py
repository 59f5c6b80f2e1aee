"""What users name as `package.module:function`: found, and called with what it takes.

Naming a function is trusting it: its module is imported, which runs its code.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sortify.errors import DataError


def imported(text: str, expected: str) -> Any:
    """Import what `package.module:name` names, looking in the working folder too.

    Args:
        text: the name.
        expected: what else could stand there, for errors.

    Raises:
        DataError: there is no such module, or no such name in it.
    """
    module, _, name = text.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise DataError(f"{text}: no module named '{error.name}'; expected {expected}") from None
    except ValueError:
        raise DataError(f"{text}: no such data; expected {expected}") from None
    finally:
        sys.path.remove(here)
    if found is None:
        raise DataError(f"{text}: module '{module}' has no function '{name}'")
    return found


def called_with(function: Callable[..., Any], **known: Any) -> Any:
    """Call a function with those of the known values that it takes by name."""
    taken = inspect.signature(function).parameters
    return function(**{name: value for name, value in known.items() if name in taken})
