"""Which ops a sub-network runs: those whose result reaches the output once its bypassed blocks are gone.

An encoder that only one block of a decoder reads is not needed where that block is bypassed. What an op needs is
written as alternatives: each names blocks that must all be kept, as (chain index, block number).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import fx

from sortify.capture.lifting import Program
from sortify.depth import Chain
from sortify.graph.ops import has_effect

Blocks = tuple[tuple[int, int], ...]
Needs = tuple[Blocks, ...]
"""Alternatives; no alternative at all: never needed."""
ALWAYS: Needs = ((),)
NEVER: Needs = ()


def either(alternatives: Iterable[Needs]) -> Needs:
    """What is needed where any of the given needs is met: the weakest alternatives, in order."""
    found = {blocks for needs in alternatives for blocks in needs}
    weakest = [a for a in found if not any(b != a and _implies(a, b) for b in found)]
    return tuple(sorted(weakest))


def both(first: Needs, second: Needs) -> Needs:
    """What is needed where both are met."""
    return either([tuple(_together(a, b) for a in first for b in second)])


def _implies(a: Blocks, b: Blocks) -> bool:
    """Whether keeping the blocks of `a` keeps those of `b`: a chain keeps all blocks before one that it keeps."""
    kept = dict(a)
    return all(kept.get(chain, -1) >= number for chain, number in b)


def _together(a: Blocks, b: Blocks) -> Blocks:
    last = dict(a)
    for chain, number in b:
        last[chain] = max(number, last.get(chain, -1))
    return tuple(sorted(last.items()))


def needs_of_nodes(program: Program, chains: Sequence[Chain], mode: str) -> dict[str, Needs]:
    """What each node of a graph needs in order to be run, by node name.

    Args:
        program: the captured graph of one mode.
        chains: the chains of blocks that a sub-network may bypass.
        mode: 'train' or 'eval'.
    """
    own: dict[str, Needs] = {}
    exits: dict[str, list[str]] = {}
    for number, chain in enumerate(chains):
        for place, block in enumerate(chain.blocks):
            region = block.regions[mode]
            own |= dict.fromkeys(region.nodes, (((number, place),),))
            exits.setdefault(region.entry, []).append(region.exit)
    read: dict[str, Needs] = {}
    needs: dict[str, Needs] = {}
    for node in reversed(list(program.graph.nodes)):
        # Where a block is bypassed, those who read its exit read its entry.
        users = [needs[user.name] for user in node.users] + [read[exit] for exit in exits.get(node.name, ())]
        read[node.name] = ALWAYS if _stays(node) else either(users)
        needs[node.name] = both(own.get(node.name, ALWAYS), read[node.name])
    return needs


def needs_of_parameters(programs: Mapping[str, Program], needs: Mapping[str, Mapping[str, Needs]]) -> dict[str, Needs]:
    """What each tensor needs in order to be read in any mode, by its name; tensors that nothing reads are left out.

    Args:
        programs: the graphs by mode.
        needs: by mode, of every node.
    """
    readers: dict[str, list[Needs]] = {}
    for mode, program in programs.items():
        holes = [node for node in program.graph.nodes if node.op == "placeholder"][2:]
        for hole, name in zip(holes, program.tensors, strict=False):
            if hole.users:
                readers.setdefault(name, []).append(needs[mode][hole.name])
    return {name: either(own) for name, own in readers.items()}


def _stays(node: fx.Node) -> bool:
    """Whether a node is run although nobody may read it."""
    return node.op == "output" or (node.op == "call_function" and has_effect(node))
