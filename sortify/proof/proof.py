"""Proof: what was found about a model is checked by running it (DESIGN, section 4).

All checks run on perturbed weights, so that zeros (a fresh head, a layer scale of 1e-6) hide nothing:

1. identity: the rewritten full model equals the original one, in train and in eval mode;
2. permutation: all axes are shuffled at once in every tensor that carries them, and outputs stay what they were;
3. slice = extraction: a sub-network run in place equals its extraction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from sortify.axes.rules.table import position_of
from sortify.capture.interpreter import run_side_by_side
from sortify.capture.lifting import Program
from sortify.capture.prepare import NOTHING, LeftOut
from sortify.difference import difference
from sortify.errors import CaptureError
from sortify.graph.dims import Dim
from sortify.graph.structure import flatten
from sortify.network.blueprint import Blueprint
from sortify.network.extract import cut, pick, shrink
from sortify.network.network import followed, used_tensors
from sortify.proof.original import distance, doubled, gap, gradients_apart, in_double
from sortify.proof.trials import AMOUNTS, Tensors, amount_of, clones, few, perturbed, quietly, statistics_of, unsettled
from sortify.space.space import Subnet

SINGLE, DOUBLE = 1e-5, 1e-10
GRADIENTS = "gradients (train)"
OFF: Mapping[str, Any] = MappingProxyType({"train": False, "dropout_p": 0.0})
"""Arguments of ops that drop at random, and what switches that off."""
ROUNDINGS = 10.0  # an error in float32 may be rounding up to so many times what the original's own rounding makes


@dataclass(frozen=True)
class Check:
    """One row of a proof: the largest difference relative to the outputs' scale, and what is allowed."""

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Report:
    """All rows of a proof.

    Attributes:
        rows: the checks.
        seconds: what each stage of the conversion took (capture, analysis, proof); empty for a proof on its own.
        left_out: what the original does at random in training, and did not do while it was compared.
    """

    rows: tuple[Check, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    left_out: LeftOut = NOTHING

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)


NOT_RUN = Report((Check("proof", float("inf"), SINGLE, "not run: the weights are on the meta device, without values"),))


def prove(
    blueprint: Blueprint, tensors: Tensors, examples: Sequence[torch.Tensor], original: nn.Module | None = None
) -> Report:
    """Run every check.

    Args:
        blueprint: the sorted model; tensors: its weights (not changed); examples: inputs to run it on.
        original: the module that it was made from; without it, identity is checked against the captured graph,
            and the full network against its extraction too.
    """
    if any(tensor.is_meta for tensor in tensors.values()):
        return NOT_RUN
    examples = examples if original is not None else followed(examples, tensors)
    report = _checked(blueprint, perturbed(tensors, statistics_of(blueprint)), examples, original)
    if report.passed or amount_of(blueprint, tensors, examples) == AMOUNTS[0]:
        return report
    return _checked(blueprint, unsettled(blueprint, tensors, examples), examples, original)


def _checked(
    blueprint: Blueprint, noisy: Tensors, examples: Sequence[torch.Tensor], original: nn.Module | None
) -> Report:
    shuffled = []
    if blueprint.plan.axes:
        axes = [axis.name for axis in blueprint.plan.axes]
        shuffled = [permutation(blueprint, noisy, examples, axes, mode) for mode in modes_to_permute(blueprint)]
    noisy = dict(noisy)  # only now: a permutation holds float64 twins
    identities = [identity(blueprint, noisy, examples, mode, original) for mode in ("train", "eval")]
    if original is not None and blueprint.programs["train"] is not blueprint.programs["eval"]:
        identities.append(gradients(blueprint, noisy, examples, original))
    subnets = (middle(blueprint), *([blueprint.space.full] if original is None else []))
    slices = [slice_is_extraction(blueprint, noisy, examples, subnet) for subnet in dict.fromkeys(subnets)]
    return Report((*identities, *shuffled, *slices))


def modes_to_permute(blueprint: Blueprint) -> tuple[str, ...]:
    """The eval graph; the train graph too where it has weights of its own (auxiliary heads) and draws no noise."""
    train, evaluated = (set(used_tensors(blueprint.programs[mode]).values()) for mode in ("train", "eval"))
    own = any(blueprint.infos[name].kind == "parameter" for name in train - evaluated)
    return ("eval", "train") if own and not draws(blueprint.programs["train"]) else ("eval",)


def draws(program: Program) -> bool:
    """Whether an op draws random numbers, other than those of dropout."""
    return any(
        torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not _switches(node)
        for node in program.graph.nodes
    )


