"""The order in which the blocks of a chain are given up, when it is not that in which they run.

A sub-network keeps the first blocks of the chain as it is written down; they still run in their own order. What an
operation outside the blocks needs (a mask that all blocks read) was worked out for one order, and costs go by it; so
another order is taken only where what every cost needs is known in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from sortify.costs.cost import CostModel
from sortify.costs.presence import Needs, needs_of_nodes, needs_of_parameters
from sortify.depth import Chain
from sortify.network.blueprint import Blueprint

FIRST_STAYS = "the first block stays first: what others need is counted with it"
AS_IT_RUNS = "what its costs need is not known in another order"


def in_order(blueprint: Blueprint, orders: Mapping[str, Sequence[int]]) -> tuple[Blueprint, dict[str, str]]:
    """A model whose chains keep their blocks in another order.

    Args:
        blueprint: the model.
        orders: chain -> the places of its blocks, the most important first.

    Returns:
        The model, and for chains that could not be ordered as asked why.
    """
    left: dict[str, str] = {}
    for number, chain in enumerate(blueprint.plan.chains):
        wanted = list(orders.get(chain.name, range(len(chain.blocks))))
        if sorted(wanted) != list(range(len(chain.blocks))):
            raise ValueError(f"{chain.name}: {wanted} is no order of {len(chain.blocks)} blocks")
        if wanted == sorted(wanted):
            continue
        pinned = [0, *(place for place in wanted if place != 0)]
        found = _ordered(blueprint, number, wanted)
        if found is None:
            left[chain.name] = FIRST_STAYS
            found = _ordered(blueprint, number, pinned)
        if found is None:
            left[chain.name] = AS_IT_RUNS
        blueprint = found or blueprint
    return blueprint, left


def _ordered(blueprint: Blueprint, number: int, wanted: Sequence[int]) -> Blueprint | None:
    """One chain in another order; None where costs of equal needs would need different things."""
    chains = list(blueprint.plan.chains)
    before, chain = tuple(chains), chains[number]
    chains[number] = Chain(chain.name, tuple(chain.blocks[place] for place in wanted))
    known: dict[tuple[bool, Needs], Needs] = {}
    for kind, old, new in _needs(blueprint, before, tuple(chains)):
        if known.setdefault((kind, old), new) != new:
            return None
    terms = []
    for term in blueprint.costs.terms:
        needs = known.get((term.metric == "params", term.needs), term.needs if not term.needs[0] else None)
        if needs is None:
            return None
        terms.append(replace(term, needs=needs))
    costs = CostModel(terms, [axis.name for axis in blueprint.plan.axes], blueprint.costs.opens)
    return replace(blueprint, plan=replace(blueprint.plan, chains=tuple(chains)), costs=costs)


def _needs(
    blueprint: Blueprint, before: Sequence[Chain], after: Sequence[Chain]
) -> Iterator[tuple[bool, Needs, Needs]]:
    """What every operation and every parameter needs, in both orders; parameters are told apart."""
    programs = blueprint.programs
    old, new = ({m: needs_of_nodes(p, chains, m) for m, p in programs.items()} for chains in (before, after))
    for node in programs["eval"].graph.nodes:
        if node.op == "call_function":
            yield False, old["eval"][node.name], new["eval"][node.name]
    first, second = needs_of_parameters(programs, old), needs_of_parameters(programs, new)
    yield from ((True, needs, second[name]) for name, needs in first.items())
