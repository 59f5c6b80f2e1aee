"""The original beside a graph of it: the same weights, inputs and random numbers, and how far the results are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sortify.blueprint import Blueprint
from sortify.difference import difference
from sortify.errors import CaptureError
from sortify.exporting import ExportError
from sortify.network import Runner
from sortify.prepare import mode_of
from sortify.trials import Tensors, clones, quietly

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
    """The original's own output; where it cannot run, the example inputs are at fault."""
    try:
        return torch.func.functional_call(module, state, args, kwargs)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CaptureError(f"{type(module).__name__} itself does not run on the example inputs: {text}") from error
