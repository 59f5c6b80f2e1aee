"""One model, checked: convert it, and compare what comes out with the original and with its own extractions.

Run in a process of its own: `python -m examples.coverage.check NAME` prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from examples.coverage import models
from examples.coverage.feeds import Inputs, call_of, clone, wants_targets
from sortify import ProofError, SortedModel, SortifyError, Subnet, sortify
from sortify.axes.reasons import UNUSED
from sortify.capture.capture import CACHE
from sortify.capture.prepare import NOTHING, LeftOut, mode_of

DOUBLE, SINGLE, SHARE = 1e-9, 1e-5, 0.99
Row = dict[str, Any]


def check(name: str, training: bool = True) -> Row:
    """Build, convert and compare one model.

    Args:
        name: of the model.
        training: False captures and compares evaluation only, and on the meta device, without running it, where the
            model has more parameters than `models.LARGEST_RUN`.

    Returns:
        What was found, ready for JSON. `status` is `pass`, `fail`, `refused` (an error of sortify that says why) or
        `not-built`; a row that is not a pass holds the stage, the type of the exception and its first line, or the
        limits that were missed.
    """
    row: Row = {"name": name, "zoo": name.partition("/")[0], "status": "fail", "stage": "build"}
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _fill(row, name, training)
    except models.NotBuilt as error:
        row |= {"status": "not-built", "error": "NotBuilt", "message": str(error)}
    except Exception as error:
        refused = isinstance(error, SortifyError) and not isinstance(error, ProofError)
        lines = str(error).strip().splitlines() or ["no message"]
        row |= {"status": "refused" if refused else "fail", "error": type(error).__name__, "message": lines[0][:500]}
        row["where"] = _where(error)
    return row | {"wall": round(time.perf_counter() - start, 2)}


def check_evaluation(name: str) -> Row:
    """One model, evaluation only."""
    return check(name, training=False)


def _fill(row: Row, name: str, training: bool) -> None:
    built = models.build(name, meta=not training and models.listed_size(name) > models.LARGEST_RUN)
    original, inputs = built.module, built.inputs
    row |= {"how": built.how, "parameters": sum(p.numel() for p in original.parameters()), "stage": "convert"}
    if built.meta:
        model = sortify(original.eval(), inputs, training=training)
        row |= describe(model, {name: p.numel() for name, p in original.named_parameters()})
        row |= {"status": "pass", "stage": "done", "how": "analysis only, on the meta device"}
        return
    perturb(original, inputs)
    model = sortify(original.eval(), inputs, training=training)
    if isinstance(inputs, dict) and any(note.why.startswith(f"{CACHE}=False") for note in model.frozen):
        inputs[CACHE] = False
    row |= describe(model, {name: p.numel() for name, p in original.named_parameters()})
    row["stage"] = "identity"
    proven = [line for line in model.report.rows if line.name.startswith("permutation")] if model.report else []
    errors = {line.name: line.error for line in proven}
    allowed = {line.name: max(line.tolerance, DOUBLE) for line in proven}
    modes = ("eval",) if wants_targets(original) or not training else ("eval", "train")
    for mode in [mode for mode in modes if not repeats(original, inputs, mode)]:
        row["notes"].append(f"{mode} mode: not compared, as the original gives other outputs when it is called again")
        modes = tuple(each for each in modes if each != mode)
    for mode in modes:
        row["stage"] = f"identity ({mode})"
        error, single = identity(model, original, inputs, mode)
        errors[row["stage"]], allowed[row["stage"]] = error, SINGLE if single else DOUBLE
    generator = torch.Generator().manual_seed(7)
    for label, subnet in (("smallest", model.space.smallest), ("random", model.space.sample(generator))):
        for mode in modes:
            row["stage"] = f"{label} ({mode})"
            error = slicing(model, subnet, inputs, mode)
            if error > SINGLE:
                exact = math.inf
                with contextlib.suppress(RuntimeError):  # what does not run in float64
                    exact = slicing(copy.deepcopy(model).double(), subnet, doubled(inputs), mode)
                if exact <= DOUBLE:
                    row["notes"].append(f"{row['stage']}: {error:.1e} in float32, {exact:.1e} in float64: rounding")
                    error = exact
            errors[row["stage"]], allowed[row["stage"]] = error, SINGLE
    missed = [
        f"{key}: {value:.2e} above {allowed[key]:.0e}" for key, value in errors.items() if not value <= allowed[key]
    ]
    row["errors"] = {
        key: float(f"{value:.3g}") if math.isfinite(value) else str(value) for key, value in errors.items()
    }
    row["missed"] = missed
    row |= {"status": "fail" if missed else "pass", "stage": "compared" if missed else "done"}
    if missed:
        row |= {"error": "LimitMissed", "message": "; ".join(missed)}


def describe(model: SortedModel, sizes: Mapping[str, int]) -> Row:
    """Axes by kind, blocks, elastic shares, what is frozen, seconds; `sizes` are those of the parameters.

    Shares are of the parameters that the example call uses; of a model with several inputs that may be few.
    """
    elastic = {name for axis in model.axes.values() for name in axis.parameters}
    idle = {frozen.where.partition(" dimension ")[0] for frozen in model.frozen if frozen.why == UNUSED} - elastic
    used = {name: size for name, size in sizes.items() if name not in idle}
    total = max(1, sum(used.values()))
    seconds = dict(model.report.seconds) if model.report else {}
    ratio = (seconds.get("analysis", 0.0) + seconds.get("proof", 0.0)) / max(seconds.get("capture", 0.0), 1e-9)
    notes = [f.why for f in model.frozen if f.where == "capture"]
    return {
        "captured": "whole" if wholes(model) == [model] else "parts",
        "parts": {
            path: sum(t.numel() for t in part.parameters()) for path, part in getattr(model, "parts", {}).items()
        },
        "axes": dict(Counter(axis.kind for axis in model.axes.values())),
        "blocks": sum(len(chain.blocks) for chain in model.chains.values()),
        "share": round(sum(n for name, n in used.items() if name in elastic) / total, 6),
        "unused": round(1 - sum(used.values()) / max(1, sum(sizes.values())), 6),
        "flops_share": flops_share(model),
        **frozen_reasons(model, used, elastic),
        "notes": notes[:5],
        "seconds": {key: round(value, 3) for key, value in seconds.items()},
        "ratio": round(ratio, 3),
    }


def wholes(model: SortedModel) -> list[SortedModel]:
    """The models that were captured whole: this one, or its parts."""
    parts: Mapping[str, SortedModel] | None = getattr(model, "parts", None)
    return [model] if parts is None else list(parts.values())


def frozen_reasons(model: SortedModel, sizes: Mapping[str, int], elastic: set[str]) -> Row:
    """Why parameters that no axis reaches are fixed; a parameter's first reason counts.

    Returns:
        `frozen`: operation and reason -> share of all parameters; `places`: the same -> one place of each.
    """
    first: dict[str, str] = {}
    places: dict[str, str] = {}
    for frozen in model.frozen:
        reason = f"{frozen.op}: {frozen.why}" if frozen.op else frozen.why
        first.setdefault(frozen.where.partition(" dimension ")[0], reason)
        places.setdefault(reason, f"{frozen.where}; {frozen.module} ({Path(frozen.source).name})")
    left: Mapping[str, str] = getattr(model, "left", {})
    for path, why in sorted(left.items(), key=lambda item: -len(item[0])):
        for name in sizes:
            if name.startswith(f"{path}."):
                first.setdefault(name, f"runs as it was: {why}")
    total = max(1, sum(sizes.values()))
    found: Counter[str] = Counter()
    for name, size in sizes.items():
        if name not in elastic:
            found[first.get(name, "outside of every part" if left else "no reason given")] += size
    most = found.most_common(8)
    return {
        "frozen": {reason: round(count / total, 6) for reason, count in most},
        "places": {reason: places.get(reason, "") for reason, _ in most},
    }


def flops_share(model: SortedModel) -> float | None:
    """The share of FLOPs in operations whose size depends on an axis; of a model in parts, of its parts."""
    costs = [part.cost(part.space.full).flops for part in wholes(model)]
    shares = [part.shares("flops")[""] for part in wholes(model)]
    full = sum(costs)
    return round(sum(c * share for c, share in zip(costs, shares, strict=True)) / full, 6) if full else None


def perturb(module: nn.Module, inputs: Inputs) -> None:
    """Move every parameter a little, so that zeros (fresh heads, tiny layer scales) hide nothing.

    A tenth of that, or nothing, where the outputs would overflow.
    """
    weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for amount in (0.02, 0.002, 0.0):
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.is_floating_point():
                    noise = amount * (torch.rand(parameter.shape, generator=generator) - 0.25)
                    parameter.copy_(weights[name] + noise.to(parameter.dtype))
        if amount == 0.0 or finite(run(module, inputs, "eval")):
            return


def identity(model: SortedModel, original: nn.Module, inputs: Inputs, mode: str) -> tuple[float, bool]:
    """The full model against the original, in float64 if both run in it; and whether float32's tolerance applies."""
    left_out = model.report.left_out if model.report else NOTHING
    try:
        with _Narrow() as narrow:  # one copy at a time: there are large models
            expected = run(copy.deepcopy(original).double(), doubled(inputs), mode, left_out)
        found = run(copy.deepcopy(model).double(), doubled(inputs), mode)
    except Exception:
        expected, found = None, None
    if expected is None or not finite(expected):  # the original itself does not work in float64
        expected = run(copy.deepcopy(original), inputs, mode, left_out)
        found = run(copy.deepcopy(model), inputs, mode)
        return difference(expected, found), True
    return difference(expected, found), narrow.seen


