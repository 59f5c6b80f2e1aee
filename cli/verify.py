"""`sortify verify`: the files are what was saved, and the proof of the conversion holds for the weights of now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import SORTED, Directory, Verbose
from .show import proof_table, say, show

if TYPE_CHECKING:
    import sortify
else:
    from .lazy import sortify


def run(dir: Directory = SORTED, verbose: Verbose = False) -> None:
    """Check the files by their checksums, and the model by running it: identity, permutation, slice = extraction."""
    report = sortify.load(dir, verify=True).verify()
    show(proof_table(report))
    if not report.passed:
        names = ", ".join(row.name for row in report.rows if not row.passed)
        raise sortify.ProofError(f"{dir}: the proof fails: {names}")
    say(f"{dir}: all {len(report.rows)} checks passed")
