"""Which atoms become axes, what kind each is, and what people call it.

Of the factors of a product only one is elastic, the one that a user means: heads rather than head_dim,
the channels of a group rather than the groups of a norm, kv groups rather than their copies
(DESIGN, section 3.4). So half the width never quietly means a quarter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sortify.axes.algebra import Atom, ConcatExpr, Expr, ProductExpr, atoms, fix, resolve
from sortify.axes.analysis import Analysis
from sortify.axes.control import Control, check_used, matching
from sortify.axes.reasons import UNUSED, Reason
from sortify.axes.rules.table import Dims
from sortify.capture.capture import Captured

# What an atom was seen doing -> how much a user means it when it shares a product with others.
PREFERENCE = {"heads": 3, "head_dim": 1, "norm_groups": 1, "repeat": 1}
# Kind -> the group by which people cut it; what is left full by default is a group of its own once it is freed.
GROUPS = {"hidden": "width", "inner": "width", "channels": "width", "heads": "heads"}
GROUPS |= {kind: kind for kind in ("head_dim", "norm_groups", "repeat", "factor")}


FOUND = Control()


@dataclass(frozen=True)
class Choice:
    """An atom that becomes an axis."""

    name: str
    kind: str
    atom: Atom
    parameters: tuple[str, ...]


def choose(
    analysis: Analysis, captured: Captured, streams: Iterable[Dims], control: Control = FOUND
) -> tuple[list[Choice], dict[Atom, Reason], dict[Atom, str]]:
    """The atoms that become axes, those left full with the reason, and the names of both.

    Args:
        analysis: the dimensions of every tensor.
        captured: tells which tensors are parameters.
        streams: the dimensions of the tensors that blocks hand to each other.
        control: what the caller wants otherwise.
    """
    carriers = _carriers(analysis, captured)
    partners = _partners(analysis)
    chosen, left = _select(carriers, partners)
    stream = {atom for dims in streams for dim in dims for atom in atoms(dim)}
    ranks = {name: len(dims) for name, dims in analysis.tensors.items()}
    kinds = {
        atom: _kind(atom, stream, bool(partners.get(atom)), [ranks[name] for name in carriers[atom]]) for atom in chosen
    } | {atom: _left_kind(atom) for atom in left}
    order = [*chosen, *left]
    names = _names([(atom, kinds[atom], carriers[atom]) for atom in order])
    reasons = {
        atom: Reason(
            f"{kinds[atom]} of size {atom.size.count} stays full by default: it is multiplied with an elastic "
            f"dimension of size {winner.size.count}",
            remedy=f"free='{names[atom]}'",
        )
        for atom, winner in left.items()
        if matching(control.free, [names[atom]]) is None
    }
    for atom in chosen:
        pattern = matching(control.fix, [names[atom], *carriers[atom]])
        if pattern is not None:
            reasons[atom] = Reason(f"the caller fixed it: fix='{pattern}'")
    outputs = [name for program in captured.programs.values() for name in program.outputs.names()]
    check_used("free", control.free, [*(names[atom] for atom in left), *outputs])
    taken = [atom for atom in order if atom not in reasons]
    return [Choice(names[atom], kinds[atom], atom, tuple(carriers[atom])) for atom in taken], reasons, names


def _carriers(analysis: Analysis, captured: Captured) -> dict[Atom, list[str]]:
    """Every open atom that a parameter carries -> the names of those parameters, in order."""
    _fix_unused(analysis, captured)
    found: dict[Atom, list[str]] = {}
    for name, info in captured.infos.items():
        if info.kind == "parameter":
            for dim in analysis.tensors[name]:
                for atom in atoms(dim):
                    if atom.fixed is None and name not in found.setdefault(atom, []):
                        found[atom].append(name)
    return found


def _fix_unused(analysis: Analysis, captured: Captured) -> None:
    used = set[str]()
    for program in captured.programs.values():
        holes = [node for node in program.graph.nodes if node.op == "placeholder"][2:]
        used |= {name for hole, name in zip(holes, program.tensors, strict=False) if hole.users}
    for name in captured.infos.keys() - used:
        for dim in analysis.tensors[name]:
            fix(dim, UNUSED)


def _partners(analysis: Analysis) -> dict[Atom, set[Atom]]:
    """Which open atoms are factors of the same product, or heads and head_dim of the same tensor."""
    found: dict[Atom, set[Atom]] = {}
    for dims in analysis.tensors.values():
        free = [atom for dim in dims for atom in atoms(dim) if atom.fixed is None]
        heads = {atom for atom in free if "heads" in atom.roles and "head_dim" not in atom.roles}
        widths = {atom for atom in free if "head_dim" in atom.roles and "heads" not in atom.roles}
        for mine, theirs in ((heads, widths), (widths, heads)):
            for atom in mine:
                found.setdefault(atom, set()).update(theirs - {atom})
        for dim in dims:
            for factors in _products(dim):
                groups = [[a for a in atoms(f) if a.fixed is None] for f in factors]
                for i, group in enumerate(groups):
                    others = {a for j, other in enumerate(groups) if j != i for a in other}
                    for atom in group:
                        found.setdefault(atom, set()).update(others - {atom})
    return found


def _products(expr: Expr) -> Iterator[Sequence[Expr]]:
    expr = resolve(expr)
    if isinstance(expr, ProductExpr):
        yield expr.factors
        for factor in expr.factors:
            yield from _products(factor)
    elif isinstance(expr, ConcatExpr):
        for segment in expr.segments:
            yield from _products(segment)


def _preference(atom: Atom) -> int:
    known = [PREFERENCE[role] for role in atom.roles if role in PREFERENCE]
    return min(known) if known and min(known) < 3 and "heads" not in atom.roles else max(known, default=2)


def _select(
    candidates: Mapping[Atom, Sequence[str]], partners: Mapping[Atom, set[Atom]]
) -> tuple[list[Atom], dict[Atom, Atom]]:
    """Take the preferred atoms first: of heads those of most parameters (groups before the heads of a group), else the
    largest. A partner of a taken one stays full: those are returned too, each with the taken one.
    """

    def rank(atom: Atom) -> tuple[int, int, int]:
        return _preference(atom), len(candidates[atom]) if "heads" in atom.roles else 0, atom.size.count

    order = sorted(candidates, key=rank, reverse=True)
    taken: set[Atom] = set()
    left: dict[Atom, Atom] = {}
    for atom in order:
        winner = next((p for p in partners.get(atom, ()) if p in taken), None)
        if winner is None:
            taken.add(atom)
        else:
            left[atom] = winner
    return [atom for atom in candidates if atom in taken], left


def _left_kind(atom: Atom) -> str:
    return next((role for role in ("head_dim", "norm_groups", "repeat") if role in atom.roles), "factor")


def _kind(atom: Atom, stream: set[Atom], multiplied: bool, ranks: Sequence[int]) -> str:
    """What people call the axis; `ranks` are those of the parameters that carry it.

    An axis that a convolution reads, or that more convolutions than matrices carry, is one of channels: the stream
    of a vision transformer is hidden, although a convolution makes the patches.
    """
    if "heads" in atom.roles and (multiplied or "head_dim" not in atom.roles):
        return "heads"
    kernels, matrices = sum(rank > 2 for rank in ranks), sum(rank == 2 for rank in ranks)
    if "convolution_input" in atom.roles or ("convolved" in atom.roles and kernels >= matrices):
        return "channels"
    return "hidden" if atom in stream else "inner"


def _names(items: Sequence[tuple[Atom, str, Sequence[str]]]) -> dict[Atom, str]:
    """Short names first; names that collide fall back to the module that makes the axis, then to numbers."""
    names: dict[Atom, str] = {}
    taken: set[str] = set()
    short = [_join(_shared(parameters), kind) for _, kind, parameters in items]
    for (atom, kind, parameters), name in zip(items, short, strict=True):
        if short.count(name) > 1:
            name = _join(parameters[0].rpartition(".")[0], kind)
        base, number = name, 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name)
        names[atom] = name
    return names


def _shared(parameters: Sequence[str]) -> str:
    paths = [name.split(".")[:-1] for name in parameters]
    if len(paths) == 1:
        return ".".join(paths[0])
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _join(path: str, kind: str) -> str:
    return re.sub(r"[^\w.]", "_", f"{path}.{kind}" if path else kind)