class _Narrow(TorchDispatchMode):
    """Notes whether a call makes floating tensors below double."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= any(t.is_floating_point() and t.dtype != torch.float64 for t in tensors(result))
        return result


def repeats(original: nn.Module, inputs: Inputs, mode: str) -> bool:
    """Whether two calls with the same random state give the same."""
    return difference(*(run(copy.deepcopy(original), inputs, mode) for _ in range(2))) <= SINGLE


def slicing(model: SortedModel, subnet: Subnet, inputs: Inputs, mode: str) -> float:
    """A sub-network in place against its extraction."""
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    small = model.extract(subnet=subnet)
    with model.using(subnet):
        found = run(model, inputs, mode)
    for name, buffer in model.named_buffers():
        buffer.copy_(state[name])
    expected = run(small, inputs, mode)
    if not finite(expected):
        return math.inf if finite(run(model, inputs, mode)) else difference(expected, found)
    return difference(expected, found)


def run(module: nn.Module, inputs: Inputs, mode: str, left_out: LeftOut = NOTHING) -> Any:
    """Outputs, with the same random numbers each time, without what is left out."""
    args, kwargs = call_of(inputs)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(11)
    with torch.no_grad(), left_out.of(module), mode_of(module, mode == "train"):
        return module(*clone(args), **clone(kwargs))


def doubled(inputs: Inputs) -> Any:
    """Floating inputs in float64."""
    return torch.utils._pytree.tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
    )


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of a nested output; attributes of plain objects count too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)
    elif hasattr(value, "__dict__"):
        yield from tensors(vars(value))


def finite(value: Any) -> bool:
    """Whether all floating tensors hold finite numbers only."""
    return all(bool(t.isfinite().all()) for t in tensors(value) if t.is_floating_point())


def difference(expected: Any, found: Any) -> float:
    """The largest difference of any tensor, relative to its largest number; infinite where the structure differs."""
    left, right = list(tensors(expected)), list(tensors(found))
    if len(left) != len(right) or not left:
        return math.inf
    return max(_one_difference(a, b) for a, b in zip(left, right, strict=True))


def _one_difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or a.is_floating_point() != b.is_floating_point():
        return math.inf
    if a.numel() == 0:
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else math.inf
    a, b = (t.detach().to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, torch.zeros_like(a), a - b).abs().max().item()
    usable = a[a.isfinite()].abs()
    scale = max(usable.max().item() if usable.numel() else 1.0, 1e-3)
    return math.inf if gap != gap else gap / scale


def _where(error: BaseException) -> str:
    """The innermost frame inside sortify, for whoever mends it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/sortify/" in f.filename]
    return f"{frames[-1].filename.rpartition('/sortify/')[2]}:{frames[-1].name}" if frames else ""


def main(check_one: Callable[[str], Row] = check) -> int:
    """Print one line of JSON for the model named on the command line."""
    warnings.simplefilter("ignore")
    row = check_one(sys.argv[1])
    print(json.dumps(row))
    return 0 if row["status"] == "pass" else 1


if __name__ == "__main__":
    raise SystemExit(main())
