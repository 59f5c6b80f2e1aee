"""The picture of an evaluation: score against FLOPs, and a heat map over two groups such as width and depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortify.evaluate import Evaluation, Row, quantity
from sortify.files import replacing

if TYPE_CHECKING:  # matplotlib takes a while to import, and most uses of sortify draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#1f2933", "#6b7785", "#e3e7ec"
DOT, FRONT, FULL = "#9fb3c8", "#d9480f", "#1864ab"
COLOURS = "YlGnBu"
ORDER = ("width", "heads", "depth")
LOG_RANGE = 5
"""Where the dearest sub-network costs that many times the cheapest, the axis is logarithmic."""


def draw(evaluation: Evaluation, path: str | Path) -> tuple[Path, Path]:
    """Draw an evaluation.

    Args:
        evaluation: with one row at least.
        path: of the PNG file; an SVG file of the same name is written beside it.

    Returns:
        both paths.
    """
    png = Path(path).with_suffix(".png")
    svg = png.with_suffix(".svg")
    figure = make_figure(evaluation)
    for target in (png, svg):
        with replacing(target) as draft:
            figure.savefig(draft, format=target.suffix[1:], metadata=None if target is png else {"Date": None})
    return png, svg


def make_figure(evaluation: Evaluation) -> Figure:
    """Return the figure: one panel, or two where the rows vary along a group."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heat = heat_map(evaluation)
    tall = heat is not None and len(heat.cells) > 1
    wide = 5.2 if heat is None else max(4.6, 1.2 + 0.5 * len(heat.columns))
    figure = Figure(figsize=(6.4 + (0 if heat is None else wide), 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if heat is None:
        _scatter(figure.subplots(), evaluation)
        return figure
    panels: Any = figure.subplots(1, 2, width_ratios=(6.4, wide))
    _scatter(panels[0], evaluation)
    _heat(panels[1], heat, evaluation, square=tall)
    return figure


def _scatter(panel: Axes, evaluation: Evaluation) -> None:
    """Draw score (in per cent where it is a share) against FLOPs."""
    plain(panel)
    others = [row for row in evaluation.rows if not row.front]
    front = evaluation.front
    size = 6 if len(evaluation.rows) <= 40 else 4
    if others:
        panel.scatter(*_points(evaluation, others), s=size**2, color=DOT, zorder=2, label="sub-networks")
    line: dict[str, Any] = {"color": FRONT, "drawstyle": "steps-post", "marker": "o", "markersize": size, "lw": 1.4}
    panel.plot(*_points(evaluation, front), zorder=3, label="front: none cheaper as good", **line)
    full = evaluation.full_row
    if full is not None:
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": FULL, "linewidths": 2.0}
        panel.scatter(*_points(evaluation, [full]), s=170, zorder=4, label="full model", **ring)
    _flops_axis(panel, [row.flops for row in evaluation.rows])
    panel.set_ylabel(f"{_words(evaluation.metric)}{' (%)' if evaluation.in_percent else ''}")
    panel.set_title("Score against cost", loc="left", fontweight="bold", fontsize=12)
    panel.legend(frameon=False, loc="best", fontsize=10)


def _points(evaluation: Evaluation, rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    factor = 100 if evaluation.in_percent else 1
    return [float(row.flops) for row in rows], [factor * evaluation.score(row) for row in rows]


def _flops_axis(panel: Axes, flops: Sequence[int]) -> None:
    """Scale and label the cost axis; a logarithmic one gets a tick at each doubling that fits."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    least, most = max(1, min(flops)), max(1, *flops)
    panel.set_xlabel("FLOPs of one call at the example inputs' sizes")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value)))
    if most / least >= LOG_RANGE:
        panel.set_xscale("log")
        doublings = math.log2(most / least)
        count = max(2, min(6, math.floor(doublings) + 1))
        panel.xaxis.set_major_locator(FixedLocator([most / 2 ** (doublings * i / (count - 1)) for i in range(count)]))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value)))


@dataclass(frozen=True)
class HeatMap:
    """Scores by one or two groups.

    Attributes:
        across, up: the groups; `up` is empty where only one varies.
        columns, lines: their fractions, ascending.
        cells: scores, line by line; NaN where nothing was measured.
    """

    across: str
    up: str
    columns: tuple[float, ...]
    lines: tuple[float, ...]
    cells: tuple[tuple[float, ...], ...]


def heat_map(evaluation: Evaluation) -> HeatMap | None:
    """Arrange scores by the groups that vary: width (or heads) across, depth up.

    Of rows that agree in both, the one largest in everything else counts. None where no group varies.
    """
    tables = [(dict(row.subnet.fractions), row) for row in evaluation.rows]
    values = {
        group: tuple(sorted({fractions[group] for fractions, _ in tables if group in fractions})) for group in ORDER
    }
    varying = [group for group in ORDER if len(values[group]) > 1]
    if not varying:
        return None
    across, up = varying[0], varying[-1] if len(varying) > 1 else ""
    chosen: dict[tuple[float, float], Row] = {}
    for fractions, row in sorted(tables, key=lambda entry: entry[1].flops):
        if across in fractions and (not up or up in fractions):
            chosen[fractions[across], fractions.get(up, 1.0) if up else 1.0] = row
    columns, lines = values[across], values[up] if up else (1.0,)
    cells = tuple(
        tuple(evaluation.score(chosen[x, y]) if (x, y) in chosen else math.nan for x in columns) for y in lines
    )
    return HeatMap(across, up, columns, lines, cells)


def _heat(panel: Axes, heat: HeatMap, evaluation: Evaluation, square: bool) -> None:
    """Draw the heat map with its numbers."""
    found = [value for line in heat.cells for value in line if not math.isnan(value)]
    low, high = min(found), max(found)
    span = (high - low) or 1.0
    panel.imshow(
        heat.cells,
        origin="lower",
        cmap=COLOURS,
        vmin=low - 0.15 * span,
        vmax=high + 0.25 * span,
        aspect="auto" if square else "equal",
    )
    size = max(5.0, min(11.0, 150 / len(heat.columns), 130 / len(heat.lines)))
    for y, line in enumerate(heat.cells):
        for x, value in enumerate(line):
            if not math.isnan(value):
                shade = (value - low + 0.15 * span) / (1.4 * span)
                colour = "white" if _dark(shade) else INK
                text = f"{100 * value:.1f}" if evaluation.in_percent else f"{value:.3g}"
                panel.text(x, y, text, ha="center", va="center", color=colour, fontsize=size)
    panel.set_xticks(range(len(heat.columns)), [f"{value:.3g}" for value in heat.columns])
    panel.set_yticks(range(len(heat.lines)) if heat.up else [], [f"{v:.3g}" for v in heat.lines] if heat.up else None)
    panel.set_xlabel(heat.across)
    panel.set_ylabel(heat.up)
    panel.tick_params(length=0, labelsize=10 if len(heat.columns) <= 10 else 7.5)
    for spine in panel.spines.values():
        spine.set_visible(False)
    panel.set_xticks([x - 0.5 for x in range(1, len(heat.columns))], minor=True)
    panel.set_yticks([y - 0.5 for y in range(1, len(heat.lines))], minor=True)
    panel.grid(which="minor", color="white", lw=1.5)
    panel.tick_params(which="minor", length=0)
    by = f"{heat.across} and {heat.up}" if heat.up else heat.across
    title = f"{_words(evaluation.metric).capitalize()}{' (%)' if evaluation.in_percent else ''} by {by}"
    panel.set_title(title, loc="left", fontweight="bold", fontsize=12)


def _dark(shade: float) -> bool:
    """Say whether a shade of the colour map needs white letters."""
    from matplotlib import colormaps

    red, green, blue, _ = colormaps[COLOURS](shade)
    return bool(0.299 * red + 0.587 * green + 0.114 * blue < 0.55)


def plain(panel: Axes) -> None:
    """Take away what a panel does not need."""
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color(FAINT)
    panel.grid(color=GRID, lw=0.8, zorder=0)
    panel.set_axisbelow(True)
    panel.tick_params(colors=INK, labelsize=10)
    panel.margins(0.06, 0.08)


def _words(name: str) -> str:
    return name.replace("_", " ")
