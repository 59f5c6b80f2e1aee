"""What several commands print: tables, shares, and messages that go past the tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    import sortify
else:
    from .lazy import sortify

WIDE = 140
"""Columns where there is no terminal."""


def console(*, error: bool = False) -> Console:
    """Standard output, or standard error, as wide as the terminal or wide enough for a file."""
    found = Console(stderr=error, highlight=False, emoji=False, markup=False)
    if found.is_terminal or "COLUMNS" in os.environ:
        return found
    return Console(stderr=error, highlight=False, emoji=False, markup=False, width=WIDE)


def speaks() -> bool:
    """Whether this process prints: of several that train together, the first."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def working(what: str) -> Iterator[None]:
    """Something that turns while a step without a length of its own goes on; nothing where no one looks."""
    out = console(error=True)
    with out.status(what) if speaks() and out.is_terminal else nullcontext():
        yield


def progress_bar() -> Progress:
    """A bar for steps that can be counted; nothing where no one looks."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    out = console(error=True)
    return Progress(*columns, console=out, transient=True, disable=not (speaks() and out.is_terminal))


def say(text: str = "") -> None:
    """Print a line as it is: paths stay whole."""
    if speaks():
        typer.echo(text)


def warn(text: str) -> None:
    """Print one line beside the results."""
    if speaks():
        typer.echo(f"warning: {text}", err=True)


def show(table: Table) -> None:
    """Print a table."""
    if speaks():
        console().print(table)


def table(*columns: str, title: str | None = None, right: Sequence[str] = ()) -> Table:
    """An empty table; columns named in `right` hold numbers."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def amount(value: float) -> str:
    """A large number in three figures: 999, 1.23k, 45.6M, 7.89G."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            return f"{value:.0f}" if not unit else f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}P"


def counted(count: int, name: str, several: str | None = None) -> str:
    """`1 block`, `2 blocks`, `3 axes`."""
    return f"{count} {name if count == 1 else several or name + 's'}"


TITLES = {
    "params": "parameters",
    "flops": "FLOPs",
    "activation_bytes": "activation bytes",
    "cache_bytes": "cache bytes a token",
}


def cost_table(
    model: sortify.SortedModel, members: Mapping[str, sortify.Subnet], sizes: Mapping[str, int] | None = None
) -> Table:
    """The costs of some sub-networks, what share of the full network's they are, and for a call of which sizes."""
    profile, given = model.profiled, sizes or {}
    own = {} if profile is None else dict(profile.sizes)
    measured = profile is not None and all(own.get(name, size) == size for name, size in given.items())
    sizes = {**model.open_sizes, **given}
    full = model.cost(model.space.full, **sizes)
    metrics = ["params", "flops", "activation_bytes", *(["cache_bytes"] if full.cache_bytes else [])]
    columns = (*(TITLES[metric] for metric in metrics), *(("latency", "memory") if measured else ()))
    made = table("sub-network", "", *columns, right=columns)
    at = f"one call at {sortify.describe.sizes_text(sizes)}" if sizes else ""
    at += f"; latency and memory at {sortify.describe.sizes_text(own)}" if measured and own != sizes else ""
    made.caption = at or None
    made.caption_justify = "left"
    for name, member in members.items():
        cost = model.cost(member, **sizes)
        pairs = [(getattr(cost, metric), getattr(full, metric)) for metric in metrics]
        told = measured_texts(model, member) if measured else ()
        made.add_row(name, str(member), *(f"{amount(a)} ({a / max(1, b):.0%})" for a, b in pairs), *told)
    return made


def family_table(model: sortify.SortedModel, family: sortify.Family) -> Table:
    """The members of a family: what each costs and scores, how well it was written, and where."""
    scores = (family.metric,) if family.metric is not None else ()
    columns = (TITLES["params"], TITLES["flops"], *scores, "difference")
    made = table("budget", "sub-network", *columns, "format", "path", right=columns)
    full = model.cost(model.space.full, **family.sizes)
    for member in family.members:
        shares = [(getattr(member.cost, name), getattr(full, name)) for name in ("params", "flops")]
        costs = (f"{amount(own)} ({own / max(1, all):.0%})" for own, all in shares)
        score = ("-" if member.score is None else f"{member.score:.4g}",) if scores else ()
        error, form = f"{member.written.error:.1e}", member.written.form
        made.add_row(member.budget, str(member.subnet), *costs, *score, error, form, member.path)
    return made


def measured_texts(model: sortify.SortedModel, member: sortify.Subnet) -> tuple[str, str]:
    """Latency and memory as the profile predicts them."""
    told = model.measured_cost(member)
    return f"{1e3 * told.latency:.3g} ms", f"{amount(told.memory)}B"


def proof_table(report: sortify.Report) -> Table:
    """The checks of a proof, one a line."""
    made = table("check", "error", "allowed", "", "what", right=("error", "allowed"))
    for row in report.rows:
        made.add_row(row.name, f"{row.error:.1e}", f"{row.tolerance:.0e}", "ok" if row.passed else "FAILED", row.note)
    return made


def kept_table(model: sortify.SortedModel, name: str, subnet: sortify.Subnet) -> Table:
    """What a sub-network keeps, in words."""
    made = table("what", f"{name} keeps")
    for what, told in sortify.describe.kept(model, subnet):
        made.add_row(what, told)
    return made
