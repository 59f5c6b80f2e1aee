"""The original beside a graph of it: the same weights, inputs and random numbers, and how far the results are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sortify.capture.prepare import mode_of
from sortify.difference import difference
from sortify.errors import CaptureError, ExportError
from sortify.network.blueprint import Blueprint
from sortify.network.network import Runner
from sortify.proof.trials import Tensors, clones, quietly

Outcome = list[Any]  # of one call: its outputs, then the buffers as they are after it


def distance(
    blueprint: Blueprint,
    tensors: Tensors,
    examples: Sequence[torch.Tensor],
    mode: str,
    original: nn.Module | None,
    runner: Runner | None = None,
    leading: Sequence[Any] = (),
) -> float:
    """How far a graph is from the original, or else from the captured graph: outputs, and buffers that are changed.

    Args:
        runner: the graph, the captured one by default; leading: what it takes first.
    """
    expected = _outcome(blueprint, tensors, examples, mode, original)
    return _furthest(expected, _outcome(blueprint, tensors, examples, mode, None, runner, leading))


def in_double(
    blueprint: Blueprint,
    tensors: Tensors,
    examples: Sequence[torch.Tensor],
    mode: str,
    original: nn.Module | None,
    runner: Runner | None = None,
    leading: Sequence[Any] = (),
) -> tuple[float, float]:
    """As `distance`, in float64; and how far rounding to float32 moves the original: it is compared with itself.

    (inf, 0) of what is not in float32, or does not run in float64.
    """
    if any(t.dtype != torch.float32 for t in (*tensors.values(), *examples) if t.is_floating_point()):
        return float("inf"), 0.0
    wide, inputs = {name: doubled(tensor) for name, tensor in tensors.items()}, [doubled(t) for t in examples]
    try:
        exact = _outcome(blueprint, wide, inputs, mode, original)
        found = _outcome(blueprint, wide, inputs, mode, None, runner, leading)
    except (RuntimeError, CaptureError):  # as of a tensor of zeros that the model makes in the default dtype
        return float("inf"), 0.0
    return _furthest(exact, found), _furthest(exact, _outcome(blueprint, tensors, examples, mode, original))


BUNDLE = 2**27
"""Numbers of gradients that are there at once, at most, unless one parameter alone has more."""


class NotDifferentiable(Exception):
    """The original has an op without a derivative."""


class Gradients:
    """Of a sum with respect to some tensors, in bundles: those of a large model never are there all at once.

    Args:
        total: None where nothing has a gradient: all are zero then.
        wanted: the tensors.
        originals: whether it is the original whose gradients these are.
    """

    def __init__(self, total: torch.Tensor | None, wanted: Sequence[torch.Tensor], originals: bool) -> None:
        self._total, self._originals = total, originals
        self._bundles, size = list[list[torch.Tensor]](), BUNDLE
        for tensor in wanted:
            if size >= BUNDLE:
                self._bundles.append([])
                size = 0
            self._bundles[-1].append(tensor)
            size += tensor.numel()

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Work them out; again if asked again.

        Raises:
            NotDifferentiable: the original does not allow it.
        """
        for bundle in self._bundles:
            yield from self._of(bundle)

    def _of(self, bundle: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        if self._total is None:
            return [torch.zeros_like(t) for t in bundle]
        try:
            return torch.autograd.grad(
                self._total, bundle, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        except (RuntimeError, NotImplementedError) as error:
            if self._originals:
                raise NotDifferentiable from error
            raise


def gradients_apart(
    blueprint: Blueprint,
    tensors: Tensors,
    examples: Sequence[torch.Tensor],
    original: nn.Module,
    runner: Runner | None = None,
    leading: Sequence[Any] = (),
    widen: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[float, Gradients]:
    """How far the gradients of a graph in training mode are from the original's, relative to the largest of these.

    Autograd records what the graph does; a backward pass that the original brings along (a custom autograd function,
    a hook) is not in it. Compared are the gradients of parameters and of floating inputs, of a weighted sum of all
    outputs.

    Returns:
        the distance, and the original's gradients; 0 and none where the original has no gradients.
    """
    if widen is not None:
        tensors, examples = {name: widen(t) for name, t in tensors.items()}, [widen(t) for t in examples]
    try:
        try:
            expected, of_inputs = _gradients(blueprint, tensors, examples, original), True
        except CaptureError:  # as where the model switches the gradients of its inputs on
            expected, of_inputs = _gradients(blueprint, tensors, examples, original, of_inputs=False), False
        found = _gradients(blueprint, tensors, examples, None, runner, leading, of_inputs)
        return gap(expected, found), expected
    except NotDifferentiable:
        return 0.0, Gradients(None, [], originals=True)


def gap(expected: Iterable[torch.Tensor], found: Iterable[torch.Tensor]) -> float:
    """The largest difference of gradients, relative to the largest expected one: a bias that the next norm takes off
    again has rounding alone, and is not held against its own size.
    """
    scale = worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.numel():
            apart = float((a - b).abs().max())
            scale, worst = max(scale, float(a.abs().max())), max(worst, apart if apart == apart else float("inf"))
    return 0.0 if worst == 0 else worst / scale if scale > 0 else float("inf")


def _gradients(
    blueprint: Blueprint,
    tensors: Tensors,
    examples: Sequence[torch.Tensor],
    original: nn.Module | None,
    runner: Runner | None = None,
    leading: Sequence[Any] = (),
    of_inputs: bool = True,
) -> Gradients:
    """Of the original, or else of a graph: zeros where there is no gradient; of parameters, and of floating inputs."""
    own = clones(tensors, blueprint)
    learnt = [n for n, t in own.items() if blueprint.infos[n].kind == "parameter" and t.is_floating_point()]
    own |= {name: own[name].detach().requires_grad_() for name in learnt}
    leaves = [t.detach().clone().requires_grad_(of_inputs and t.is_floating_point()) for t in examples]
    inputs = [t.clone() for t in leaves]  # what is no leaf may be changed in place
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        if original is None:
            outputs = (runner or blueprint.plain_runners["train"])(leading, own, inputs)
        else:
            args, kwargs = blueprint.signature.call(inputs)
            state = {name: t for name, t in own.items() if blueprint.infos[name].kind != "constant"}
            with mode_of(original, True):
                outputs = _called(original, state, args, kwargs)
    wanted = [*(own[name] for name in learnt), *(t for t in leaves if t.requires_grad)]
    return Gradients(_weighted(outputs), wanted, original is not None)


def _weighted(outputs: Any) -> torch.Tensor | None:
    """A sum of all numbers of the outputs that have a gradient, each with a weight of its own."""
    generator, total = torch.Generator().manual_seed(1), None
    for leaf in torch.utils._pytree.tree_leaves(outputs):
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
            real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
            weights = torch.rand(real.shape, generator=generator, dtype=torch.float32).to(real)
            part = (torch.where(real.isfinite(), real, 0.0) * weights).sum()
            total = part if total is None else total + part.to(total)
    return total


def check_repeats(
    blueprint: Blueprint, tensors: Tensors, examples: Sequence[torch.Tensor], original: nn.Module, allowed: float
) -> None:
    """Raise ExportError if the original gives other outputs when it is called again with the same random numbers."""
    for mode in ("train", "eval"):
        once, again = (_outcome(blueprint, tensors, examples, mode, original)[0] for _ in range(2))
        if difference(once, again) > allowed:
            raise ExportError(
                f"{type(original).__name__} gives other outputs when it is called again with the same random state "
                f"({mode} mode), as where it seeds the generator itself: nothing can be proven about it as a whole"
            )


def check_traced(
    blueprint: Blueprint, tensors: Tensors, examples: Sequence[torch.Tensor], original: nn.Module, allowed: float
) -> None:
    """Raise ExportError if the captured graph itself, before anything was done to it, is not the original."""
    for mode in ("train", "eval"):
        error = distance(blueprint, tensors, examples, mode, original)
        if error > allowed and in_double(blueprint, tensors, examples, mode, original)[0] > allowed:
            raise ExportError(
                f"{type(original).__name__} gives other outputs than the graph that torch.export makes of it ({mode} "
                f"mode, error {error:.3g}), as where it takes another way while it is traced: nothing can be proven "
                "about it as a whole"
            )


def doubled(tensor: torch.Tensor) -> torch.Tensor:
    """In float64, if it is floating."""
    return tensor.double() if tensor.is_floating_point() else tensor


def _furthest(expected: Outcome, found: Outcome) -> float:
    return max(difference(expected[0], found[0]), difference(expected, found))  # buffers alone may be infinite


def _outcome(
    blueprint: Blueprint,
    tensors: Tensors,
    examples: Sequence[torch.Tensor],
    mode: str,
    original: nn.Module | None,
    runner: Runner | None = None,
    leading: Sequence[Any] = (),
) -> Outcome:
    """What the original gives, or else a graph (the captured one by default)."""
    own, inputs = clones(tensors, blueprint), [t.clone() for t in examples]
    if original is None:
        outputs = quietly(lambda: (runner or blueprint.plain_runners[mode])(leading, own, inputs))
    else:
        args, kwargs = blueprint.signature.call(inputs)
        state = {name: t for name, t in own.items() if blueprint.infos[name].kind != "constant"}
        with mode_of(original, mode == "train"):
            outputs = quietly(lambda: _called(original, state, args, kwargs))
        own |= state  # a forward may put new tensors in the place of its buffers
    return [outputs, *(own[n] for n, info in blueprint.infos.items() if info.kind != "parameter" and n in tensors)]


def _called(module: nn.Module, state: dict[str, torch.Tensor], args: Any, kwargs: Any) -> Any:
    """The original's own output, not compiled; where it cannot run, the example inputs are at fault."""
    try:
        with _uncompiled(module):
            return torch.func.functional_call(module, state, args, kwargs)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CaptureError(f"{type(module).__name__} itself does not run on the example inputs: {text}") from error


@contextmanager
def _uncompiled(module: nn.Module) -> Iterator[None]:
    """Run what `module.compile()` has compiled in place as it was written, for the length of a `with` block."""
    compiled = {each: each._compiled_call_impl for each in module.modules() if each._compiled_call_impl is not None}
    for each in compiled:
        each._compiled_call_impl = None
    try:
        yield
    finally:
        for each, call in compiled.items():
            each._compiled_call_impl = call
