"""sortify: turn any PyTorch model into a nested family of models (SortedNet, arXiv 2309.00255).

Rooms, in the order in which data flows, each importing only what stands before it:

    errors, files        one-line errors; files that appear when complete
    structure, arithmetic, symbols, signature, graphs   nested values, sizes, calls and graphs as JSON
    sources              a model and its example inputs, from what the user names
    capture              torch.export, twice, made plain
    axes/                the dimension algebra, its rules, the names
    depth                which blocks can be bypassed
    dims, plan           what was found, as a frozen value
    slicing, rewrite     the slice node; the rewritten graph
    open_sizes, presence, cost_table, cost, counting   exact costs, of one sub-network and of many
    levels, subnet, budget, search, space   sub-networks, what there is to choose from, and the one for a budget
    fitting, profile     what sub-networks cost on a machine, as measured and as predicted
    network, exits, blueprint   modules made of graphs; everything but the tensors
    extract, trials, proof, bounds   sub-networks on their own; checks by running; which sizes the graphs serve
    calibration, checkpoint, scores, peak, profiling, model   the sorted model
    activity, importance, block_order, order   which units and blocks small sub-networks keep
    merging, parts_store, composed, parts   models that are captured in parts
    convert              all of it in one call
    data, tasks, samplers, objectives, update, train, evaluate, picture   training and what came of it
    portrait, describe   a sorted model in pictures and words
    charts, curves, page, report_model, report_runs, report_scores, report   all of it on one page
"""

from __future__ import annotations

from sortify import describe
from sortify.axes.rules.registration import register_rule
from sortify.axes.rules.table import Call
from sortify.composed import ComposedModel, load
from sortify.convert import sortify
from sortify.cost import Cost, Costs
from sortify.data import Data, load_data
from sortify.depth import Block, Chain
from sortify.difference import difference
from sortify.errors import (
    AxesError,
    BudgetError,
    CaptureError,
    CheckpointError,
    DataError,
    InputError,
    ProfileError,
    ProofError,
    SortifyError,
    SourceError,
    TrainingError,
)
from sortify.evaluate import Evaluation, evaluate
from sortify.extract import ExtractedModel, write
from sortify.inputs import example_inputs_for
from sortify.model import SortedModel
from sortify.objectives import OBJECTIVES, make_objective, register_objective
from sortify.picture import draw
from sortify.plan import Axis, Frozen, Plan
from sortify.portrait import draw_model
from sortify.profile import MeasuredCost, Profile
from sortify.proof import Check, Report
from sortify.report import write_report
from sortify.samplers import SAMPLERS, make_sampler, register_sampler
from sortify.scores import Chosen
from sortify.sources import Source, load_source
from sortify.space import Space, Subnet, Trained
from sortify.tasks import OwnTask, Vocabulary, task_for
from sortify.train import Trainer
from sortify.training_config import TrainConfig
from sortify.update import SortedUpdate

__version__ = "0.1.0"

__all__ = [
    "OBJECTIVES",
    "SAMPLERS",
    "AxesError",
    "Axis",
    "Block",
    "BudgetError",
    "Call",
    "CaptureError",
    "Chain",
    "Check",
    "CheckpointError",
    "Chosen",
    "ComposedModel",
    "Cost",
    "Costs",
    "Data",
    "DataError",
    "Evaluation",
    "ExtractedModel",
    "Frozen",
    "InputError",
    "MeasuredCost",
    "OwnTask",
    "Plan",
    "Profile",
    "ProfileError",
    "ProofError",
    "Report",
    "SortedModel",
    "SortedUpdate",
    "SortifyError",
    "Source",
    "SourceError",
    "Space",
    "Subnet",
    "TrainConfig",
    "Trained",
    "Trainer",
    "TrainingError",
    "Vocabulary",
    "describe",
    "difference",
    "draw",
    "draw_model",
    "evaluate",
    "example_inputs_for",
    "load",
    "load_data",
    "load_source",
    "make_objective",
    "make_sampler",
    "register_objective",
    "register_rule",
    "register_sampler",
    "sortify",
    "task_for",
    "write",
    "write_report",
]
