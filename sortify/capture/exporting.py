"""Export: torch.export with as many open sizes as the model allows.

Asked for are the batch (dimension 0 of every tensor), the sequence (dimension 1 of integer tensors of rank 2) and what
the caller names. Where the tracer refuses, dimensions are given up one by one, and each that is lost is told.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree

from sortify.capture.places import line_of
from sortify.capture.prepare import NOTHING, mode_of, never_skipping, open_dataclasses, quiet_tracing
from sortify.errors import CaptureError, ExportError, first_line
from sortify.graph.signature import LeafSpec
from sortify.graph.symbols import Place


def wanted_open(
    leaves: Sequence[torch.Tensor], names: Sequence[str], more: Mapping[str, Sequence[int]] | None = None
) -> list[Place]:
    """The dimensions that should stay open, batches first.

    Args:
        leaves: the input tensors; names: what users call them.
        more: further dimensions by the name of the input.

    Raises:
        CaptureError: `more` names no input tensor or no dimension of it.
    """
    batches = [(i, 0) for i, leaf in enumerate(leaves) if leaf.dim()]
    sequences = [(i, 1) for i, leaf in enumerate(leaves) if leaf.dim() == 2 and not leaf.dtype.is_floating_point]
    asked = list[Place]()
    for name, dims in (more or {}).items():
        if name not in names:
            raise CaptureError(f"dynamic: '{name}' is no input tensor; there are {', '.join(names) or 'none'}")
        number = names.index(name)
        for dim in dims:
            if not 0 <= dim < leaves[number].dim():
                raise CaptureError(f"dynamic: input '{name}' has dimensions 0 to {leaves[number].dim() - 1}, not {dim}")
            asked.append((number, dim))
    return list(dict.fromkeys([*batches, *sequences, *asked]))


def describe_place(place: Place, names: Sequence[str], leaves: Sequence[torch.Tensor]) -> str:
    """Such as: input 'tokens': dimension 1 (the sequence length) is fixed at 16."""
    number, dim = place
    leaf = leaves[number]
    sequence = dim == 1 and leaf.dim() == 2 and not leaf.dtype.is_floating_point
    meaning = " (the batch size)" if dim == 0 else " (the sequence length)" if sequence else ""
    return f"input '{names[number]}': dimension {dim}{meaning} is fixed at {leaf.shape[dim]}"


class DrawsError(ExportError):
    """The module draws numbers outside of torch."""


class Exporter:
    """Exports one module at one example call, in either mode.

    Args:
        module: the module; args, kwargs: the example call.
        wanted: the dimensions to leave open; what one mode cannot have open is not asked of the next one.
    """

    def __init__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], wanted: Sequence[Place]
    ) -> None:
        self.module, self.args, self.kwargs = module, args, dict(kwargs)
        self.wanted = list(wanted)
        self.refused: dict[Place, str] = {}
        self.left_out = NOTHING
        self.parameters = list(inspect.signature(module.forward).parameters.values())

    def __call__(self, training: bool) -> fx.GraphModule:
        """The exported module, with a reason in `refused` for each dimension that had to be given up.

        Raises:
            ExportError: it cannot be exported even with every size fixed.
        """
        try:
            return self._export(self.wanted, training)
        except DrawsError:
            if not training or self.left_out.held_back or not self._hold_back():
                raise
            return self(training)
        except ExportError:
            raise
        except Exception as error:
            first = error
        if self._learn_outputs(training):
            return self(training)
        if training and not self.left_out.skips and _hangs_on_data(first) and self._draws_one_number():
            self.left_out = replace(self.left_out, skips=True)
            return self(training)
        try:
            found = self._export([], training)
        except Exception:
            name, mode = type(self.module).__name__, "train" if training else "eval"
            why = f"{type(first).__name__}: {first_line(first)}{line_of(first)}"
            raise ExportError(f"{name} cannot be captured by torch.export ({mode} mode): {why}") from first
        kept = list[Place]()
        groups = self._groups()
        for group in groups if len(groups) > 1 else []:
            try:
                found = self._export([*kept, *group], training)
                kept += group
            except Exception as error:
                self.refused |= dict.fromkeys(group, first_line(error))
        if len(groups) == 1:
            self.refused |= dict.fromkeys(groups[0], first_line(first))
        self.wanted = kept
        return found

    def _groups(self) -> list[list[Place]]:
        """The batches of all inputs together, then every other dimension by itself."""
        batches = [place for place in self.wanted if place[1] == 0]
        return [*([batches] if batches else []), *([place] for place in self.wanted if place[1] != 0)]

    def _export(self, opened: Sequence[Place], training: bool) -> fx.GraphModule:
        from torch._dynamo.exc import UncapturedHigherOrderOpError  # slow to import

        if opened:
            try:
                return self._traced(opened, training, _short_conditions())
            except UncapturedHigherOrderOpError:  # no control flow is traced while there is a hook for all modules
                pass
        return self._traced(opened, training, nullcontext())

    def _traced(self, opened: Sequence[Place], training: bool, short: AbstractContextManager[None]) -> fx.GraphModule:
        shapes = self._shapes(set(opened))
        left_out = self.left_out.of(self.module) if training else nullcontext()
        with left_out, mode_of(self.module, training), quiet_tracing(), _no_other_draws(self.module, training), short:
            exported = torch.export.export(self.module, self.args, self.kwargs, dynamic_shapes=shapes, strict=False)
            return exported.module(check_guards=False)

    def _shapes(self, opened: set[Place]) -> Any:
        """The open dimensions of every input, in the form that torch.export takes."""
        number = iter(range(1 << 30))

        def describe(leaf: Any) -> dict[int, Any] | None:
            if not isinstance(leaf, torch.Tensor):
                return None
            own = next(number)
            return {dim: torch.export.Dim.AUTO for dim in range(leaf.dim()) if (own, dim) in opened}

        positional, named = ([_described(v, describe) for v in self.args], _described(self.kwargs, describe))
        plain = [p.name for p in self.parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        spread = next((p.name for p in self.parameters if p.kind is p.VAR_POSITIONAL), None)
        by_name = dict(zip(plain, positional, strict=False))
        if spread is not None and len(positional) > len(plain):
            by_name[spread] = tuple(positional[len(plain) :])
        return {**by_name, **named}

    def _learn_outputs(self, training: bool) -> bool:
        """Run the module once for the dataclasses that it returns; whether there are any new ones."""
        try:
            return open_dataclasses(run_untouched(self.module, self.args, self.kwargs, training))
        except Exception as error:
            raise ExportError(
                f"{type(self.module).__name__} itself does not run on the example inputs "
                f"({'train' if training else 'eval'} mode): {type(error).__name__}: {first_line(error)}"
            ) from error

    def _draws_one_number(self) -> bool:
        """Whether a call in training draws a lone random number, as to decide whether a layer is skipped."""
        with never_skipping() as drawn:
            run_untouched(self.module, self.args, self.kwargs, True)
        return bool(drawn.count)

    def _hold_back(self) -> bool:
        """Hold back the modules that draw by NumPy or Python's `random` in training; whether that can be done."""
        drawing = _modules_that_draw(self.module, self.args, self.kwargs)
        if drawing:
            self.left_out = replace(self.left_out, held_back=drawing)
        return bool(drawing)


