"""Depth: which blocks can be bypassed, found on the graph.

A block is a single-entry single-exit region: for its input u and output v, nothing strictly inside is used
outside, v has the dimension expressions of u, the region holds weights that contract, and a residual path leads
from u to v through additions and ops that keep every element in its place (DESIGN, section 5).

The finest such regions are found by post-dominators, put in order along their stream, and the smallest
repeating run of them is one block: attention and feed-forward of a transformer layer belong together
because they alternate. Blocks of equal structure that follow each other make a chain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch import fx

from sortify.axes.analysis import Analysis, dims_equal
from sortify.axes.rules import CONTRACTIONS
from sortify.axes.rules.pointwise import POINTWISE, SAME_SHAPE
from sortify.axes.rules.reductions import NORMALISATIONS
from sortify.axes.rules.table import overloads
from sortify.capture.capture import Captured
from sortify.capture.lifting import Program, shares_memory

SINK = "sink"
ADDITIONS = frozenset(overloads("add"))
IN_PLACE = frozenset([*POINTWISE, *SAME_SHAPE, *NORMALISATIONS])


@dataclass(frozen=True)
class Region:
    """One block in one graph, by node names; `nodes` are those strictly after `entry` up to `exit`."""

    entry: str
    exit: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """One bypassable block: its module path and its region in each graph, by mode."""

    name: str
    regions: Mapping[str, Region]


@dataclass(frozen=True)
class Chain:
    """Blocks of equal structure that follow each other; a sub-network keeps the first k."""

    name: str
    blocks: tuple[Block, ...]


@dataclass(eq=False)
class _Residual:
    """A finest region: from `entry` through `addition`, with `tail` up to the next region's entry."""

    entry: fx.Node
    addition: fx.Node
    tail: tuple[fx.Node, ...] = ()

    @property
    def exit(self) -> fx.Node:
        return self.tail[-1] if self.tail else self.addition


class _Flow:
    """One program's data flow: which tensors depend on which."""

    def __init__(self, program: Program, analysis: Analysis, mode: str) -> None:
        self.known = analysis.nodes[mode]
        self.nodes = list(program.graph.nodes)
        self.order = {node: place for place, node in enumerate(self.nodes)}
        holes = [node for node in self.nodes if node.op == "placeholder"]
        self.weights = dict(zip(holes[2:], program.tensors, strict=False))
        self.made_of_weights = _made_of_weights(self.nodes, self.weights, self.known)
        self.graph: nx.DiGraph[fx.Node | str] = nx.DiGraph()
        for node in self.nodes:
            if node.op != "output":
                ends = [SINK if user.op == "output" else user for user in node.users] or [SINK]
                self.graph.add_edges_from((node, end) for end in ends)
        self.next: dict[fx.Node | str, fx.Node | str] = nx.immediate_dominators(self.graph.reverse(copy=False), SINK)
        self.in_blocks: set[fx.Node] = set()

    def between(self, entry: fx.Node, exit: fx.Node) -> list[fx.Node]:
        """The nodes on paths from `entry` (left out) to `exit`, in program order."""
        reached = {entry}
        for node in self.nodes[self.order[entry] + 1 : self.order[exit] + 1]:
            if any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        needed = {exit}
        for node in reversed(self.nodes[self.order[entry] + 1 : self.order[exit] + 1]):
            if node in reached and any(user in needed for user in node.users):
                needed.add(node)
        return sorted((needed & reached) - {entry}, key=self.order.__getitem__)

    def owned(self, entry: fx.Node, exit: fx.Node) -> list[fx.Node]:
        """The nodes between, and those that feed them and nothing else (a gate, keys of an encoder's output).

        What lies in another block (the encoder itself) belongs to that block.
        """
        inside = set(self.between(entry, exit))
        for node in reversed(self.nodes[: self.order[exit]]):
            own = node is not entry and node not in self.in_blocks
            if node.op == "call_function" and node.users and own and inside.issuperset(node.users):
                inside.add(node)
        return sorted(inside, key=self.order.__getitem__)

    def closed(self, entry: fx.Node, exit: fx.Node) -> bool:
        """Whether nothing strictly inside is used outside."""
        inside = set(self.between(entry, exit))
        return all(user in inside for node in inside - {exit} for user in node.users) and not self.changed(exit)

    def changed(self, node: fx.Node) -> bool:
        """Whether an op changes the memory of `node` in place, itself or a view of it."""
        for user in node.users:
            schema = getattr(user.target, "_schema", None)
            if schema is not None and schema.is_mutable:
                return True
            if shares_memory(user) and self.changed(user):
                return True
        return False

    def tensors(self, nodes: Iterable[fx.Node]) -> frozenset[str]:
        """The names of the tensors that the given nodes use."""
        return frozenset(self.weights[s] for node in nodes for s in node.all_input_nodes if s in self.weights)


