"""Models of the zoo with their axes, chains and costs, found once per process; what was found is not proven here."""

from __future__ import annotations

from functools import cache

from torch import nn
from zoo import MODELS, Case

from sortify.axes.analysis import analyse
from sortify.capture.capture import Captured, capture
from sortify.costs.counting import make_cost_model
from sortify.depth import find_chains
from sortify.graph.dims import Named
from sortify.network.blueprint import Blueprint
from sortify.plan import make_plan

CASES: dict[str, Case] = {case.name: case for case in MODELS}


def blueprint_of(module: nn.Module, inputs: object) -> tuple[Captured, Blueprint]:
    """Capture a model and find out all about it."""
    captured = capture(module, inputs)  # type: ignore[arg-type]
    analysis = analyse(captured)
    chains, notes = find_chains(captured, analysis)
    plan, atoms = make_plan(captured, analysis, chains, notes)
    named = {atom: Named(name, atom.size.count) for name, atom in atoms.items()}
    costs = make_cost_model(captured, analysis, plan, named)
    return captured, Blueprint(captured.programs, captured.infos, captured.aliases, captured.signature, plan, costs)


@cache
def found(name: str) -> tuple[Captured, Blueprint]:
    """The model of that name in the zoo."""
    return blueprint_of(CASES[name].build(), CASES[name].inputs())
