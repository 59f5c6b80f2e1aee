"""A page of sections, tables and charts as one HTML file that asks for nothing from elsewhere.

Every text is escaped by the template, and the page forbids its reader's browser to fetch anything or to run another
script than its own few lines (Content-Security-Policy). Without scripts it is complete; with them tables can be sorted.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from sortify.evaluate import quantity
from sortify.reporting.charts import Chart

TEMPLATES = "templates"
MOST = 400
"""Rows of a table; what is left out is told."""


class Number(NamedTuple):
    """A cell that is sorted by its value and shown as a text."""

    value: float
    text: str


Cell = str | Number


def percent(value: float, digits: int = 1) -> Number:
    """A share as a cell."""
    return Number(value, f"{100 * value:.{digits}f} %")


def count(value: float, unit: str = "") -> Number:
    """A large number as a cell."""
    return Number(value, quantity(value) + unit)


def cut(rows: Sequence[tuple[Cell, ...]], command: str = "") -> tuple[tuple[tuple[Cell, ...], ...], str]:
    """The first rows, and a note on how many are left out."""
    left = len(rows) - MOST
    more = f": {command} shows them" if command else ""
    return tuple(rows[:MOST]), f"and {left} more{more}" if left > 0 else ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: above it.
        columns: their names.
        rows: cells, as many as there are columns.
        folded: whether it is opened on request only.
        marked: the places of the rows that stand out.
        note: below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False
    marked: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Box:
    """One of several in a row: its name, what is inside, and whether it stays or goes first."""

    name: str
    inside: str
    stays: bool


@dataclass(frozen=True)
class Boxes:
    """Boxes in a row, with a title."""

    title: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Tile:
    """A fact in short: its name, its value, and more about it in small letters."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: for links.
        title: above it.
        lines, charts, chains, tables: what stands in it, in this order.
        command: what gives this section, where there is nothing to show yet.
        warning: what a reader must know before believing it.
    """

    name: str
    title: str
    lines: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    chains: tuple[Boxes, ...] = ()
    tables: tuple[Table, ...] = ()
    command: str = ""
    warning: str = ""


def render(title: str, version: str, tiles: Sequence[Tile], sections: Sequence[Section]) -> str:
    """Write a page as HTML.

    Args:
        title: of the page.
        version: of sortify.
        tiles: facts at the top.
        sections: what follows.
    """
    style, script = own_file("report.css"), own_file("report.js")
    environment = Environment(
        loader=DictLoader({"page": own_file("report.html")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawn"] = Markup  # charts escape what they hold
    return environment.get_template("page").render(
        title=title,
        version=version,
        tiles=tiles,
        sections=sections,
        style=Markup(style),
        script=Markup(script),
        style_digest=digest(style),
        script_digest=digest(script),
    )


def own_file(name: str) -> str:
    """A file of the page that comes with the package."""
    return files("sortify.reporting").joinpath(TEMPLATES, name).read_text("utf-8").strip()


def digest(text: str) -> str:
    """What names a style sheet or a script in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