def find_chains(captured: Captured, analysis: Analysis) -> tuple[list[Chain], list[str]]:
    """The chains of bypassable blocks, and what was found in one mode only, as text.

    Blocks are found on the eval graph and matched in the train graph by the tensors that they use.
    """
    flows = {mode: _Flow(program, analysis, mode) for mode, program in captured.programs.items()}
    runs = {mode: _runs(flow, _residuals(flow)) for mode, flow in flows.items()}
    for mode, flow in flows.items():
        flow.in_blocks = {n for run in runs[mode] for r in run for n in flow.between(r.entry, r.exit)}
    chains, left, taken = list[Chain](), list[str](), set[str]()
    for run in runs["eval"]:
        for group in _repeats([_signature(flows["eval"], r) for r in run]):
            blocks = _trim([[run[i] for i in block] for block in group], flows["eval"])
            found = [_block(block, flows, runs["train"], taken) for block in blocks]
            if found and all(block is not None for block in found):
                whole = tuple(block for block in found if block is not None)
                chains.append(Chain(_chain_name(whole, chains), whole))
            elif found:
                left.append(f"{_name(flows['eval'], blocks[0])}: the train graph has no such block")
    return chains, left


def _residuals(flow: _Flow) -> list[_Residual]:
    """The finest residual regions in program order: those that hold no other, nor a part of one."""
    found: list[tuple[_Residual, frozenset[fx.Node]]] = []
    for entry in flow.nodes:
        if len(entry.users) < 2 or entry in flow.weights or not isinstance(flow.known.get(entry), tuple):
            continue
        exit = flow.next.get(entry)
        if not isinstance(exit, fx.Node) or not dims_equal(flow.known[entry], flow.known.get(exit) or ()):
            continue
        if not _passes_through(flow, entry, exit) or not flow.closed(entry, exit):
            continue
        inside = flow.between(entry, exit)
        if _contracts(flow, inside):
            found.append((_Residual(entry, exit), frozenset(inside)))
    kept, taken = list[_Residual](), set[fx.Node]()
    for residual, members in sorted(found, key=lambda item: (flow.order[item[0].exit], len(item[1]))):
        if taken.isdisjoint(members):
            kept.append(residual)
            taken |= members
    return sorted(kept, key=lambda residual: flow.order[residual.entry])


def _made_of_weights(
    nodes: Sequence[fx.Node], weights: Iterable[fx.Node], known: Mapping[fx.Node, Any]
) -> set[fx.Node]:
    """The tensors of the model, and what is computed from these alone."""
    found = set(weights)
    for node in nodes:
        tensors = [source for source in node.all_input_nodes if isinstance(known.get(source), tuple)]
        reads = node.op == "call_function" and any(source in found for source in node.all_input_nodes)
        if reads and all(source in found for source in tensors):
            found.add(node)
    return found


def _contracts(flow: _Flow, nodes: Iterable[fx.Node]) -> bool:
    return any(_is_layer(node, flow.made_of_weights) for node in nodes)


