"""The sections of a report on what was run: the training, and the profile of a machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from sortify.evaluate import quantity
from sortify.models.sorted_model import SortedModel
from sortify.reporting import charts, curves, describe
from sortify.reporting.charts import Chart, Line, Side
from sortify.reporting.curves import Bucket, History, Series
from sortify.reporting.page import Cell, Number, Section, Table, cut, percent

LINES = 6
"""Levels of a group that are drawn."""
MANY = 32
"""Levels beyond which each goes with the nearest that is drawn."""
GROUPS = 4
"""Groups whose levels are drawn."""
ENDS = 0.1
"""The share of a sub-network's draws that counts as its beginning, and as its end."""


# -- training ---------------------------------------------------------------------------------------------------------


def training(model: SortedModel, history: History, command: str) -> Section:
    """How the training went.

    Args:
        model: what was trained.
        history: what the training wrote down.
        command: what trains.
    """
    if not history.steps and model.space.trained is None:
        return Section("training", "Training", command=command)
    lines = [f"Levels: {describe.trained_text(model)}{describe.order_text(model)}."]
    if not history.steps:
        lines.append(
            "The steps were not written down: the model was trained in a loop of its own, or without a folder."
        )
        return Section("training", "Training", tuple(lines))
    last = history.steps[-1].step + 1
    lines.append(f"{last} optimiser steps{f' on {history.data}' if history.data else ''}.")
    if history.flops is not None:
        lines.append(f"A draw cost {history.flops:.1%} of the full network's FLOPs in the mean.")
    stopped = f"this training was interrupted after step {last} or later; sortify train --resume goes on"
    drawn = [
        _loss_chart(history),
        *_level_charts(history),
        *_rate_chart(history),
        *_count_chart(history),
        *_cost_chart(history),
    ]
    tables = [_subnets(history), *_settings(history)]
    warning = stopped if history.unfinished else ""
    return Section("training", "Training", tuple(lines), tuple(drawn), (), tuple(tables), warning=warning)


def _loss_chart(history: History) -> Chart:
    found = curves.buckets([(step.step, step.loss) for step in history.steps])
    line = Line("loss, smoothed", tuple((float(own.last), own.smooth) for own in found), "c0")
    band = [(float(own.last), own.low, own.high) for own in found]
    label = f"loss of {len(history.steps)} steps, from {found[0].mean:.4g} to {found[-1].smooth:.4g}"
    note = "each step's loss is the mean over the sub-networks that it drew; the area holds all steps"
    across, up = Side("step", quantity), Side("loss")
    svg = charts.plot(label, [line], across, up, band, _spans(found))
    return Chart("Loss", label, svg, (("smoothed", "c0"),), note)


def _spans(found: Sequence[Bucket]) -> list[tuple[float, float, str]]:
    starts = [found[0].last, *(own.last for own in found[:-1])]
    return [
        (
            float(start),
            float(own.last),
            f"steps {own.first} to {own.last}: mean {own.mean:.4g}, {own.low:.4g} to {own.high:.4g}; "
            f"smoothed {own.smooth:.4g}",
        )
        for start, own in zip(starts, found, strict=True)
    ]


def _level_charts(history: History) -> list[Chart]:
    """One picture for each group: the loss at its levels, whatever else was drawn."""
    return [_level_chart(group, levels) for group, levels in list(curves.by_level(history).items())[:GROUPS]]


def _level_chart(group: str, levels: Mapping[float, Series]) -> Chart:
    chosen = curves.spread(list(levels), LINES)
    shown = curves.gathered(levels, chosen) if len(levels) > MANY else levels
    lines = []
    for index, level in enumerate(chosen):
        found = curves.buckets(shown[level], curves.LEVEL_POINTS)
        texts = tuple(f"{group} {level:g}, up to step {own.last}: {own.smooth:.4g}" for own in found)
        points = tuple((float(own.last), own.smooth) for own in found)
        lines.append(Line(f"{group} {level:g}", points, f"c{index % charts.HUES}", texts))
    label = f"smoothed loss by {group}: " + ", ".join(f"{x.name} ends at {x.points[-1][1]:.4g}" for x in lines)
    left = "" if len(chosen) == len(levels) else f"{len(chosen)} of {len(levels)} levels; "
    left = f"{len(levels)} levels, each with the nearest of {len(chosen)}; " if len(levels) > MANY else left
    note = f"{left}mean over whatever else was drawn"
    svg = charts.plot(label, lines, Side("step", quantity), Side("loss", "{:.2g}".format, log=True))
    return Chart(f"Loss by {group}", label, svg, tuple((own.name, own.style) for own in lines), note)


def _rate_chart(history: History) -> list[Chart]:
    series: Series = [(step.step, step.rate) for step in history.steps if math.isfinite(step.rate)]
    if not series:
        return []
    found = curves.buckets(series, curves.LEVEL_POINTS * 2)
    texts = tuple(f"step {own.last}: learning rate {own.mean:.3g}" for own in found)
    line = Line("", tuple((float(own.last), own.mean) for own in found), "c2", texts)
    label = f"learning rate, at most {max(value for _, value in series):.3g}"
    up = Side("learning rate", lambda value: f"{value:.2g}", zero=True)
    return [Chart("Learning rate", label, charts.plot(label, [line], Side("step", quantity), up))]


