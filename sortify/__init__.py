"""sortify: turn any PyTorch model into a nested family of models (SortedNet, arXiv 2309.00255).

Rooms, in the order in which data flows, each importing only what stands before it:

    errors, files, difference   one-line errors; files that appear when complete; how far apart two outputs are
    graph/       nested values, sizes, dimensions, calls and graphs, as JSON too
    sources/     a model and its example inputs, from what the user names
    capture/     torch.export, twice, made plain
    axes/        the dimension algebra, its rules, the names
    depth        which blocks can be bypassed
    plan         what was found, as a frozen value
    rewriting/   the slice node; the rewritten graph
    costs/       exact costs, of one sub-network and of many
    space/       sub-networks, what there is to choose from, the one for a budget; measured costs
    network/     modules made of graphs; exits; everything but the tensors; sub-networks on their own
    proof/       checks by running; which sizes the graphs serve
    models/      the sorted model, whole or in parts; calibration, checkpoints, profiles
    ordering/    which units and blocks small sub-networks keep
    convert      all of it in one call
    native/      a sub-network as its own library knows it: the original class with smaller settings
    formats/     a sub-network as files that need no sortify, checked by running them; families of them
    data/, tasks/   batches; what a batch is to a model: inputs, a loss, scores
    training/    samplers, objectives, the update, the trainer, callbacks of other loops
    evaluate     every sub-network of a grid
    reporting/   a sorted model and its runs in pictures, words and one page
"""

from __future__ import annotations

from sortify.axes.rules.registration import register_rule
from sortify.axes.rules.table import Call
from sortify.convert import sortify
from sortify.costs.cost import Cost, Costs
from sortify.data.load import Data, load_data
from sortify.depth import Block, Chain
from sortify.difference import difference
from sortify.errors import (
    AxesError,
    BudgetError,
    CaptureError,
    CheckpointError,
    DataError,
    InputError,
    NativeError,
    ProfileError,
    ProofError,
    SortifyError,
    SourceError,
    TrainingError,
)
from sortify.evaluate import Evaluation, evaluate
from sortify.formats.family import Family, Member, extract_family
from sortify.formats.members import FORMS, Written, write_subnet
from sortify.formats.table import FORMATS, write
from sortify.models.composed import ComposedModel
from sortify.models.loading import load
from sortify.models.scores import Chosen
from sortify.models.sorted_model import SortedModel
from sortify.native.native import Native, has_native_library, to_native
from sortify.native.nearest import nearest_native
from sortify.native.sharing import share_weights
from sortify.native.shrinking import Smaller, to_module
from sortify.network.extract import ExtractedModel
from sortify.plan import Axis, Frozen, Plan
from sortify.proof.proof import Check, Report
from sortify.reporting import describe
from sortify.reporting.picture import draw
from sortify.reporting.portrait import draw_model
from sortify.reporting.report import write_report
from sortify.sources.inputs import example_inputs_for
from sortify.sources.source import Source, load_source
from sortify.space.profile import MeasuredCost, Profile
from sortify.space.space import Space, Subnet, Trained
from sortify.tasks.inputs import Vocabulary
from sortify.tasks.own import OwnTask
from sortify.tasks.registry import task_for
from sortify.training.config import TrainConfig
from sortify.training.objectives import OBJECTIVES, make_objective, register_objective
from sortify.training.samplers import SAMPLERS, make_sampler, register_sampler
from sortify.training.train import Trainer
from sortify.training.update import SortedUpdate

__version__ = "0.1.0"

__all__ = [
    "FORMATS",
    "FORMS",
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
    "Family",
    "Frozen",
    "InputError",
    "MeasuredCost",
    "Member",
    "Native",
    "NativeError",
    "OwnTask",
    "Plan",
    "Profile",
    "ProfileError",
    "ProofError",
    "Report",
    "Smaller",
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
    "Written",
    "describe",
    "difference",
    "draw",
    "draw_model",
    "evaluate",
    "example_inputs_for",
    "extract_family",
    "has_native_library",
    "load",
    "load_data",
    "load_source",
    "make_objective",
    "make_sampler",
    "nearest_native",
    "register_objective",
    "register_rule",
    "register_sampler",
    "share_weights",
    "sortify",
    "task_for",
    "to_module",
    "to_native",
    "write",
    "write_report",
    "write_subnet",
]