def _quiet(program: Program) -> Program:
    """The program with dropout switched off."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    for node in graph.nodes:
        for place, off in _switches(node):
            node.update_arg(place, off) if isinstance(place, int) else node.update_kwarg(place, off)
    return Program(graph, program.tensors, program.outputs)


def _switches(node: fx.Node) -> list[tuple[int | str, Any]]:
    """Where the arguments of dropout stand that are given, and what switches it off."""
    known = {a.name for a in node.target._schema.arguments} if isinstance(node.target, torch._ops.OpOverload) else set()
    places = [(position_of(node, name), off) for name, off in OFF.items() if name in known]
    return [(place, off) for place, off in places if place in node.kwargs or place in range(len(node.args))]


def middle(blueprint: Blueprint) -> Subnet:
    """Half of every group."""
    return blueprint.space.subnet(**dict.fromkeys(blueprint.space.groups, 0.5))


def identity(
    blueprint: Blueprint, tensors: Tensors, examples: Sequence[torch.Tensor], mode: str, original: nn.Module | None
) -> Check:
    """The rewritten full model against the original: outputs, and in training the buffers that a step changes.

    A model may amplify its own rounding without bound (a normalisation over two numbers that are nearly the same gives
    1 or -1). Where float32 differs, float64 decides, if rounding moves the original's own outputs as far.
    """
    examples, full = few(blueprint, examples, mode), (blueprint.space.full.values,)
    runner, name = blueprint.sorted_runners[mode], f"identity ({mode})"
    note = f"full model = {'captured graph' if original is None else 'original'}"
    error = distance(blueprint, tensors, examples, mode, original, runner, full)
    return _decided(
        Check(name, error, SINGLE, note),
        lambda: in_double(blueprint, tensors, examples, mode, original, runner, full),
    )


def gradients(blueprint: Blueprint, tensors: Tensors, examples: Sequence[torch.Tensor], original: nn.Module) -> Check:
    """The gradients of the rewritten full model in training mode against the original's; rounding as in `identity`."""
    given, full = few(blueprint, examples, "train"), (blueprint.space.full.values,)
    runner = blueprint.sorted_runners["train"]
    error, single = gradients_apart(blueprint, tensors, given, original, runner, full)

    def exactly() -> tuple[float, float]:
        try:
            exact, double = gradients_apart(blueprint, tensors, given, original, runner, full, doubled)
        except (RuntimeError, CaptureError):  # as of a tensor of zeros that the model makes in the default dtype
            return float("inf"), 0.0
        return exact, gap(double, single)

    return _decided(Check(GRADIENTS, error, SINGLE, "full model = original"), exactly)


def _decided(single: Check, in_double: Callable[[], tuple[float, float]]) -> Check:
    """A check in float32, or where rounding alone goes as far: the same in float64.

    Args:
        single: in float32.
        in_double: gives the error in float64, and how far rounding to float32 moves what is compared with.
    """
    if single.passed:
        return single
    exact, rounding = in_double()
    if exact > DOUBLE or single.error > ROUNDINGS * rounding:
        return single
    told = f"{single.note}, float64; in float32 {single.error:.2g}, where rounding alone makes {rounding:.2g}"
    return Check(single.name, exact, DOUBLE, told)


def permutation(
    blueprint: Blueprint, tensors: Tensors, examples: Sequence[torch.Tensor], axes: Sequence[str], mode: str = "eval"
) -> Check:
    """Shuffle the given axes at once, in float64 where the model runs in it: outputs must not change."""
    tolerance, why = SINGLE if _casts_to_single(blueprint) else DOUBLE, ""
    if tolerance == SINGLE:
        why = ", float64; the model itself casts to a smaller dtype"
    try:
        error = permutation_error(blueprint, tensors, examples, mode)(axes)
    except RuntimeError as reason:  # as of a tensor of zeros that the model makes in the default dtype
        error = permutation_error(blueprint, tensors, examples, mode, False)(axes)
        tolerance, why = SINGLE, f", in its own dtype; it does not run in float64: {str(reason).splitlines()[0]}"
    note = f"{len(axes)} axes shuffled at once{why or ', float64'}"
    return Check("permutation" if mode == "eval" else f"permutation ({mode})", error, tolerance, note)


