"""Small charts as SVG inside a page: lines, points, heat maps.

Colours and fonts come from the page's style sheet, so a chart follows its light and dark scheme; pointing at a mark
shows its numbers. Elements are built as a tree, which escapes every text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from sortify.reporting.picture import HeatMap

WIDE, TALL = 460, 296
LEFT, RIGHT, TOP, BOTTOM = 70, 26, 32, 44
HUES = 8
"""Colours that the style sheet knows: the classes c0, c1 ..."""
RAMP = ((255, 255, 217), (199, 233, 180), (127, 205, 187), (65, 182, 196), (34, 94, 168), (8, 29, 88))
"""From low to high; after ColorBrewer's YlGnBu."""
LABEL = 50
"""Room for the name of a column."""
SMALLEST_TEXT = 6
"""Cells in which the numbers would be smaller are drawn without."""
DARK = 140
"""Colours of less light get white letters."""
LOG_RANGE = 5
"""Where the largest value is that many times the smallest, an axis that may be is logarithmic."""

Point = tuple[float, float]
Format = Callable[[float], str]
Told = Callable[[int, int], tuple[str, str]]


@dataclass(frozen=True)
class Chart:
    """A picture and what stands around it.

    Attributes:
        title: above it.
        label: what it shows, for those who do not see it.
        svg: the picture; everything in it is escaped.
        legend: name and style class of what is drawn.
        note: below it.
        wide: whether it takes the whole width of the page.
    """

    title: str
    label: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Side:
    """One axis of a chart.

    Attributes:
        name: with its unit.
        write: how a value is written.
        zero: whether it starts at zero.
        log: whether it may be logarithmic, see `LOG_RANGE`.
    """

    name: str
    write: Format = "{:g}".format
    zero: bool = False
    log: bool = False


@dataclass(frozen=True)
class Line:
    """Points that belong together.

    Attributes:
        name: in the legend; without one it is not told there.
        points: from left to right.
        style: class of the style sheet.
        told: what pointing at each point shows; without it the points have no marks of their own.
        joined: whether a line leads through them; `steps` for one that keeps its height up to the next point.
    """

    name: str
    points: tuple[Point, ...]
    style: str
    told: tuple[str, ...] = ()
    joined: bool | str = True


@dataclass(frozen=True)
class Scale:
    """Values to places, along one side of a chart."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values inside, evenly spaced; on a logarithmic scale the ends and what lies evenly between."""
        if self.log:
            count = max(2, min(most, math.floor(math.log2(self.high / self.low)) + 1))
            return [self.low * (self.high / self.low) ** (i / (count - 1)) for i in range(count)]
        raw = (self.high - self.low) / most
        unit = 10 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale(values: Iterable[float], side: Side, start: float, end: float) -> Scale:
    """A scale that holds all values with a little room."""
    found = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(found), max(found)
    if side.log and low > 0 and high / low >= LOG_RANGE:
        return Scale(low, high, start, end, log=True)
    room = (high - low or abs(high) or 1.0) * 0.06
    return Scale(0.0 if side.zero and low >= 0 else low - room, high + room, start, end)


def plot(
    label: str,
    lines: Sequence[Line],
    across: Side,
    up: Side,
    band: Sequence[tuple[float, float, float]] = (),
    spans: Sequence[tuple[float, float, str]] = (),
) -> str:
    """Draw lines and points.

    Args:
        label: what it shows.
        lines: the last lies on top.
        across, up: the axes.
        band: of (x, low, high): an area behind the lines.
        spans: of (first, last, text): parts of the axis across, and what pointing above them shows.
    """
    points = [point for line in lines for point in line.points]
    heights = [y for _, y in points] + [y for _, *ends in band for y in ends]
    x = scale([x for x, _ in points], across, LEFT, WIDE - RIGHT)
    y = scale(heights, up, TALL - BOTTOM, TOP)
    root = _root(label, WIDE, TALL)
    _frame(root, x, y, across, up)
    if band:
        edge = [(x(a), y(high)) for a, _, high in band] + [(x(a), y(low)) for a, low, _ in reversed(band)]
        _add(root, "path", d=_path(edge) + "Z", klass="band")
    for line in lines:
        _draw(root, line, x, y)
    for first, last, text in spans:
        place, width = x(first), max(1.0, x(last) - x(first))
        _add(_add(root, "rect", x=place, y=TOP, width=width, height=TALL - BOTTOM - TOP, klass="hover"), "title", text)
    return _text_of(root)


