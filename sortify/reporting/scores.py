"""The sections of a report on what sub-networks cost and how well they score."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sortify.evaluate import Evaluation, Row, quantity
from sortify.models.composed import ComposedModel
from sortify.models.scores import fingerprint
from sortify.models.sorted_model import SortedModel
from sortify.reporting import charts, describe
from sortify.reporting.charts import Chart, Line, Side
from sortify.reporting.page import Cell, Number, Section, Table, Tile, count, cut, percent
from sortify.reporting.picture import HeatMap, heat_map
from sortify.reporting.portrait import cost_lines

MANY = 10
"""A heat map of more columns takes the whole width of the page."""


def tiles(model: SortedModel, evaluation: Evaluation | None) -> list[Tile]:
    """The facts at the top of the page."""
    full = model.cost(model.space.full)
    small = model.cost(model.space.smallest)
    blocks = sum(len(chain.blocks) for chain in model.chains.values())
    elastic = describe.elastic_share(model)
    found = [
        Tile("Parameters", quantity(full.params), f"smallest {quantity(small.params)}"),
        Tile("FLOPs of one call", quantity(full.flops), f"smallest {quantity(small.flops)}"),
        Tile("Elastic", f"{elastic:.1%}", f"of the parameters; {len(model.axes)} axes, {blocks} blocks"),
        Tile("Trained", "yes" if model.space.trained else "not yet", describe.trained_text(model)),
    ]
    if evaluation is not None and evaluation.rows:
        best = evaluation.best
        shown = evaluation.full_row or best
        name = evaluation.metric.replace("_", " ")
        found.append(
            Tile(f"{name.capitalize()}", score_text(evaluation, shown), f"of {shown.subnet}, on {evaluation.data}")
        )
        worst = min(evaluation.rows, key=evaluation.score)
        share = evaluation.relative(worst)
        if not math.isnan(share):
            more = f"of the full model's {name}: {worst.subnet}"
            found.append(Tile(f"Worst of {len(evaluation.rows)}", f"{share:.1%}", more))
    return found


def cost(model: SortedModel) -> Section:
    """What sub-networks cost."""
    ends, sizes = describe.ends(model), model.open_sizes
    full = model.cost(model.space.full)
    rows: list[tuple[Cell, ...]] = []
    for name, member in ends.items():
        own = model.cost(member)
        pairs = [(own.params, full.params), (own.flops, full.flops), (own.activation_bytes, full.activation_bytes)]
        cells = [cell for a, b in pairs for cell in (count(a), percent(a / max(1, b)))]
        if model.profiled is not None:
            measured = model.measured_cost(member)
            cells += [Number(measured.latency, f"{1e3 * measured.latency:.3g} ms"), count(measured.memory, "B")]
        rows.append((name, str(member), *cells))
    exact = ("parameters", "of full", "FLOPs", "of full", "activation bytes", "of full")
    columns = ("sub-network", "", *exact, *(("latency", "memory") if model.profiled is not None else ()))
    note = f"one call at {describe.sizes_text(sizes)}" if sizes else "one call at the example inputs' sizes"
    half = tuple(describe.kept(model, ends["half of all"]))
    tables = (
        Table("Cost of the full, the half and the smallest", columns, tuple(rows), note=note),
        Table("What half of all keeps", ("what", "half keeps"), half),
    )
    return Section("cost", "Cost", charts=(_cost_chart(model),), tables=tables)


def _cost_chart(model: SortedModel) -> Chart:
    lines, legend = [], []
    for index, own in enumerate(cost_lines(model)):
        style = "front" if own.name == "all together" else f"c{[0, 2, 3, 4, 5, 6, 7][index % 7]}"
        pairs = list(zip(own.fractions, own.flops, own.params, strict=True))
        texts = tuple(f"{own.name} {x:g}: {y:.1%} of the FLOPs, {z:.1%} of the parameters" for x, y, z in pairs)
        lines.append(Line(own.name, tuple((x, 100 * z) for x, _, z in pairs), f"{style} thin"))
        lines.append(Line(own.name, tuple((x, 100 * y) for x, y, _ in pairs), style, texts))
        legend.append((f"{own.name}: FLOPs", style))
        legend.append(("parameters", f"{style} thin"))
    label = "FLOPs and parameters that are left when one group is cut alone, or all together"
    across, up = Side("fraction that is kept"), Side("% of the full network", zero=True)
    return Chart("What is left when a group is cut", label, charts.plot(label, lines, across, up), tuple(legend))


# -- evaluation -------------------------------------------------------------------------------------------------------


def score_text(evaluation: Evaluation, row: Row) -> str:
    """A score: a share in per cent, anything else as a number."""
    return _score(evaluation.score(row), _shares(evaluation))


def _shares(evaluation: Evaluation) -> bool:
    return all(0 <= evaluation.score(row) <= 1 for row in evaluation.rows)


def _score(value: float, share: bool) -> str:
    return f"{100 * value:.2f} %" if share else f"{value:.4g}"


def scores(model: SortedModel, evaluation: Evaluation | None, broken: bool, command: str) -> Section:
    """What sub-networks score.

    Args:
        model: whose.
        evaluation: of it, if there is one.
        broken: whether a file stands there that cannot be read.
        command: what evaluates.
    """
    if evaluation is None or not evaluation.rows:
        warning = "evaluation.json cannot be read" if broken else ""
        return Section("evaluation", "Evaluation", command=command, warning=warning)
    grid = heat_map(evaluation)
    drawn = [_front_chart(evaluation), *([_heat_chart(evaluation, grid)] if grid is not None else [])]
    full = evaluation.full_row
    lines = [
        f"{evaluation.task} on {evaluation.data}: {len(evaluation.rows)} sub-networks, of them"
        f" {len(evaluation.front)} on the front: no cheaper one scores as well."
    ]
    if full is None:
        lines.append("The full model was not measured, so there are no shares of its score.")
    stale = "the weights have changed since: these are the scores of other ones; evaluate again"
    warning = stale if evaluation.weights and not _same_weights(model, evaluation) else ""
    return Section("evaluation", "Evaluation", tuple(lines), tuple(drawn), (), (_rows(evaluation),), warning=warning)


def _same_weights(model: SortedModel, evaluation: Evaluation) -> bool:
    """Whether the scores are those of the weights of now; of a model that is only looked at nobody knows."""
    if isinstance(model, ComposedModel) or any(parameter.is_meta for parameter in model.parameters()):
        return True
    return fingerprint(model) == evaluation.weights


def _told(evaluation: Evaluation, row: Row) -> str:
    """One sub-network in words."""
    relative = evaluation.relative(row)
    facts = [
        f"{evaluation.metric.replace('_', ' ')} {score_text(evaluation, row)}",
        *([] if math.isnan(relative) else [f"{relative:.1%} of the full model's"]),
        f"{quantity(row.flops)} FLOPs ({row.flops / max(1, evaluation.full_flops):.1%})",
        f"{quantity(row.params)} parameters",
        *(["on the front"] if row.front else []),
    ]
    return f"{row.subnet}: {', '.join(facts)}"


def _front_chart(evaluation: Evaluation) -> Chart:
    factor = 100 if _shares(evaluation) else 1

    def line(rows: Sequence[Row], name: str, style: str, joined: bool | str = False) -> Line:
        points = tuple((float(max(1, row.flops)), factor * evaluation.score(row)) for row in rows)
        return Line(name, points, style, tuple(_told(evaluation, row) for row in rows), joined)

    others = [row for row in evaluation.rows if not row.front]
    full = evaluation.full_row
    lines = [
        *([line(others, "sub-networks", "other")] if others else []),
        line(evaluation.front, "front: none cheaper as good", "front", "steps"),
        *([line([full], "full model", "c0 ring")] if full is not None else []),
    ]
    name = evaluation.metric.replace("_", " ")
    across = Side("FLOPs of one call", quantity, log=True)
    up = Side(f"{name}{', %' if factor == 100 else ''}")
    label = f"{name} of {len(evaluation.rows)} sub-networks against their FLOPs; numbers in the table below"
    legend = tuple((own.name, own.style) for own in lines)
    return Chart("Score against cost", label, charts.plot(label, lines, across, up), legend)


def _heat_chart(evaluation: Evaluation, grid: HeatMap) -> Chart:
    share, name = _shares(evaluation), evaluation.metric.replace("_", " ")

    def text(line: int, column: int) -> tuple[str, str]:
        value = grid.cells[line][column]
        place = f"{grid.across} {grid.columns[column]:g}" + (f", {grid.up} {grid.lines[line]:g}" if grid.up else "")
        if math.isnan(value):
            return "", f"{place}: not measured"
        return f"{100 * value:.1f}" if share else f"{value:.3g}", f"{place}: {name} {_score(value, share)}"

    by = f"{grid.across} and {grid.up}" if grid.up else grid.across
    label = f"{name} by {by}; numbers in the table below"
    note = "of several with the same place, the largest in everything else"
    title = f"{name.capitalize()}{' (%)' if share else ''} by {by}"
    several = sum(not math.isnan(value) for line in grid.cells for value in line) < len(evaluation.rows)
    wide = len(grid.columns) > MANY
    return Chart(title, label, charts.heat(label, grid, text), note=note if several else "", wide=wide)


def _rows(evaluation: Evaluation) -> Table:
    rows = sorted(evaluation.rows, key=lambda row: -row.flops)
    metrics = [
        name for name in dict.fromkeys(name for row in rows for name in row.metrics) if name != evaluation.metric
    ]
    groups = [name for name in evaluation.groups if len(evaluation.groups) <= 8]
    columns = (
        *(groups or ["sub-network"]),
        evaluation.metric.replace("_", " "),
        "of full",
        *metrics,
        "parameters",
        "FLOPs",
        "of full",
        "front",
    )
    cells = [_cells(evaluation, row, groups, metrics) for row in rows]
    shown, note = cut(cells, "evaluation.csv")
    marked = frozenset(index for index, row in enumerate(rows) if row.front)
    return Table("All sub-networks, the dearest first", columns, shown, marked=marked, note=note)


def _cells(evaluation: Evaluation, row: Row, groups: Sequence[str], metrics: Sequence[str]) -> tuple[Cell, ...]:
    fractions, relative = dict(row.subnet.fractions), evaluation.relative(row)
    place: list[Cell] = [Number(fractions.get(name, 1.0), f"{fractions.get(name, 1.0):.3g}") for name in groups]
    return (
        *(place or [str(row.subnet)]),
        Number(evaluation.score(row), score_text(evaluation, row)),
        "-" if math.isnan(relative) else percent(relative),
        *(Number(row.metrics[name], f"{row.metrics[name]:.4g}") if name in row.metrics else "-" for name in metrics),
        count(row.params),
        count(row.flops),
        percent(row.flops / max(1, evaluation.full_flops)),
        Number(float(row.front), "★" if row.front else ""),
    )
