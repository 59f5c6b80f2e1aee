"""The plan: everything that was found about a model, as one frozen value without tensors.

Analysis makes it, rewriting only applies it, and it is saved as JSON with every checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sortify.axes import algebra
from sortify.axes.algebra import Atom, ConcatExpr, Expr, ProductExpr, resolve
from sortify.axes.analysis import Analysis, outputs_of
from sortify.axes.control import Control, check_used, matching
from sortify.axes.names import FOUND, GROUPS, choose
from sortify.axes.reasons import Place, Reason, remedy
from sortify.axes.rules.table import Literal
from sortify.capture.capture import Captured
from sortify.capture.lifting import Program
from sortify.depth import Block, Chain, Region, output_layer_inputs
from sortify.graph.dims import Dim, Fixed, Named, axes_of, concat, parse, parse_shape, product, shape_text

LEVELS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Axis:
    """One elastic dimension, wherever it appears.

    Attributes:
        name: stable and readable, e.g. `encoder.layers.0.mlp.inner`.
        kind: hidden (the residual stream), inner, heads, or channels (carried by a convolution).
        size: its full size, in units that are cut one by one (heads, not head_dim * heads).
        levels: the sizes that uniform fractions (.25 .5 .75 1) give.
        parameters: names, as in the original `named_parameters()`, of the tensors that carry it.
        group: `width` or `heads`.
    """

    name: str
    kind: str
    size: int
    levels: tuple[int, ...]
    parameters: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Frozen:
    """A dimension that is not elastic, or a choice made at capture.

    Attributes:
        where: `NAME dimension 1` of a parameter, or `capture`, or the name of an axis.
        why: the reason, in words.
        op: the operation that made it so, such as `aten.conv2d.default`; '' where none did.
        module: the path of the module that called the operation.
        source: the line of that module's code, as `file:line`.
        remedy: what would free it.
    """

    where: str
    why: str
    op: str = ""
    module: str = ""
    source: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        """The whole story on one line."""
        place = str(Place(self.op, self.module, self.source)) if self.op else ""
        return f"{self.where}: {f'{place}: ' if place else ''}{self.why}"


@dataclass(frozen=True)
class SizeLiteral:
    """An integer argument of a node that depends on the sub-network: the size of `dim`."""

    node: str
    argument: str
    index: int | None
    dim: Dim


@dataclass(frozen=True)
class Plan:
    """What is elastic, how blocks chain, what each tensor's dimensions are made of, and what to rewrite.

    Attributes:
        axes: every elastic axis.
        chains: every chain of bypassable blocks.
        frozen: what is not elastic, and why.
        shapes: tensor name -> its dimensions, for tensors that carry an axis.
        literals: by mode, the size arguments to compute.
        outputs: by mode, the dimensions of the outputs that carry an axis; the caller freed those.
        features: node of the train graph -> its dimensions, for what blocks put out and what the last layers are given.
    """

    axes: tuple[Axis, ...]
    chains: tuple[Chain, ...]
    frozen: tuple[Frozen, ...]
    shapes: Mapping[str, tuple[Dim, ...]]
    literals: Mapping[str, tuple[SizeLiteral, ...]]
    outputs: Mapping[str, Mapping[str, tuple[Dim, ...]]] = field(default_factory=dict)
    features: Mapping[str, tuple[Dim, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "axes": [vars(a) | {"levels": list(a.levels), "parameters": list(a.parameters)} for a in self.axes],
            "chains": [
                {"name": c.name, "blocks": [{"name": b.name, "regions": _regions_json(b)} for b in c.blocks]}
                for c in self.chains
            ],
            "frozen": [vars(f) for f in self.frozen],
            "shapes": {name: shape_text(dims) for name, dims in self.shapes.items()},
            "literals": {
                mode: [[x.node, x.argument, x.index, str(x.dim)] for x in literals]
                for mode, literals in self.literals.items()
            },
            "outputs": {
                mode: {name: shape_text(dims) for name, dims in found.items()} for mode, found in self.outputs.items()
            },
            "features": {name: shape_text(dims) for name, dims in self.features.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            axes=tuple(
                Axis(**{**a, "levels": tuple(a["levels"]), "parameters": tuple(a["parameters"])}) for a in data["axes"]
            ),
            chains=tuple(
                Chain(c["name"], tuple(Block(b["name"], _regions(b["regions"])) for b in c["blocks"]))
                for c in data["chains"]
            ),
            frozen=tuple(Frozen(**f) for f in data["frozen"]),
            shapes={name: parse_shape(text) for name, text in data["shapes"].items()},
            literals={
                mode: tuple(SizeLiteral(node, argument, index, parse(dim)) for node, argument, index, dim in literals)
                for mode, literals in data["literals"].items()
            },
            outputs={
                mode: {name: parse_shape(text) for name, text in found.items()}
                for mode, found in data.get("outputs", {}).items()
            },
            features={name: parse_shape(text) for name, text in data.get("features", {}).items()},
        )


def _regions_json(block: Block) -> dict[str, Any]:
    return {mode: {"entry": r.entry, "exit": r.exit, "nodes": list(r.nodes)} for mode, r in block.regions.items()}


def _regions(data: Mapping[str, Any]) -> dict[str, Region]:
    return {mode: Region(r["entry"], r["exit"], tuple(r["nodes"])) for mode, r in data.items()}


def scaled(size: int, fraction: float) -> int:
    """`fraction` of a size, rounded half up; at least 1."""
    return max(1, int(size * fraction + 0.5))


def make_plan(
    captured: Captured,
    analysis: Analysis,
    chains: Sequence[Chain],
    notes: Sequence[str] = (),
    control: Control = FOUND,
) -> tuple[Plan, dict[str, Atom]]:
    """Decide what is elastic and write it down.

    Returns:
        The plan, and the atom behind each axis name (to fix one that fails its proof).
    """
    _check_literals(analysis)
    entries = {block.regions["eval"].entry for chain in chains for block in chain.blocks}
    streams = [dims for node, dims in analysis.nodes["eval"].items() if node.name in entries]
    choices, left, names = choose(analysis, captured, streams, control)
    blocks = [name for chain in chains for name in (chain.name, *(block.name for block in chain.blocks))]
    check_used("fix", control.fix, [*names.values(), *blocks, *analysis.tensors])
    named = {choice.atom: Named(choice.name, choice.atom.size.count) for choice in choices}
    shapes = {name: tuple(to_dim(d, named) for d in dims) for name, dims in analysis.tensors.items()}
    wanted = tuple(_wanted(chains, control))
    plan = Plan(
        axes=tuple(
            Axis(c.name, c.kind, n, tuple(sorted({scaled(n, f) for f in LEVELS})), c.parameters, GROUPS[c.kind])
            for c in choices
            for n in (c.atom.size.count,)
        ),
        chains=wanted,
        frozen=(*_frozen(captured, analysis, named, left), *(Frozen("capture", note) for note in notes)),
        shapes={name: dims for name, dims in shapes.items() if any(_axes(dims))},
        literals={mode: tuple(_literals(items, named)) for mode, items in analysis.literals.items()},
        outputs={mode: _elastic_outputs(program, analysis, mode, named) for mode, program in captured.programs.items()},
        features=_features(captured.programs["train"], analysis, wanted, named),
    )
    return plan, {choice.name: choice.atom for choice in choices}


def _elastic_outputs(
    program: Program, analysis: Analysis, mode: str, named: Mapping[Atom, Named]
) -> dict[str, tuple[Dim, ...]]:
    """The dimensions of the outputs that carry an axis."""
    known = {name: analysis.nodes[mode].get(leaf) for name, leaf in outputs_of(program)}
    shapes = {n: tuple(to_dim(d, named) for d in dims) for n, dims in known.items() if isinstance(dims, tuple)}
    return {name: dims for name, dims in shapes.items() if any(_axes(dims))}


def _features(
    program: Program, analysis: Analysis, chains: Sequence[Chain], named: Mapping[Atom, Named]
) -> dict[str, tuple[Dim, ...]]:
    """The dimensions of what blocks put out, and of what the last layers outside of blocks are given.

    Left out is what has an axis in one dimension with a size that is only known when the model runs.
    """
    known, regions = analysis.nodes["train"], [b.regions["train"] for chain in chains for b in chain.blocks]
    exits = {region.exit for region in regions}
    inside = {name for region in regions for name in region.nodes}
    names = exits | {node.name for node in output_layer_inputs(program, known) if node.name not in inside}
    found = {}
    for node in program.graph.nodes:
        exprs = known.get(node) if node.name in names else None
        if not isinstance(exprs, tuple):
            continue
        dims = tuple(to_dim(expr, named) for expr in exprs)
        elastic = [expr for expr, dim in zip(exprs, dims, strict=True) if any(axes_of(dim))]
        if not any(atom.size.symbols for expr in elastic for atom in algebra.atoms(expr)):
            found[node.name] = dims
    return found


def _wanted(chains: Sequence[Chain], control: Control) -> list[Chain]:
    """The chains without the blocks that the caller fixed: those always run."""
    found = []
    for chain in chains:
        blocks = tuple(b for b in chain.blocks if matching(control.fix, [b.name, chain.name]) is None)
        found += [Chain(chain.name, blocks)] if blocks else []
    return found


def to_dim(expr: Expr, named: Mapping[Atom, Named]) -> Dim:
    """An expression over atoms as a final dimension; symbols (unknown factors) count as one."""
    expr = resolve(expr)
    match expr:
        case Atom():
            return named.get(expr) or Fixed(expr.size.count)
        case ProductExpr(factors):
            return product([to_dim(f, named) for f in factors])
        case ConcatExpr(segments):
            return concat([to_dim(s, named) for s in segments])


def _axes(dims: Sequence[Dim]) -> list[Named]:
    return [axis for dim in dims for axis in axes_of(dim)]


def _literals(literals: Sequence[Literal], named: Mapping[Atom, Named]) -> list[SizeLiteral]:
    found = [
        SizeLiteral(x.node, x.argument, x.index, concat([to_dim(part, named) for part in x.parts])) for x in literals
    ]
    return [x for x in found if any(True for _ in axes_of(x.dim))]


def _check_literals(analysis: Analysis) -> None:
    """A size that adds elastic parts to parts of unknown size cannot be computed: fix the elastic ones."""
    for literals in analysis.literals.values():
        for literal in literals:
            for part in literal.parts:
                if _adds_unknown(part):
                    algebra.fix(part, "it is joined with a part whose size is only known when the model runs")


def _adds_unknown(expr: Expr) -> bool:
    expr = resolve(expr)
    match expr:
        case Atom():
            return False
        case ProductExpr(factors):
            return any(map(_adds_unknown, factors))
        case ConcatExpr(segments):
            return any(a.size.symbols for a in algebra.atoms(expr)) or any(map(_adds_unknown, segments))


def _frozen(
    captured: Captured, analysis: Analysis, named: Mapping[Atom, Named], left: Mapping[Atom, Reason]
) -> list[Frozen]:
    """Every fixed dimension of every parameter, with its reason."""
    found = []
    for name, info in captured.infos.items():
        if info.kind != "parameter":
            continue
        for place, dim in enumerate(analysis.tensors[name]):
            reasons = dict.fromkeys(
                left.get(a) or a.fixed for a in algebra.atoms(dim) if a not in named and a is not algebra.UNIT
            )
            found += [_told(f"{name} dimension {place}", why) for why in reasons if why is not None]
    return found


def _told(where: str, reason: Reason) -> Frozen:
    place = reason.place
    return Frozen(where, reason.why, place.op, place.module, place.source, reason.remedy or remedy(reason.why))