@contextmanager
def _other_draws() -> Iterator[list[bool]]:
    """Give NumPy's and Python's random numbers back afterwards; the list is filled with True if any were drawn."""
    plain, numpy, before, drawn = random.getstate(), np.random.get_state(), _drawn_so_far(), list[bool]()
    try:
        yield drawn
    finally:
        if _drawn_so_far() != before:
            drawn.append(True)
        random.setstate(plain)
        np.random.set_state(numpy)


def _drawn_so_far() -> Any:
    """Something that changes with every number drawn by Python's or NumPy's generator."""
    _, numbers, *rest = np.random.get_state()
    return random.getstate(), np.asarray(numbers).tobytes(), rest


def _modules_that_draw(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the modules whose own code draws by NumPy or Python's `random` in one call in training mode."""
    paths = {child: path for path, child in module.named_modules()}
    running, found, last = [module], set[nn.Module](), _drawn_so_far()

    def look() -> None:
        nonlocal last
        now = _drawn_so_far()
        if now != last:
            found.add(running[-1])
        last = now

    def enter(child: nn.Module, *call: Any) -> None:
        look()
        running.append(child)

    def leave(child: nn.Module, *call: Any) -> None:
        look()
        running.pop()

    with ExitStack() as hooks:
        for handle in (register_module_forward_pre_hook(enter), register_module_forward_hook(leave)):
            hooks.callback(handle.remove)
        run_untouched(module, args, kwargs, True)
    return tuple(paths[child] for child in paths if child in found)


@contextmanager
def _no_other_draws(module: nn.Module, training: bool) -> Iterator[None]:
    """Refuse a module that draws numbers by NumPy or Python's `random`: a graph would hold the same ones for ever."""
    with _other_draws() as drawn:
        yield
    if drawn:
        raise DrawsError(
            f"{type(module).__name__} draws numbers by NumPy or Python's random ({'train' if training else 'eval'} "
            "mode), as for masks of its inputs: a graph would hold the same ones for ever; draw them by torch, switch "
            "that off, or do it outside of the model"
        )


LONGEST_CONDITION = 80


@contextmanager
def _short_conditions() -> Iterator[None]:
    """Stop where open sizes become expressions so long that each further condition on them takes the tracer seconds.

    Windows of a picture of any size, padded again in every block, do that.
    """
    seen = 0

    def look(child: nn.Module, args: Any, output: Any) -> None:
        nonlocal seen
        sizes: list[Any] = [
            n for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor) for n in leaf.shape
        ]
        environment = next((size.node.shape_env for size in sizes if isinstance(size, torch.SymInt)), None)
        guards = environment.guards if environment is not None else []
        longest = max((guard.expr.count_ops() for guard in guards[seen:]), default=0)
        seen = len(guards)
        if longest > LONGEST_CONDITION:
            raise RuntimeError(f"conditions on the sizes inside grow beyond {LONGEST_CONDITION} operations")

    handle = register_module_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _hangs_on_data(error: BaseException) -> bool:
    """Whether the tracer stopped at a decision that hangs on the numbers in a tensor."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # slow to import

    return any(isinstance(each, GuardOnDataDependentSymNode) for each in (error, error.__cause__))


def _described(value: Any, describe: Callable[[Any], Any]) -> Any:
    """Each leaf described; classes that are no plain containers become the list of their parts, as export wants."""
    if value is None or pytree.tree_is_leaf(value):
        return describe(value)
    children, spec = pytree.SUPPORTED_NODES[pytree._get_node_type(value)].flatten_fn(value)
    parts = [_described(child, describe) for child in children]
    if pytree._get_node_type(value) not in pytree.BUILTIN_TYPES:
        return parts
    return pytree.SUPPORTED_NODES[pytree._get_node_type(value)].unflatten_fn(parts, spec)


def run_untouched(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> Any:
    """The output of one call without gradients that changes neither the module, nor the inputs, nor random state."""
    state = {name: buffer.clone() for name, buffer in module.named_buffers()}
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, dict(kwargs)))
    with torch.random.fork_rng(), _other_draws(), torch.no_grad(), mode_of(module, training):
        return torch.func.functional_call(module, state, args, dict(kwargs))


def settle(specs: Sequence[LeafSpec], other: Sequence[LeafSpec] | None) -> list[LeafSpec]:
    """What both modes take: a size that one of them fixes is fixed."""
    if other is None:
        return list(specs)
    return [
        replace(a, shape=tuple(x if y is None else y for x, y in zip(a.shape, b.shape, strict=True)))
        for a, b in zip(specs, other, strict=True)
    ]
