"""The picture of a sorted model before training: what its sub-networks cost, and where they can be cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortify.errors import SortifyError
from sortify.files import replacing
from sortify.models.sorted_model import SortedModel
from sortify.network.network import used_tensors
from sortify.plan import Axis
from sortify.reporting.picture import FAINT, FRONT, FULL, INK, plain
from sortify.space.space import Subnet

if TYPE_CHECKING:  # matplotlib takes a while to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (".svg", ".png", ".pdf")
STEPS = 16
"""Points of each line of costs."""
MOST = 12
"""Blocks of a chain that are drawn; the ones between the first and the last are left out."""
PLAIN: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
"""No metadata: the same model gives the same file."""
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
        figure.savefig(draft, format=path.suffix[1:], metadata=PLAIN if path.suffix == ".svg" else {})
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
    half = dict(_half(model).sizes)
    for panel, strip in zip(panels[1:], strips, strict=True):
        _chain(panel, strip, half)
    rest = told(outside(model, strips), half).replace("\n", ", ")
    note = "full size → what half keeps; dashed: blocks that half the depth gives up" if strips else "full size → half"
    figure.supxlabel(note + (f"\noutside the blocks: {rest}" if rest else ""), x=0.02, ha="left", fontsize=8, color=INK)
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
    panel.legend(frameon=False, title="cut alone, FLOPs\n(dotted lines: parameters)", alignment="left")
    panel.set_title("What sub-networks cost", loc="left", fontweight="bold", fontsize=12)


# -- where they can be cut --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strip:
    """One chain: its blocks in order, each with the axes that live in it alone, and the axes that pass through.

    Attributes:
        kept: how many blocks half the depth keeps.
    """

    name: str
    blocks: tuple[tuple[str, tuple[Axis, ...]], ...]
    stream: tuple[Axis, ...]
    kept: int


def chains_of(model: SortedModel) -> list[Strip]:
    """The chains of a model that was captured whole; nothing for one in parts."""
    programs = model.blueprint.programs
    if "eval" not in programs:
        return []
    users = {name: {user.name for user in hole.users} for hole, name in used_tensors(programs["eval"]).items()}
    axes = model.axes.values()
    where = {a.name: set[str]().union(*(users.get(name, {""}) for name in a.parameters)) for a in axes}
    half, strips = dict(_half(model).depths), []
    for chain in model.chains.values():
        nodes = [set(block.regions["eval"].nodes) for block in chain.blocks]
        inside = [tuple(a for a in axes if where[a.name] <= own) for own in nodes]
        within = {axis.name for found in inside for axis in found}
        through = [a for a in axes if a.name not in within and any(where[a.name] & own for own in nodes)]
        blocks = tuple((block.name, axes) for block, axes in zip(chain.blocks, inside, strict=True))
        strips.append(Strip(chain.name, blocks, tuple(through), half[chain.name]))
    return strips


def _half(model: SortedModel) -> Subnet:
    return model.space.subnet(**dict.fromkeys(model.space.groups, 0.5))


def outside(model: SortedModel, strips: Sequence[Strip]) -> list[Axis]:
    """The axes that are in no block and pass through none."""
    drawn = {
        axis.name for strip in strips for own in (*(axes for _, axes in strip.blocks), strip.stream) for axis in own
    }
    return [axis for axis in model.axes.values() if axis.name not in drawn]


def told(axes: Sequence[Axis], half: Mapping[str, int], between: str = " ") -> str:
    """Axes in few words, with what half keeps of them: `inner 3072 → 1536`, or `channels 64 → 32, 2 x 128 → 64`.

    Args:
        axes: which; half: axis -> what half keeps.
        between: what stands between a kind and its sizes.
    """
    kinds: dict[str, Counter[tuple[int, int]]] = {}
    for axis in axes:
        kinds.setdefault(axis.kind, Counter())[axis.size, half[axis.name]] += 1
    return "\n".join(
        f"{kind}{between}"
        + ", ".join((f"{n} x " if n > 1 else "") + f"{size} → {kept}" for (size, kept), n in sizes.items())
        for kind, sizes in kinds.items()
    )


def labels(names: Sequence[str]) -> list[str]:
    """The last parts of blocks' names; of those that differ in a number at the end only the number."""
    short = [name.rpartition(".")[2] for name in names]
    stems = {name.rstrip("0123456789") for name in short}
    numbers = [name[len(next(iter(stems))) :] for name in short] if len(stems) == 1 else []
    return numbers if numbers and all(numbers) else short


def _chain(panel: Axes, strip: Strip, half: Mapping[str, int]) -> None:
    from matplotlib.patches import FancyBboxPatch

    named = labels([name for name, _ in strip.blocks])
    shown: list[int | None] = [*range(len(strip.blocks))]
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
        stays = block < strip.kept
        box = FancyBboxPatch((place - 0.4, -0.4), 0.8, 0.8, boxstyle="round,pad=0,rounding_size=0.08", zorder=2)
        box.set(facecolor="white", edgecolor=FULL if stays else FAINT, linewidth=1.2, linestyle="-" if stays else "--")
        panel.add_patch(box)
        text = told(strip.blocks[block][1], half, "\n" if len(shown) > 6 else " ") or "not elastic"
        panel.text(place, 0, text, ha="center", va="center", fontsize=6.5, color=INK if stays else FAINT, zorder=3)
        panel.text(place, -0.5, named[block], ha="center", va="top", fontsize=7, color=FAINT)
    through = told(strip.stream, half).replace("\n", ", ")
    count = len(strip.blocks)
    title = f"{strip.name}: {count} blocks, half the depth keeps {strip.kept}" + (
        f"; through it {through}" if through else ""
    )
    panel.set_title(title, loc="left", fontsize=9)
