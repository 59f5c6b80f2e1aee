"""`sortify profile`: latency and peak memory of sub-networks on this machine, measured and predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import SORTED, Device, Directory, Verbose, parse_sizes, read_device
from .show import amount, progress_bar, say, show, table, warn

if TYPE_CHECKING:
    import sortify
else:
    from .lazy import sortify

COARSE = 0.1
"""A held-out error of predictions that is worth a warning."""


def run(
    dir: Directory = SORTED,
    device: Device = "auto",
    sizes: Annotated[
        str, typer.Option("--sizes", metavar="SIZES", help="Calls of batch=1,sequence=128, not of the example's sizes.")
    ] = "",
    subnets: Annotated[int, typer.Option("--subnets", metavar="N", min=4, help="Sub-networks to measure.")] = 24,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time to measure for.")] = 60.0,
    verbose: Verbose = False,
) -> None:
    """Measure latency and memory of a sample of sub-networks: budgets such as '5 ms' and '40 MB' go by it."""
    model = sortify.load(dir)
    with progress_bar() as bar:
        line = bar.add_task("measuring", total=None)
        found = model.profile(
            read_device(device),
            subnets,
            seconds,
            lambda done, of: bar.update(line, completed=done, total=of),
            **parse_sizes(sizes),
        )
    show(_table(model, found))
    say(sortify.describe.profile_text(found))
    for name, fit in (("latency", found.latency), ("memory", found.memory)):
        if fit.error > COARSE:
            warn(
                f"{name} is predicted {fit.error:.0%} off in the median; measure again on a quieter machine, or longer"
            )
    model.save(dir)
    say(f"saved: {dir}")


def _table(model: sortify.SortedModel, found: sortify.Profile) -> Any:
    numbers = ("ms", "spread", "predicted", found.throughput(1.0)[1], "MB", "predicted MB")
    made = table("sub-network", *numbers, right=numbers, title="one call, the median of all rounds")
    for row in found.rows:
        told = model.measured_cost(row.subnet)
        made.add_row(
            str(row.subnet),
            f"{1e3 * row.latency:.3g}",
            f"{row.spread:.0%}",
            f"{1e3 * told.latency:.3g}",
            amount(found.throughput(row.latency)[0]),
            f"{row.memory / 1e6:.3g}",
            f"{told.memory / 1e6:.3g}",
        )
    return made