def heat(label: str, grid: HeatMap, told: Told) -> str:
    """Draw a heat map with its numbers.

    Args:
        label: what it shows.
        grid: the values; NaN where there is none.
        told: writes what stands in the cell of a line and a column, and what pointing at it shows.
    """
    found = [value for line in grid.cells for value in line if not math.isnan(value)]
    low, span = min(found), (max(found) - min(found)) or 1.0
    across, height = (WIDE - LEFT - RIGHT) / len(grid.columns), max(18.0, min(44.0, 300 / len(grid.lines)))
    tall = TOP + height * len(grid.lines) + BOTTOM
    root = _root(label, WIDE, tall)
    for i, line in enumerate(reversed(grid.cells)):
        own, top = len(grid.cells) - 1 - i, TOP + height * i
        if grid.up:
            _add(root, "text", f"{grid.lines[own]:.3g}", x=LEFT - 8, y=top + height / 2 + 4, klass="end")
        for j, value in enumerate(line):
            cell = _Cell(LEFT + across * j, top, across, height, *told(own, j))
            cell.draw(root, math.nan if math.isnan(value) else (value - low) / span)
    every = math.ceil(LABEL / across)
    for j in range((len(grid.columns) - 1) % every, len(grid.columns), every):
        under: dict[str, Any] = {"x": LEFT + across * (j + 0.5), "y": tall - BOTTOM + 18}
        _add(root, "text", f"{grid.columns[j]:.3g}", **under, klass="middle")
    _names(root, grid.across, grid.up, tall)
    return _text_of(root)


@dataclass(frozen=True)
class _Cell:
    """A cell of a heat map: its place, what stands in it, and what pointing at it shows."""

    x: float
    y: float
    width: float
    height: float
    text: str
    told: str

    def draw(self, root: ElementTree.Element, share: float) -> None:
        """Draw it in the colour of a share of the ramp; grey for NaN."""
        group = _add(root, "g", klass="cell")
        _add(group, "title", self.told)
        place: dict[str, Any] = {
            "x": self.x + 0.5,
            "y": self.y + 0.5,
            "width": self.width - 1,
            "height": self.height - 1,
            "rx": 2.0,
        }
        if math.isnan(share):
            _add(group, "rect", klass="none", **place)
            return
        red, green, blue = _shade(share)
        _add(group, "rect", fill=f"#{red:02x}{green:02x}{blue:02x}", **place)
        size = min(12.0, self.width / 2.8, self.height / 1.6)
        if size >= SMALLEST_TEXT:
            ink = "on-dark" if 0.299 * red + 0.587 * green + 0.114 * blue < DARK else "on-light"
            x, y = self.x + self.width / 2, self.y + self.height / 2 + size / 3
            _add(group, "text", self.text, x=x, y=y, klass=f"middle {ink}").set("font-size", f"{size:.1f}")


def _shade(share: float) -> tuple[int, int, int]:
    """A colour of the ramp, between its second and its last but a little."""
    place = (0.1 + 0.75 * share) * (len(RAMP) - 1)
    index = min(int(place), len(RAMP) - 2)
    first, second = RAMP[index], RAMP[index + 1]
    red, green, blue = (round(a + (b - a) * (place - index)) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _frame(root: ElementTree.Element, x: Scale, y: Scale, across: Side, up: Side) -> None:
    for value in y.ticks(5):
        _add(root, "line", x1=LEFT, x2=WIDE - RIGHT, y1=y(value), y2=y(value), klass="grid")
        _add(root, "text", up.write(value), x=LEFT - 8, y=y(value) + 4, klass="end")
    for value in x.ticks(5):
        _add(root, "line", x1=x(value), x2=x(value), y1=TALL - BOTTOM, y2=TALL - BOTTOM + 4, klass="tick")
        _add(root, "text", across.write(value), x=x(value), y=TALL - BOTTOM + 18, klass="middle")
    _add(root, "line", x1=LEFT, x2=WIDE - RIGHT, y1=TALL - BOTTOM, y2=TALL - BOTTOM, klass="tick")
    words = [f"{side.name} (log)" if own.log else side.name for side, own in ((across, x), (up, y))]
    _names(root, words[0], words[1], TALL)


def _names(root: ElementTree.Element, across: str, up: str, tall: float) -> None:
    """Write the names of both axes at the edges."""
    _add(root, "text", up, x=4, y=15, klass="name")
    _add(root, "text", across, x=WIDE - RIGHT, y=tall - 8, klass="end name")


def _draw(root: ElementTree.Element, line: Line, x: Scale, y: Scale) -> None:
    places = [(x(a), y(b)) for a, b in line.points]
    if line.joined and len(places) > 1:
        corners = places
        if line.joined == "steps":
            pairs = itertools.pairwise(places)
            corners = [places[0], *(corner for (_, b), (c, d) in pairs for corner in ((c, b), (c, d)))]
        _add(root, "path", d=_path(corners), klass=f"line {line.style}")
    radius = 8 if "ring" in line.style else 3.5
    for (a, b), text in zip(places, line.told, strict=False):
        _add(_add(root, "circle", cx=a, cy=b, r=radius, klass=f"dot {line.style}"), "title", text)


def _path(places: Iterable[Point]) -> str:
    return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in places)


def _root(label: str, wide: float, tall: float) -> ElementTree.Element:
    box = f"0 0 {wide:g} {tall:g}"
    return ElementTree.Element("svg", {"viewBox": box, "role": "img", "aria-label": label})


def _add(
    parent: ElementTree.Element, tag: str, text: str | None = None, /, klass: str = "", **facts: Any
) -> ElementTree.Element:
    own = {name: f"{value:.1f}" if isinstance(value, float) else str(value) for name, value in facts.items()}
    made = ElementTree.SubElement(parent, tag, {**own, **({"class": klass} if klass else {})})
    made.text = text
    return made


def _text_of(root: ElementTree.Element) -> str:
    return ElementTree.tostring(root, encoding="unicode")
