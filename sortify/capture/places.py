"""Places in source files, told as Python finds them: what is saved or reported names no folder of this machine."""

from __future__ import annotations

import sys
import traceback
from functools import lru_cache
from pathlib import Path

import torch


def seen_from_here(file: str) -> str:
    """A source file as Python finds it: what is saved names no folder of this machine.

    Relative to the place of imports, or to the working folder, that is nearest to it; else its name alone.
    """
    return _nearest(file, (*sys.path, str(Path.cwd())))


@lru_cache
def _nearest(file: str, places: tuple[str, ...]) -> str:
    path = Path(file)
    folders = {Path(place or ".").resolve() for place in places} - {Path(path.anchor)}
    found = [str(path.relative_to(folder)) for folder in folders if path.is_relative_to(folder)]
    return min(found, key=len, default=path.name)


def line_of(error: BaseException) -> str:
    """The innermost line of the user's code that an error went through, as ` (file:line)`."""
    trace = traceback.extract_tb(error.__traceback__)
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    own = [frame for frame in trace if not frame.filename.startswith((*inside, "<"))]
    return f" ({seen_from_here(own[-1].filename)}:{own[-1].lineno})" if own else ""