def _is_layer(node: fx.Node, weights: Collection[fx.Node]) -> bool:
    return str(node.target) in CONTRACTIONS and any(source in weights for source in node.all_input_nodes)


def output_layer_inputs(program: Program, known: Mapping[fx.Node, Any]) -> list[fx.Node]:
    """What the last layers are given: those that contract with a weight and have no other such between the outputs.

    Args:
        program: a captured graph.
        known: the dimensions of its nodes.
    """
    nodes = list(program.graph.nodes)
    holes = [node for node in nodes if node.op == "placeholder"]
    weights = _made_of_weights(nodes, holes[2 : 2 + len(program.tensors)], known)
    found, seen, open_nodes = set[fx.Node](), set[fx.Node](), list(nodes[-1].all_input_nodes)
    while open_nodes:
        node = open_nodes.pop()
        if node in seen or node in weights:
            continue
        seen.add(node)
        if _is_layer(node, weights):
            found.update(source for source in node.all_input_nodes if source not in weights)
        else:
            open_nodes.extend(node.all_input_nodes)
    return sorted((node for node in found if isinstance(known.get(node), tuple)), key=nodes.index)


def _passes_through(flow: _Flow, entry: fx.Node, exit: fx.Node) -> bool:
    """Whether a path of additions and in-place ops, with at least one addition, leads from entry to exit."""
    reached: dict[fx.Node, bool] = {entry: False}
    for node in flow.between(entry, exit):
        sources = [reached[s] for s in node.all_input_nodes if s in reached]
        if sources and _keeps_place(flow, node):
            reached[node] = any(sources) or str(node.target) in ADDITIONS
    return reached.get(exit, False)


def _keeps_place(flow: _Flow, node: fx.Node) -> bool:
    """Additions, and ops of one computed operand that leave every element where it was."""
    if str(node.target) in ADDITIONS:
        return True
    computed = [source for source in node.all_input_nodes if source not in flow.weights]
    return str(node.target) in IN_PLACE and len(computed) == 1


def _runs(flow: _Flow, residuals: Sequence[_Residual]) -> list[list[_Residual]]:
    """Put the regions in rows where one's exit, after its tail, is the next one's entry."""
    entries = {r.entry: r for r in residuals}
    rest, runs = set(residuals), list[list[_Residual]]()
    for first in residuals:
        if first not in rest:
            continue
        run, current = list[_Residual](), first
        while True:
            rest.discard(current)
            tail, follower = _tail(flow, current.addition, entries)
            run.append(_Residual(current.entry, current.addition, tail))
            if follower is None or follower not in rest:
                break
            current = follower
        runs.append(_like_the_others(flow, run))
    return runs


def _tail(
    flow: _Flow, addition: fx.Node, entries: Mapping[fx.Node, _Residual]
) -> tuple[tuple[fx.Node, ...], _Residual | None]:
    """The in-place ops between an addition and the next region's entry, and that region."""
    nodes, node = list[fx.Node](), addition
    while node not in entries:
        node_ = _only_follower(flow, node)
        if node_ is None:
            return (), None
        nodes.append(node_)
        node = node_
    return tuple(nodes), entries[node]


