"""`sortify report`: everything that is known, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import SORTED, Directory, Verbose
from .show import say

if TYPE_CHECKING:
    import sortify
else:
    from .lazy import sortify


def run(
    dir: Directory = SORTED,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PAGE", help="The page to write; report.html in DIR if not given."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write one HTML page, readable offline: training, evaluation, costs, axes, depth, what is fixed."""
    say(f"saved: {sortify.write_report(dir, output)}")
