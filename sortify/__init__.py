"""sortify: turn any PyTorch model into a nested family of models (SortedNet, arXiv 2309.00255).

Rooms, in the order in which data flows, each importing only what stands before it:

    errors, files        one-line errors; files that appear when complete
    structure, signature, graphs   nested values, calls and graphs as JSON
    sources              a model and its example inputs, from what the user names
    capture              torch.export, twice, made plain
    axes/                the dimension algebra, its rules, the names
    depth                which blocks can be bypassed
    dims, plan           what was found, as a frozen value
    slicing, rewrite     the slice node; the rewritten graph
    cost, space          exact costs; sub-networks and budgets
    network, blueprint   modules made of graphs; everything but the tensors
    extract, proof       sub-networks on their own; checks by running
    calibration, checkpoint, model, convert   the sorted model
    data, tasks, samplers, update, train, evaluate, picture   training and what came of it
"""

from __future__ import annotations

from sortify.convert import sortify
from sortify.cost import Cost
from sortify.errors import SortifyError
from sortify.model import SortedModel, load
from sortify.plan import Axis, Frozen
from sortify.space import Space, Subnet

__all__ = ["Axis", "Cost", "Frozen", "SortedModel", "SortifyError", "Space", "Subnet", "load", "sortify"]
