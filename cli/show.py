"""What several commands print: tables, shares, and messages that go past the tables."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import torch

    import sortify
else:
    from .lazy import torch

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
    at = f"one call at {sizes_text(sizes)}" if sizes else ""
    at += f"; latency and memory at {sizes_text(own)}" if measured and own != sizes else ""
    made.caption = at or None
    made.caption_justify = "left"
    for name, member in members.items():
        cost = model.cost(member, **sizes)
        pairs = [(getattr(cost, metric), getattr(full, metric)) for metric in metrics]
        told = measured_texts(model, member) if measured else ()
        made.add_row(name, str(member), *(f"{amount(a)} ({a / max(1, b):.0%})" for a, b in pairs), *told)
    return made


def measured_texts(model: sortify.SortedModel, member: sortify.Subnet) -> tuple[str, str]:
    """Latency and memory as the profile predicts them."""
    told = model.measured_cost(member)
    return f"{1e3 * told.latency:.3g} ms", f"{amount(told.memory)}B"


def sizes_text(sizes: Mapping[str, int]) -> str:
    """`batch=1, sequence=128`."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def profile_text(profile: sortify.Profile) -> str:
    """Where a profile was measured and how well it predicts, on one line."""
    facts = dict(profile.machine)
    place = ", ".join(f"{name} {facts[name]}" for name in ("device", "processor", "threads", "dtype") if name in facts)
    sizes = sizes_text(dict(profile.sizes))
    fits = ((name, fit) for name, fit in (("latency", profile.latency), ("memory", profile.memory)))
    off = "; ".join(f"{name} {fit.error:.1%} off in the median, {fit.worst:.1%} at most" for name, fit in fits)
    return f"profile ({place}{'; ' + sizes if sizes else ''}): each of {len(profile.rows)} from the others: {off}"


def proof_table(report: sortify.Report) -> Table:
    """The checks of a proof, one a line."""
    made = table("check", "error", "allowed", "", "what", right=("error", "allowed"))
    for row in report.rows:
        made.add_row(row.name, f"{row.error:.1e}", f"{row.tolerance:.0e}", "ok" if row.passed else "FAILED", row.note)
    return made


def ends(model: sortify.SortedModel) -> dict[str, sortify.Subnet]:
    """The full sub-network, half of every group, and the smallest."""
    space = model.space
    half = space.subnet(**dict.fromkeys(space.groups, 0.5))
    return {"full": space.full, "half of all": half, "smallest": space.smallest}


def alike(axes: Sequence[sortify.Axis]) -> list[list[sortify.Axis]]:
    """Axes of one kind, size and number of tensors whose names differ in numbers only, in the order of the first."""
    found: dict[object, list[sortify.Axis]] = {}
    for axis in axes:
        key = re.sub(r"\d+", "*", axis.name), axis.kind, axis.size, axis.levels, len(axis.parameters)
        found.setdefault(key, []).append(axis)
    return list(found.values())


def common_name(names: Sequence[str]) -> str:
    """Names that differ in numbers only as one pattern: a star for the numbers that differ."""
    parts = [re.split(r"(\d+)", name) for name in names]
    return "".join(own[0] if len(set(own)) == 1 else "*" for own in zip(*parts, strict=True))


def kept_table(model: sortify.SortedModel, name: str, subnet: sortify.Subnet) -> Table:
    """What a sub-network keeps, in words: `heads | 6 of 12 (12 axes)`, `depth | of layers the first 6 of 12 blocks`."""
    sizes, depths = dict(subnet.sizes), dict(subnet.depths)
    kinds: dict[str, Counter[tuple[int, int]]] = {}
    for axis in model.axes.values():
        kinds.setdefault(axis.kind, Counter())[axis.size, sizes[axis.name]] += 1
    made = table("what", f"{name} keeps")
    for kind, found in kinds.items():
        told = (f"{n} of {size}{f' ({count} axes)' if count > 1 else ''}" for (size, n), count in sorted(found.items()))
        made.add_row(kind, ", ".join(told))
    which = "most important" if model.blocks_ranked else "first"
    for chain in model.chains.values():
        made.add_row("depth", f"of {chain.name} the {which} {depths[chain.name]} of {len(chain.blocks)} blocks")
    return made


def parameter_counts(model: sortify.SortedModel) -> dict[str, int]:
    """Elements of every parameter, by its original name."""
    return {name: tensor.numel() for name, tensor in model.tensors.items() if isinstance(tensor, torch.nn.Parameter)}


def elastic_share(model: sortify.SortedModel) -> float:
    """The share of the parameters that lie in tensors with an elastic dimension."""
    counts = parameter_counts(model)
    carried = {name for axis in model.axes.values() for name in axis.parameters}
    return sum(counts.get(name, 0) for name in carried) / max(1, sum(counts.values()))


def frozen_reasons(model: sortify.SortedModel) -> list[tuple[str, int]]:
    """Why something is not elastic, and how often; the most frequent reason first."""
    return Counter(map(reason, model.frozen)).most_common()


def reason(frozen: sortify.Frozen) -> str:
    """A reason without its place: the same reason in many modules is told once."""
    return f"{frozen.op}: {frozen.why}" if frozen.op else frozen.why


def order_text(model: sortify.SortedModel) -> str:
    """By what units and blocks were sorted, as an addition to a line; nothing where they were not."""
    return f"; ordered by {model.ordered}{', blocks too' if model.blocks_ranked else ''}" if model.ordered else ""


def trained_text(model: sortify.SortedModel) -> str:
    """The levels that were trained, on one line."""
    trained = model.space.trained
    if trained is None:
        return "nothing yet"
    told = [f"{group} {', '.join(f'{x:g}' for x in levels)}" for group, levels in trained.levels]
    told += [f"untied {', '.join(trained.untied)}"] if trained.untied else []
    told += [f"multiples of {trained.multiple}"] if trained.multiple > 1 else []
    return "; ".join(told) or "full only"
