"""The sections of a report on what is elastic, what is not, and why."""

from __future__ import annotations

from collections.abc import Sequence

from sortify.models.sorted_model import SortedModel
from sortify.plan import Axis
from sortify.reporting import describe
from sortify.reporting.page import Box, Boxes, Cell, Number, Section, Table, cut, percent
from sortify.reporting.portrait import chains_of, labels, outside, told

MOST_BLOCKS = 48
"""Blocks of a chain that are drawn; the ones before the last are left out."""


def axes(model: SortedModel) -> Section:
    """The axes: alike ones in one row, and folded away each by itself."""
    each = list(model.axes.values())
    groups = describe.alike(each)
    columns = ("axis", "kind", "group", "number", "size", "levels", "tensors", "% of parameters", "% of FLOPs")
    note = "shares are of what the axes reach, and overlap; * stands for numbers that differ"
    tables = [Table("Axes", columns, _axes(model, groups), note=note)]
    if len(groups) < len(each):
        rows, left = cut(_axes(model, [[axis] for axis in each]), "sortify inspect --all")
        tables.append(Table(f"Each of the {len(each)} axes", columns, rows, folded=True, note=left))
    line = "An axis is a quantity that many tensors share; a sub-network keeps the first units of it."
    return Section("axes", "Axes", (line,), tables=tuple(tables))


def _axes(model: SortedModel, groups: Sequence[Sequence[Axis]]) -> tuple[tuple[Cell, ...], ...]:
    counts = describe.parameter_counts(model)
    whole = max(1, sum(counts.values()))
    rows: list[tuple[Cell, ...]] = []
    for own in groups:
        tensors = {name for axis in own for name in axis.parameters}
        rows.append(
            (
                describe.common_name([axis.name for axis in own]),
                own[0].kind,
                own[0].group,
                Number(len(own), str(len(own))),
                Number(own[0].size, str(own[0].size)),
                " ".join(map(str, own[0].levels)),
                Number(len(tensors), str(len(tensors))),
                percent(sum(counts.get(name, 0) for name in tensors) / whole),
                percent(model.share([axis.name for axis in own])),
            )
        )
    return tuple(rows)


def depth(model: SortedModel) -> Section:
    """The chains of blocks, with the widths inside the blocks where these are known."""
    if not model.chains:
        return Section("depth", "Depth", ("No blocks can be bypassed: sub-networks differ in width only.",))
    half = describe.ends(model)["half of all"]
    sizes, depths = dict(half.sizes), dict(half.depths)
    strips = {strip.name: strip for strip in chains_of(model)}
    made = []
    for chain in model.chains.values():
        strip, stays = strips.get(chain.name), depths[chain.name]
        names = labels([block.name for block in chain.blocks])
        inside = [""] * len(names) if strip is None else [told(axes, sizes) for _, axes in strip.blocks]
        boxes = [Box(name, text, i < stays) for i, (name, text) in enumerate(zip(names, inside, strict=True))]
        if len(boxes) > MOST_BLOCKS:
            more = Box("...", f"{len(boxes) - MOST_BLOCKS} more", False)
            boxes = [*boxes[: MOST_BLOCKS - 1], more, boxes[-1]]
        through = told(strip.stream, sizes).replace("\n", ", ") if strip is not None else ""
        title = f"{chain.name}: {len(chain.blocks)} blocks, half the depth keeps {stays}"
        made.append(Boxes(title + (f"; through it {through}" if through else ""), tuple(boxes)))
    which = "the most important" if model.blocks_ranked else "the first"
    line = f"A smaller depth keeps {which} blocks of each chain. Sizes: full → half; dashed: what half gives up."
    rest = told(outside(model, list(strips.values())), sizes).replace("\n", ", ") if strips else ""
    lines = (line, f"Outside the blocks: {rest}.") if rest else (line,)
    return Section("depth", "Depth", lines, chains=tuple(made))


def fixed(model: SortedModel) -> Section:
    """What is not elastic: reasons with an example, and folded away each dimension."""
    title = "What is fixed"
    if not model.frozen:
        return Section("fixed", title, ("Everything is elastic.",))
    first = {describe.reason(frozen): frozen for frozen in reversed(model.frozen)}
    reasons: list[tuple[Cell, ...]] = [
        (why, Number(times, str(times)), first[why].where, first[why].remedy)
        for why, times in describe.frozen_reasons(model)
    ]
    rows, more = cut(reasons)
    columns = ("fixed because", "times", "for instance", "what would free it")
    each: list[tuple[Cell, ...]] = [
        (own.where, own.why, own.op, own.module, own.source, own.remedy) for own in model.frozen
    ]
    all_rows, left = cut(each, "sortify inspect --why")
    names = ("what", "is fixed because", "by", "in module", "at", "what would free it")
    number = len(each)
    tables = (
        Table("Reasons", columns, rows, note=more),
        Table(f"Each of the {number} fixed dimensions", names, all_rows, folded=True, note=left),
    )
    line = f"{describe.elastic_share(model):.2%} of the parameters lie in tensors with an elastic dimension."
    return Section("fixed", title, (line,), tables=tables)
