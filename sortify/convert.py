"""Conversion: capture, analyse, plan, prove; what fails its proof is fixed, and the rest goes on."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from torch import nn

from sortify.axes import algebra
from sortify.axes.analysis import Analysis, analyse
from sortify.axes.control import Control
from sortify.axes.rules import RULES
from sortify.capture.capture import Captured, as_example, capture, examples_to_prove
from sortify.capture.prepare import Example, unwrap
from sortify.costs.counting import make_cost_model
from sortify.costs.kv_cache import Kept, kept_for
from sortify.depth import Chain, find_chains
from sortify.errors import AxesError, CaptureError, ExportError, ProofError
from sortify.graph.dims import Named
from sortify.models.parts import sortify_parts
from sortify.models.sorted_model import SortedModel
from sortify.network.blueprint import Blueprint
from sortify.plan import Frozen, make_plan
from sortify.proof import proof
from sortify.proof.bounds import limits_of
from sortify.proof.original import check_repeats, check_traced
from sortify.sources.inputs import example_inputs_for
from sortify.sources.origin import Origin, origin_of

FOUND = Control()


def sortify(
    module: nn.Module,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | torch.Tensor | None = None,
    *,
    dynamic: Mapping[str, Sequence[int]] | None = None,
    training: bool = True,
    fix: Sequence[str] = (),
    free: Sequence[str] = (),
    opaque: Sequence[str] = (),
    progress: bool = False,
    source: str | None = None,
) -> SortedModel:
    """Turn any PyTorch module into a nested family of models.

    Args:
        module: the model; it is not changed.
        example_inputs: positional inputs as a tuple, keyword inputs as a dict, or None to infer them from what the
            module says about itself (timm, torchvision and transformers models do).
        dynamic: dimensions to leave open beside batch and sequence, by input: {"x": (2, 3)} for images of any size.
        training: False captures evaluation only, which training mode then runs too, without dropout and the like: half
            the time, for models that are not to be trained, or whose training cannot be captured. A model that goes
            by parts is captured in both modes all the same.
        fix: patterns (`encoder.*`) of axes, by name or by a parameter that carries them, of blocks and of chains that
            are to stay as they are.
        free: patterns of axes that are left full by default, such as `*.head_dim`, and are to be elastic.
        opaque: patterns of module paths that are not to be looked into: what reaches them is fixed.
        progress: show the stages on the terminal.
        source: where the model comes from, noted for people.

    A model that cannot be captured whole is sorted in parts: the largest sub-modules that can be captured, with the
    original's code between them (`sortify.models.composed.ComposedModel`).

    Returns:
        The sorted model, full network active, in the mode (train or eval) of `module`.

    Raises:
        SourceError: the example inputs cannot be inferred.
        CaptureError: the model cannot be captured.
        AxesError: nothing in it is elastic (the message says why), or a pattern matches nothing.
        ProofError: the rewritten model does not equal the original.
    """
    module, unwrapped = unwrap(module)
    with _stages(progress) as enter, _garbage_kept():
        inputs: Any = example_inputs if example_inputs is not None else example_inputs_for(module, source or "", None)
        control = Control(*(tuple([x] if isinstance(x, str) else x) for x in (fix, free, opaque)))
        enter("capture")
        try:
            captured = capture(module, inputs, dynamic, training)
            return _sort(module, captured, control, unwrapped, source, enter)
        except ExportError as error:
            if control != FOUND:
                raise CaptureError(f"{error}; fix, free and opaque are for models that are captured whole") from error
            try:
                return sortify_parts(module, as_example(module, inputs), _sort_part, error, source)
            except CaptureError as refused:
                if training and _sorted_for_evaluation(module, inputs, dynamic):
                    raise type(refused)(f"{refused}; training=False captures it for evaluation") from refused
                raise


def _sorted_for_evaluation(module: nn.Module, inputs: Any, dynamic: Mapping[str, Sequence[int]] | None) -> bool:
    """Whether a module could be sorted with `training=False`."""
    try:
        with _stages(False) as enter:
            return bool(_sort(module, capture(module, inputs, dynamic, training=False), FOUND, [], None, enter).plan)
    except Exception:  # the error of training stands
        return False


def _sort_part(module: nn.Module, example: Example, dynamic: Mapping[str, Sequence[int]]) -> SortedModel:
    """Sort one part of a model, with the call recorded for it."""
    with _stages(False) as enter:
        enter("capture")
        return _sort(module, capture(module, example, dynamic), FOUND, [], None, enter)


def _sort(
    module: nn.Module, captured: Captured, control: Control, notes: Sequence[str], source: str | None, enter: Enter
) -> SortedModel:
    """From the captured graphs to the sorted model."""
    enter("analysis")
    analysis = analyse(captured, RULES, control.opaque, control.free)
    chains, more = find_chains(captured, analysis)
    told = [*notes, *captured.notes, *more]
    found = _Found(captured, analysis, chains, told, control, source, origin_of(module))
    enter("proof")
    blueprint, report = _proven(found, module)
    report = replace(report, seconds=enter(None), left_out=captured.left_out)
    model = SortedModel(blueprint, captured.tensors, captured.examples, report)
    return model.train(module.training)


@dataclass(frozen=True, eq=False)
class _Found:
    """What is known before the proof."""

    captured: Captured
    analysis: Analysis
    chains: list[Chain]
    notes: list[str]
    control: Control
    source: str | None
    origin: Origin | None


def _proven(found: _Found, module: nn.Module) -> tuple[Blueprint, proof.Report]:
    """Plan and prove; axes that fail are fixed with the reason until the rest passes."""
    captured = found.captured
    examples = examples_to_prove(captured, module)
    kept = kept_for(captured, examples, proof.SINGLE)
    while True:
        blueprint, atoms = _plan(found, kept)
        if any(tensor.is_meta for tensor in captured.tensors.values()):
            return blueprint, proof.NOT_RUN
        with captured.left_out.of(module):
            report = proof.prove(blueprint, captured.tensors, examples, module)
            limits = limits_of(blueprint, captured.traced, captured.tensors, examples, module) if report.passed else ()
        if report.passed:
            return _limited(blueprint, limits), report
        failing = [] if _passed(report, "permutation") else proof.failing_axes(blueprint, captured.tensors, examples)
        why = "permuting it changed the outputs"
        if not failing and not _passed(report, "slice"):
            why = "cutting it gives another result than its extraction, or none"
            failing = proof.axes_that_do_not_slice(blueprint, captured.tensors, examples)
        if not failing:
            with captured.left_out.of(module):
                check_repeats(blueprint, captured.tensors, examples, module, proof.SINGLE)
                check_traced(blueprint, captured.tensors, examples, module, proof.SINGLE)
            row = next(row for row in report.rows if not row.passed)
            if row.name == proof.GRADIENTS:
                raise ExportError(
                    f"{type(module).__name__} trains in another way than the graph that torch.export makes of it: its "
                    f"gradients are off by {row.error:.3g}, as where it brings along a backward pass of its own (a "
                    "custom autograd function, a hook); training=False captures it for evaluation"
                )
            raise ProofError(
                f"{type(module).__name__}: {row.name} failed: error {row.error:.3g}, allowed {row.tolerance:g} "
                f"({row.note}); this is a fault of sortify, please report it"
            )
        for name in failing:
            algebra.fix(atoms[name], f"it failed its proof as axis {name}: {why}")


def _limited(blueprint: Blueprint, limits: tuple[str, ...]) -> Blueprint:
    """The same model, which says for which sizes of the inputs its graphs hold, and refuses others."""
    if not limits:
        return blueprint
    signature = replace(blueprint.signature, limits=limits)
    told = [Frozen("capture", f"sizes of the inputs: the graphs hold where {signature.readable(x)}") for x in limits]
    plan = replace(blueprint.plan, frozen=(*blueprint.plan.frozen, *told))
    return replace(blueprint, signature=signature, plan=plan)


def _passed(report: proof.Report, kind: str) -> bool:
    return all(row.passed for row in report.rows if row.name.startswith(kind))


def _plan(found: _Found, kept: Sequence[Kept]) -> tuple[Blueprint, dict[str, algebra.Atom]]:
    captured, analysis = found.captured, found.analysis
    plan, atoms = make_plan(captured, analysis, found.chains, found.notes, found.control)
    if not plan.axes and not plan.chains:
        reasons = list(dict.fromkeys(str(frozen).partition(": ")[2] for frozen in plan.frozen))
        raise AxesError(
            "nothing in this model is elastic: "
            + ("; ".join(reasons[:5]) or "it has no parameter with a free dimension")
        )
    named = {atom: Named(name, atom.size.count) for name, atom in atoms.items()}
    costs = make_cost_model(captured, analysis, plan, named, kept)
    parts = captured.programs, captured.infos, captured.aliases, captured.signature
    return Blueprint(*parts, plan, costs, source=found.source, origin=found.origin), atoms


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Tracing leaves so many objects behind that walking them again and again would take a tenth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


STAGES = {
    "capture": "capturing the train and eval graphs",
    "analysis": "finding axes and blocks",
    "proof": "proving them by running the model",
}
Enter = Callable[[str | None], dict[str, float]]


@contextmanager
def _stages(progress: bool) -> Iterator[Enter]:
    """A function that enters the next stage, and returns the seconds of those that are over."""
    seconds: dict[str, float] = {}
    stage: str | None = None
    since = time.perf_counter()
    status = Console(file=sys.stderr).status("starting") if progress else None

    def enter(name: str | None) -> dict[str, float]:
        nonlocal stage, since
        now = time.perf_counter()
        if stage is not None:
            seconds[stage] = now - since
        stage, since = name, now
        if status is not None and name is not None:
            status.update(STAGES[name])
        return seconds

    with status or nullcontext():
        yield enter
