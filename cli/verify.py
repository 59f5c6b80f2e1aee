"""`sortify verify`: the proof of the conversion, run again on the weights of now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import SORTED, Directory, Verbose
from .show import say, show, table

if TYPE_CHECKING:
    import sortify
else:
    from .lazy import sortify


def run(dir: Directory = SORTED, verbose: Verbose = False) -> None:
    """Check by running the model: identity, permutation of all axes, slice = extraction."""
    report = sortify.load(dir).verify()
    made = table("check", "error", "allowed", "", "what", right=("error", "allowed"))
    for row in report.rows:
        made.add_row(row.name, f"{row.error:.1e}", f"{row.tolerance:.0e}", "ok" if row.passed else "FAILED", row.note)
    show(made)
    if not report.passed:
        names = ", ".join(row.name for row in report.rows if not row.passed)
        raise sortify.ProofError(f"{dir}: the proof fails: {names}")
    say(f"{dir}: all {len(report.rows)} checks passed")