def _only_follower(flow: _Flow, node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    fits = len(users) == 1 and users[0].op == "call_function" and _keeps_place(flow, users[0])
    fits = fits and str(users[0].target) not in ADDITIONS
    return users[0] if fits and dims_equal(flow.known[node], flow.known.get(users[0]) or ()) else None


def _like_the_others(flow: _Flow, run: list[_Residual]) -> list[_Residual]:
    """The last region has no follower to tell its tail: it ends as the regions of its kind do."""
    kinds = {_body(flow, r): [str(n.target) for n in r.tail] for r in run[:-1]}
    last, node = run[-1], run[-1].addition
    nodes: list[fx.Node] = []
    for target in kinds.get(_body(flow, last), []):
        follower = _only_follower(flow, node)
        if follower is None or str(follower.target) != target:
            return run
        nodes.append(follower)
        node = follower
    return [*run[:-1], _Residual(last.entry, last.addition, tuple(nodes))]


def _body(flow: _Flow, residual: _Residual) -> tuple[object, ...]:
    """What the region computes: ops, integer arguments, and shapes of weights, in program order."""
    parts: list[object] = []
    for node in flow.between(residual.entry, residual.addition):
        numbers = tuple(a for a in _flat(node.args) if isinstance(a, int))
        shapes = tuple(tuple(s.meta["val"].shape) for s in node.all_input_nodes if s in flow.weights)
        parts.append((str(node.target), numbers, shapes))
    return tuple(parts)


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _flat(part)
    elif not isinstance(value, fx.Node):
        yield value


def _signature(flow: _Flow, residual: _Residual) -> tuple[object, ...]:
    return (*_body(flow, residual), tuple(str(n.target) for n in residual.tail))


def _repeats(signatures: Sequence[object]) -> Iterator[list[list[int]]]:
    """Cut a row into groups of equal blocks: the smallest period that covers the most."""
    at = 0
    while at < len(signatures):
        best, period = 1, 1
        for length in range(1, (len(signatures) - at) // 2 + 1):
            unit, count = signatures[at : at + length], 1
            while signatures[at + count * length : at + (count + 1) * length] == unit:
                count += 1
            if count > 1 and count * length > best * period:
                best, period = count, length
        yield [list(range(at + i * period, at + (i + 1) * period)) for i in range(best)]
        at += best * period


def _trim(blocks: list[list[_Residual]], flow: _Flow) -> list[list[_Residual]]:
    """Keep the leading blocks whose exit has the dimensions of their entry."""
    return [b for b in blocks if dims_equal(flow.known[b[0].entry], flow.known[b[-1].exit])]


def _region(flow: _Flow, residuals: Sequence[_Residual]) -> Region:
    entry, exit = residuals[0].entry, residuals[-1].exit
    return Region(entry.name, exit.name, tuple(node.name for node in flow.owned(entry, exit)))


def _tensors_of(flow: _Flow, residuals: Sequence[_Residual]) -> frozenset[str]:
    return flow.tensors(flow.owned(residuals[0].entry, residuals[-1].exit))


def _block(
    residuals: Sequence[_Residual],
    flows: Mapping[str, _Flow],
    train_runs: Sequence[Sequence[_Residual]],
    taken: set[str],
) -> Block | None:
    """The block with its twin in the train graph, which uses the same tensors: the first of which none is `taken`."""
    wanted = _tensors_of(flows["eval"], residuals)
    for run in train_runs:
        for start in range(len(run)):
            part = run[start : start + len(residuals)]
            if len(part) != len(residuals) or any(residual.exit.name in taken for residual in part):
                continue
            if _tensors_of(flows["train"], part) == wanted:
                taken.update(residual.exit.name for residual in part)
                regions = {"train": _region(flows["train"], part), "eval": _region(flows["eval"], residuals)}
                return Block(_name(flows["eval"], residuals), regions)
    return None


def _name(flow: _Flow, residuals: Sequence[_Residual]) -> str:
    """The module path that the block's tensors share."""
    paths = [name.split(".")[:-1] for name in sorted(_tensors_of(flow, residuals))]
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return ".".join(shared) or residuals[0].entry.name


def _chain_name(blocks: Sequence[Block], chains: Sequence[Chain]) -> str:
    """What the block names share, e.g. `encoder.layers`; made unique."""
    paths = [block.name.split(".") for block in blocks]
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    name = ".".join(shared) or "blocks"
    taken = {chain.name for chain in chains}
    candidates = (name if i == 1 else f"{name}_{i}" for i in range(1, len(chains) + 2))
    return next(c for c in candidates if c not in taken)