def _count_chart(history: History) -> list[Chart]:
    """How many sub-networks a step drew, where that changed on the way."""
    series: Series = [(step.step, float(len(step.draws))) for step in history.steps if step.draws]
    if len({value for _, value in series}) < 2:
        return []
    found = curves.buckets(series, curves.LEVEL_POINTS * 2)
    texts = tuple(f"steps {own.first} to {own.last}: {own.mean:.3g} sub-networks" for own in found)
    line = Line("", tuple((float(own.last), own.mean) for own in found), "c3", texts)
    label = f"sub-networks of a step, {min(x for _, x in series):g} to {max(x for _, x in series):g}"
    up = Side("sub-networks", zero=True)
    return [Chart("Sub-networks of a step", label, charts.plot(label, [line], Side("step", quantity), up))]


def _cost_chart(history: History) -> list[Chart]:
    """What the draws of a step cost, as a share of the full network's FLOPs."""
    series: Series = [(step.step, 100 * step.flops) for step in history.steps if math.isfinite(step.flops)]
    if len({value for _, value in series}) < 2:
        return []
    found = curves.buckets(series, curves.LEVEL_POINTS * 2)
    texts = tuple(f"steps {own.first} to {own.last}: {own.mean:.3g} % of the full network's FLOPs" for own in found)
    line = Line("", tuple((float(own.last), own.mean) for own in found), "c1", texts)
    label = (
        f"FLOPs of a draw, {min(x for _, x in series):.3g} to {max(x for _, x in series):.3g} % of the full network's"
    )
    up = Side("% of the full network's FLOPs", zero=True)
    return [Chart("Cost of a draw", label, charts.plot(label, [line], Side("step", quantity), up))]


def _subnets(history: History) -> Table:
    """How often each sub-network was drawn, and its loss at the beginning and at the end."""
    rows: list[tuple[Cell, ...]] = []
    for name, series in curves.by_subnet(history).items():
        losses = [loss for _, loss in series]
        few = max(1, math.ceil(ENDS * len(losses)))
        first, last = (math.fsum(part) / few for part in (losses[:few], losses[-few:]))
        rows.append((name, Number(len(losses), str(len(losses))), *(Number(x, f"{x:.4g}") for x in (first, last))))
    rows.sort(key=lambda row: row[3])
    shown, note = cut(rows)
    columns = ("sub-network", "drawn", "loss, first tenth", "loss, last tenth")
    return Table(f"Loss of the {len(rows)} sub-networks that were drawn", columns, shown, folded=True, note=note)


def _settings(history: History) -> list[Table]:
    rows = tuple((name, _plain(value)) for name, value in (history.config or {}).items() if value is not None)
    return [Table("Settings of the training", ("setting", "value"), rows, folded=True)] if rows else []


def _plain(value: object) -> str:
    """A setting as people write it."""
    if isinstance(value, list) and all(isinstance(own, str | int | float) for own in value):
        return ", ".join(map(str, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)


# -- the machine ------------------------------------------------------------------------------------------------------


def profile(model: SortedModel, command: str) -> Section:
    """What sub-networks take on a machine.

    Args:
        model: whose profile is told.
        command: what measures one.
    """
    found, title = model.profiled, "Time and memory"
    if found is None:
        return Section("profile", title, command=command)
    full = model.cost(model.space.full).flops
    rows: list[tuple[Cell, ...]] = []
    times: list[tuple[float, float, str]] = []
    sizes: list[tuple[float, float, str]] = []
    for row in found.rows:
        told, flops = model.measured_cost(row.subnet), model.cost(row.subnet).flops
        rate, unit = found.throughput(row.latency)
        latency, expected = (f"{1e3 * seconds:.3g} ms" for seconds in (row.latency, told.latency))
        memory, guess = (f"{quantity(each)}B" for each in (row.memory, told.memory))
        times.append((max(1, flops), 1e3 * row.latency, f"{row.subnet}: {latency}, predicted {expected}"))
        sizes.append((max(1, flops), row.memory, f"{row.subnet}: {memory}, predicted {guess}"))
        rows.append(
            (
                str(row.subnet),
                percent(flops / max(1, full)),
                Number(row.latency, latency),
                Number(told.latency, expected),
                percent(row.spread),
                Number(rate, f"{quantity(rate)} {unit}"),
                Number(row.memory, memory),
                Number(told.memory, guess),
            )
        )
    columns = ("sub-network", "FLOPs of full", "latency", "predicted", "spread", "throughput", "memory", "predicted")
    drawn = (
        _measured("Latency against FLOPs", times, Side("latency, ms", zero=True)),
        _measured("Peak memory against FLOPs", sizes, Side("bytes", quantity, zero=True)),
    )
    table = Table("What was measured, each the median of all rounds", columns, tuple(rows))
    return Section("profile", title, (f"P{describe.profile_text(found)[1:]}.",), drawn, (), (table,))


def _measured(title: str, found: Sequence[tuple[float, float, str]], up: Side) -> Chart:
    line = Line("", tuple((x, y) for x, y, _ in found), "c0", tuple(text for *_, text in found), joined=False)
    label = f"{title} of {len(found)} sub-networks; numbers in the table below"
    return Chart(title, label, charts.plot(label, [line], Side("FLOPs of one call", quantity, log=True), up))