def permutation_error(
    blueprint: Blueprint, tensors: Tensors, examples: Sequence[torch.Tensor], mode: str = "eval", double: bool = True
) -> Callable[[Iterable[str]], float]:
    """A function from axes to the error that shuffling them makes, in float64 or in the model's own dtype."""
    widened = doubled if double else _as_it_is
    program = blueprint.programs[mode] if mode == "eval" else _quiet(blueprint.programs[mode])
    inputs = [widened(t) for t in few(blueprint, examples, mode)]
    sizes = {axis.name: axis.size for axis in blueprint.plan.axes}
    shapes = blueprint.plan.shapes

    def error(axes: Iterable[str]) -> float:
        generator = torch.Generator().manual_seed(1)
        orders = {name: _shuffle(sizes[name], generator) for name in axes}

        def lookup(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            tensor = tensors[name]
            return widened(tensor), widened(pick(tensor, shapes.get(name, ()), orders))

        straight, shuffled = quietly(lambda: run_side_by_side(program, lookup, inputs))
        return difference(_reordered(straight, blueprint.plan.outputs.get(mode, {}), orders), shuffled)

    return error


def _reordered(value: Any, shapes: Mapping[str, Sequence[Dim]], orders: Mapping[str, list[int]]) -> Any:
    """Outputs that carry an axis, because the caller freed them, come in its order."""
    if not shapes:
        return value
    leaves, structure = flatten(value)
    named = zip(structure.names(), leaves, strict=True)
    return structure.build([pick(leaf, shapes[name], orders) if name in shapes else leaf for name, leaf in named])


def failing_axes(blueprint: Blueprint, tensors: Tensors, examples: Sequence[torch.Tensor]) -> list[str]:
    """The axes whose permutation changes the outputs, found by bisection; [] when all may be shuffled."""
    noisy = unsettled(blueprint, tensors, examples)

    def search(names: list[str], error: Callable[[Iterable[str]], float], tolerance: float) -> list[str]:
        if not names or error(names) <= tolerance:
            return []
        if len(names) == 1:
            return names
        half = len(names) // 2
        return (search(names[:half], error, tolerance) + search(names[half:], error, tolerance)) or names

    axes, found = [axis.name for axis in blueprint.plan.axes], list[str]()
    for mode in modes_to_permute(blueprint):
        whole = permutation(blueprint, noisy, examples, axes, mode)
        double = whole.tolerance == DOUBLE or _casts_to_single(blueprint)
        found += search(axes, permutation_error(blueprint, noisy, examples, mode, double), whole.tolerance)
    return list(dict.fromkeys(found))


def slice_is_extraction(
    blueprint: Blueprint, tensors: Tensors, examples: Sequence[torch.Tensor], subnet: Subnet
) -> Check:
    """A sub-network in place against its extraction, in eval mode; rounding is told apart as in `identity`."""
    runner, examples = blueprint.sorted_runners["eval"], few(blueprint, examples, "eval")
    name = f"slice = extraction ({'full' if subnet == blueprint.space.full else 'half'})"
    small = shrink(blueprint.programs["eval"], blueprint.plan, "eval", subnet)

    def pair(wide: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Any, Any]:
        own, inputs = {key: wide(tensor) for key, tensor in tensors.items()}, [wide(t) for t in examples]
        found = quietly(lambda: runner((subnet.values,), clones(own, blueprint), [t.clone() for t in inputs]))
        cut_to = quietly(
            lambda: run_side_by_side(small, lambda key: [cut(blueprint.plan, key, own[key], subnet)], inputs)
        )
        return cut_to[0], found

    def exactly() -> tuple[float, float]:
        try:
            exact, cut_too = pair(doubled)
        except RuntimeError:  # as of a tensor of zeros that the model makes in the default dtype
            return float("inf"), 0.0
        return difference(exact, cut_too), difference(exact, expected)

    try:
        expected, found = pair(_at_least_single)
    except Exception as error:  # whatever op refuses the smaller size
        return Check(name, float("inf"), SINGLE, f"{subnet}: {type(error).__name__}: {error}".splitlines()[0])
    return _decided(Check(name, difference(expected, found), SINGLE, str(subnet)), exactly)


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _shuffle(size: int, generator: torch.Generator) -> list[int]:
    """A random order that is not the identity."""
    order = torch.randperm(size, generator=generator).tolist()
    return order if order != list(range(size)) else order[1:] + order[:1]


def _at_least_single(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision rounds a sum by its order: what is compared by tolerance runs in float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _casts_to_single(blueprint: Blueprint) -> bool:
    """Whether the eval graph names a floating dtype of less than double precision."""
    return any(
        isinstance(value, torch.dtype) and value.is_floating_point and value != torch.float64
        for node in blueprint.programs["eval"].graph.nodes
        if node.op == "call_function"
        for value in (*node.args, *node.kwargs.values())
    )


def axes_that_do_not_slice(blueprint: Blueprint, tensors: Tensors, examples: Sequence[torch.Tensor]) -> list[str]:
    """The axes that cannot be cut on their own: the sub-network does not run, or does not equal its extraction.

    Where the full network does not equal its extraction either, no axis is to blame: [].
    """
    noisy = unsettled(blueprint, tensors, examples)
    if not slice_is_extraction(blueprint, noisy, examples, blueprint.space.full).passed:
        return []
    found = []
    for axis in blueprint.plan.axes:
        subnet = blueprint.space.subnet(**{axis.name: 0.5})
        found += [] if slice_is_extraction(blueprint, noisy, examples, subnet).passed else [axis.name]
    return found
