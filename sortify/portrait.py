"""The picture of a sorted model before training: what its sub-networks cost, and where they can be cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortify.errors import SortifyError
from sortify.files import replacing
from sortify.model import SortedModel
from sortify.network import used_tensors
from sortify.picture import FAINT, FRONT, FULL, INK, plain
from sortify.plan import Axis

if TYPE_CHECKING:  # matplotlib takes a while to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (".svg", ".png", ".pdf")
STEPS = 16
"""Points of each line of costs."""
MOST = 12
"""Blocks of a chain that are drawn; the ones between the first and the last are left out."""
HUES = ("#1864ab", "#2b8a3e", "#862e9c", "#e67700", "#5f3dc4", "#495057")


def draw_model(model: SortedModel, path: str | Path) -> Path:
    """Draw the cost of the sub-networks, and the chains of blocks with the elastic widths inside them.

    Args:
        model: any sorted model, trained or not.
        path: of the file; its ending says the kind: `.svg`, `.png` or `.pdf`.

    Raises:
        SortifyError: the ending says another kind.
    """
    path = Path(path)
    if path.suffix not in KINDS:
        raise SortifyError(f"{path}: a picture ends in {', '.join(KINDS)}, not in '{path.suffix}'")
    figure = _figure(model)
    with replacing(path) as draft:
        figure.savefig(draft, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else {})
    return path


def _figure(model: SortedModel) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    strips = chains_of(model)
    tall = 4.4 + 1.5 * len(strips)
    figure = Figure(figsize=(11, tall), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1 + len(strips), 1, height_ratios=[4.4, *[1.5] * len(strips)], squeeze=False)[:, 0]
    _costs(panels[0], model)
    for panel, strip in zip(panels[1:], strips, strict=True):
        _chain(panel, strip)
    return figure


# -- what sub-networks cost -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """The cost of cutting one group, or all: fractions, and shares of the full network's FLOPs and parameters."""

    name: str
    fractions: tuple[float, ...]
    flops: tuple[float, ...]
    params: tuple[float, ...]


def cost_lines(model: SortedModel) -> list[Line]:
    """One line for each group cut alone, and one for all groups together."""
    groups = model.space.groups
    steps = tuple((i + 1) / STEPS for i in range(STEPS))
    full = model.cost(model.space.full)
    found = []
    for name, cut in (*((group, (group,)) for group in groups), *([("all together", groups)] if groups[1:] else [])):
        members = [model.space.subnet(**dict.fromkeys(cut, step)) for step in steps]
        costs = [model.cost(member) for member in members]
        flops = tuple(cost.flops / max(1, full.flops) for cost in costs)
        found.append(Line(name, steps, flops, tuple(cost.params / max(1, full.params) for cost in costs)))
    return found


def _costs(panel: Axes, model: SortedModel) -> None:
    plain(panel)
    for line, hue in zip(cost_lines(model), HUES * 9, strict=False):
        hue = FRONT if line.name == "all together" else hue
        panel.plot(line.fractions, [100 * y for y in line.flops], color=hue, marker="o", markersize=3, label=line.name)
        panel.plot(line.fractions, [100 * y for y in line.params], color=hue, lw=1, ls=":")
    panel.set_xlabel("fraction that is kept")
    panel.set_ylabel("% of the full network")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, title="cut alone: FLOPs (dots: parameters)", alignment="left")
    panel.set_title("What sub-networks cost", loc="left", fontweight="bold", fontsize=12)


# -- where they can be cut --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strip:
    """One chain: its blocks in order, each with the axes that live in it alone, and the axes that pass through."""

    name: str
    blocks: tuple[tuple[str, tuple[Axis, ...]], ...]
    stream: tuple[Axis, ...]


def chains_of(model: SortedModel) -> list[Strip]:
    """The chains of a model that was captured whole; nothing for one in parts."""
    programs = model.blueprint.programs
    if "eval" not in programs:
        return []
    users = {name: {user.name for user in hole.users} for hole, name in used_tensors(programs["eval"]).items()}
    axes = model.axes.values()
    where = {a.name: set[str]().union(*(users.get(name, {""}) for name in a.parameters)) for a in axes}
    strips = []
    for chain in model.chains.values():
        nodes = [set(block.regions["eval"].nodes) for block in chain.blocks]
        inside = [tuple(a for a in axes if where[a.name] <= own) for own in nodes]
        within = {axis.name for found in inside for axis in found}
        through = [a for a in axes if a.name not in within and any(where[a.name] & own for own in nodes)]
        blocks = tuple((block.name, axes) for block, axes in zip(chain.blocks, inside, strict=True))
        strips.append(Strip(chain.name, blocks, tuple(through)))
    return strips


def told(axes: Sequence[Axis]) -> str:
    """Axes in few words: `inner 3072`, or `channels 64, 2 x 128`."""
    kinds: dict[str, Counter[int]] = {}
    for axis in axes:
        kinds.setdefault(axis.kind, Counter())[axis.size] += 1
    return "\n".join(
        f"{kind} " + ", ".join(f"{n} x {size}" if n > 1 else str(size) for size, n in sizes.items())
        for kind, sizes in kinds.items()
    )


def _chain(panel: Axes, strip: Strip) -> None:
    from matplotlib.patches import FancyBboxPatch

    shown: list[tuple[str, tuple[Axis, ...]] | None] = [*strip.blocks]
    if len(shown) > MOST:
        shown = [*shown[: MOST - 2], None, shown[-1]]
    panel.set_xlim(-0.6, max(6, len(shown)) - 0.4)
    panel.set_ylim(-0.75, 0.75)
    panel.axis("off")
    panel.plot([-0.55, len(shown) - 0.45], [0, 0], color=FULL, lw=2, zorder=1)
    for place, block in enumerate(shown):
        if block is None:
            more = f"{len(strip.blocks) - MOST + 1} more"
            panel.text(place, 0, more, ha="center", va="center", fontsize=8, color=INK, backgroundcolor="white")
            continue
        box = FancyBboxPatch((place - 0.4, -0.4), 0.8, 0.8, boxstyle="round,pad=0,rounding_size=0.08", zorder=2)
        box.set(facecolor="white", edgecolor=FULL, linewidth=1.2)
        panel.add_patch(box)
        panel.text(place, 0, told(block[1]) or "not elastic", ha="center", va="center", fontsize=7, color=INK, zorder=3)
        panel.text(place, -0.5, block[0].rpartition(".")[2], ha="center", va="top", fontsize=7, color=FAINT)
    through = told(strip.stream).replace("\n", ", ")
    count = f"{len(strip.blocks)} blocks, of which the first stay" if strip.blocks[1:] else "1 block"
    title = f"{strip.name}: {count}" + (f"; through it goes {through}" if through else "")
    panel.set_title(title, loc="left", fontsize=9)
