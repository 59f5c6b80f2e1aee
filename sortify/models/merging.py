"""Merging: the plans, costs and sub-networks of a model's parts as those of one model.

Names of axes, chains, blocks and tensors get the part's module path in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import Tensor

from sortify.costs.cost import CostModel, Term
from sortify.depth import Block, Chain
from sortify.graph.dims import Concat, Dim, Named, Product
from sortify.models.sorted_model import SortedModel
from sortify.plan import Frozen, Plan
from sortify.space.space import Subnet


@dataclass(frozen=True, eq=False)
class Part:
    """One captured part: its module path, the sorted model in its place, and how often a call of the whole runs it."""

    path: str
    model: SortedModel
    calls: int = 1


def merge_plans(
    parts: Iterable[Part], left: Mapping[str, str], implied: Mapping[str, Any] = MappingProxyType({})
) -> Plan:
    """One plan for all parts.

    Args:
        parts: the parts.
        left: module path -> why it runs as it was.
        implied: arguments that calls of the whole may leave out -> what they are then.
    """
    plans = [_prefixed(part.path, part.model.plan) for part in parts]
    return Plan(
        axes=tuple(axis for plan in plans for axis in plan.axes),
        chains=tuple(chain for plan in plans for chain in plan.chains),
        frozen=(
            *(frozen for plan in plans for frozen in plan.frozen),
            *(Frozen("capture", f"{path} runs as it was: {why}") for path, why in left.items()),
            *(
                Frozen("capture", f"{name}={value!r} is taken where a call leaves it out")
                for name, value in implied.items()
            ),
        ),
        shapes={name: dims for plan in plans for name, dims in plan.shapes.items()},
        literals={},
    )


def _prefixed(path: str, plan: Plan) -> Plan:
    return Plan(
        axes=tuple(
            replace(axis, name=f"{path}.{axis.name}", parameters=tuple(f"{path}.{name}" for name in axis.parameters))
            for axis in plan.axes
        ),
        chains=tuple(
            Chain(f"{path}.{chain.name}", tuple(Block(f"{path}.{b.name}", b.regions) for b in chain.blocks))
            for chain in plan.chains
        ),
        frozen=tuple(
            replace(frozen, why=f"{path}: {frozen.why}")
            if frozen.where == "capture"
            else replace(frozen, where=f"{path}.{frozen.where}")
            for frozen in plan.frozen
        ),
        shapes={f"{path}.{name}": tuple(_renamed(d, path) for d in dims) for name, dims in plan.shapes.items()},
        literals={},
    )


def _renamed(dim: Dim, path: str) -> Dim:
    match dim:
        case Named(axis, size):
            return Named(f"{path}.{axis}", size)
        case Product(factors):
            return Product(tuple(_renamed(f, path) for f in factors))
        case Concat(segments):
            return Concat(tuple(_renamed(s, path) for s in segments))
        case _:
            return dim


def merge_costs(parts: Iterable[Part], plan: Plan, rest: int) -> CostModel:
    """The cost of all parts for one call of the whole, and the parameters of the rest.

    Args:
        parts: the parts; what one call costs is counted at the sizes of its first call.
        plan: the merged plan.
        rest: the number of parameters outside the parts. Their FLOPs are unknown and not counted.
    """
    terms = [Term("params", rest, ())] if rest else []
    offset = 0
    for part in parts:
        for term in part.model.blueprint.costs.at_examples():
            weight = term.weight * (1 if term.metric == "params" else part.calls)
            dims = tuple(_renamed(d, part.path) for d in term.dims)
            needs = tuple(tuple((chain + offset, n) for chain, n in blocks) for blocks in term.needs)
            terms.append(Term(term.metric, weight, dims, needs))
        offset += len(part.model.plan.chains)
    return CostModel(terms, [axis.name for axis in plan.axes])


def split(subnet: Subnet, part: Part) -> Subnet:
    """What a sub-network of the whole means for one part."""
    sizes, depths = dict(subnet.sizes), dict(subnet.depths)
    return Subnet(
        tuple((axis.name, sizes[f"{part.path}.{axis.name}"]) for axis in part.model.plan.axes),
        tuple((chain.name, depths[f"{part.path}.{chain.name}"]) for chain in part.model.plan.chains),
    )


def inside(tensors: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    """Those of a part, by its own names."""
    start = f"{part.path}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
