"""What stands between a user's module and its capture.

Wrappers are taken off, what cannot be captured is refused in one line, and what changes its meaning is said. A run
of the module, real or traced, leaves its attributes as they were.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sortify.errors import CaptureError


@dataclass(frozen=True, eq=False)
class Example:
    """A call with positional and named inputs: what example inputs may be beside a tuple or a dict."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


WRAPPERS: tuple[tuple[str, str, str], ...] = (
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.nn.parallel.data_parallel", "DataParallel", "module"),
    ("torch.nn.parallel.distributed", "DistributedDataParallel", "module"),
)
"""Modules of torch that only run another one: where the class is, its name, and the attribute that holds the module."""


def _is_a(value: Any, place: str, name: str) -> bool:
    """Whether a value is of a class that takes long to import: before it is imported there is no such value."""
    kind = getattr(sys.modules.get(place), name, None)
    return kind is not None and isinstance(value, kind)


def unwrap(module: nn.Module) -> tuple[nn.Module, list[str]]:
    """The module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`, and what to say about it."""
    notes = []
    while (inner := _inside(module)) is not None:
        notes.append(f"{type(module).__name__} was taken off: the module inside was converted, under its own names")
        module = inner
    return module, notes


def _inside(module: Any) -> nn.Module | None:
    return next((getattr(module, inner) for place, name, inner in WRAPPERS if _is_a(module, place, name)), None)


def check_module(module: Any) -> list[str]:
    """What to say about a module that can be captured.

    Raises:
        CaptureError: it is no module, is scripted, or its parameters have no sizes yet, are sharded, or lie on
            several devices.
    """
    if not isinstance(module, nn.Module):
        raise CaptureError(f"expected a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise CaptureError(f"{module.original_name} is a torch.jit module, which cannot be captured: give the original")
    devices = dict[str, str]()
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise CaptureError(f"parameter {name} has no size yet: run the model once on an input, then convert it")
        if _is_a(parameter, "torch.distributed.tensor", "DTensor"):
            raise CaptureError(f"parameter {name} is sharded over several processes: convert before sharding")
        devices.setdefault(str(parameter.device), name)
    if len(devices) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise CaptureError(f"parameters lie on several devices ({places}): move the model to one of them first")
    return _about_hooks(module)


def _about_hooks(module: nn.Module) -> list[str]:
    """Hooks are Python: what they compute is recorded, they themselves are not kept."""
    notes = []
    for kinds, text in (
        (("_forward_hooks", "_forward_pre_hooks"), "what forward hooks of {} do is recorded, the hooks are gone"),
        (("_backward_hooks", "_backward_pre_hooks"), "backward hooks of {} are left out"),
    ):
        found = [name or "the model" for name, m in module.named_modules() if any(getattr(m, k) for k in kinds)]
        rest = [f"and {len(found) - 3} more"] if len(found) > 3 else []
        notes += [text.format(", ".join([*found[:3], *rest]))] if found else []
    return notes


def to_device_of(module: nn.Module, inputs: Any) -> tuple[Any, list[str]]:
    """Example inputs on the device of the parameters, and a note where they were elsewhere."""
    device = next((p.device for p in module.parameters()), None)
    elsewhere = {t.device for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor) and t.device != device}
    if device is None or not elsewhere:
        return inputs, []
    if any(other.type == "meta" for other in elsewhere):
        raise CaptureError(f"the example inputs have no data (meta device), the model is on {device}: give real ones")
    moved = pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), inputs)
    return moved, [f"the example inputs were moved to the model's device ({device})"]


def check_memory(tensors: Mapping[str, torch.Tensor], constants: Mapping[str, torch.Tensor]) -> list[str]:
    """What to say about parameters that share memory.

    Raises:
        CaptureError: a plain attribute is a view of a parameter; trained on its own it would be another model.
    """
    owners = dict[int, str]()
    notes = []
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter) and tensor.device.type != "meta" and tensor.numel():
            first = owners.setdefault(tensor.data_ptr(), name)
            if first != name:
                notes.append(
                    f"{name} and {first} share memory but are two parameters: they are independent from now on; "
                    f"assign one nn.Parameter to both to tie them"
                )
    storages = {tensors[name].untyped_storage().data_ptr(): name for name in owners.values()}
    for name, tensor in constants.items():
        owner = storages.get(tensor.untyped_storage().data_ptr()) if tensor.device.type != "meta" else None
        if owner is not None and tensor.numel():
            raise CaptureError(
                f"attribute {name.partition('.')[2]} is a view of parameter {owner} and would not follow it in "
                f"training: take the view in forward"
            )
    return notes


def open_dataclasses(value: Any) -> bool:
    """Make the dataclasses in a nested value known to torch.utils._pytree; whether there were new ones."""
    found = False
    for leaf in pytree.tree_leaves(value):
        kind = type(leaf)
        if dataclasses.is_dataclass(kind) and kind not in pytree.SUPPORTED_NODES:
            name = f"{kind.__module__}.{kind.__qualname__}"
            pytree.register_dataclass(kind, serialized_type_name=name)
            open_dataclasses(leaf)
            found = True
    return found


@contextmanager
def mode_of(module: nn.Module, training: bool) -> Iterator[None]:
    """Put every sub-module in one mode for a while; afterwards each has its own again, and its attributes of before.

    A forward may keep what it computed (`self.last = y`, `self.cache[key] = y`); a traced one would leave tensors
    without data behind, and one with other weights wrong ones. Models that keep something in one mode drop it when
    they change to the other, so both are entered. Modules that `LeftOut.of` holds back stay in evaluation mode.
    """
    before = {child: (dict(vars(child)), _containers(vars(child))) for child in module.modules()}
    module.train(not training)
    module.train(training)
    for child in _HELD_BACK.get() & before.keys():
        child.training = False
    try:
        yield
    finally:
        for child, (attributes, containers) in before.items():
            vars(child).clear()
            vars(child).update(attributes)
            for container, contents in containers:
                _refill(container, contents)


Container = dict[Any, Any] | list[Any] | set[Any]


def _containers(value: Any) -> list[tuple[Container, Container]]:
    """The dicts, lists and sets among the values of a dict, and a copy of each."""
    found = [v for v in value.values() if isinstance(v, (dict, list, set))]
    return [(container, copy.copy(container)) for container in found]


def _refill(container: Any, contents: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(contents)


_HELD_BACK: ContextVar[frozenset[nn.Module]] = ContextVar("held_back", default=frozenset())

SKIPPED = "parts that training skips at random are always run"
EVALUATION = "training=False: only evaluation was captured, and training mode runs it too, without dropout and the like"
HELD_BACK = "drawn by NumPy or Python's random in training, which no graph can hold: its own code runs as in evaluation"


@dataclass(frozen=True)
class LeftOut:
    """What a module does at random in training and its graph does not.

    Attributes:
        skips: it skips layers; they are always run.
        held_back: paths of the modules whose own code, not that of their children, runs as in evaluation mode.
        everything: all of it runs as in evaluation mode, as the caller wants.
    """

    skips: bool = False
    held_back: tuple[str, ...] = ()
    everything: bool = False

    @property
    def notes(self) -> list[str]:
        """What to say about it."""
        names = ", ".join(name or "the model" for name in self.held_back)
        if self.everything:
            return [EVALUATION]
        return [*([SKIPPED] if self.skips else []), *([f"numbers of {names}: {HELD_BACK}"] if names else [])]

    @contextmanager
    def of(self, module: nn.Module) -> Iterator[None]:
        """Leave it out of the calls of a module too, such as the original that a graph is compared with."""
        held_back = module.modules() if self.everything else map(module.get_submodule, self.held_back)
        held = _HELD_BACK.set(_HELD_BACK.get() | {*held_back})
        try:
            with never_skipping() if self.skips else nullcontext():
                yield
        finally:
            _HELD_BACK.reset(held)


NOTHING = LeftOut()


class One(float):
    """A drawn number that is always 1; as a plain number it can decide what a traced model does next."""

    def item(self) -> float:
        return float(self)


class never_skipping(TorchFunctionMode):
    """While it is entered, `torch.rand` of a single number gives 1: layers skipped with some probability are run.

    LayerDrop (arXiv 1909.11556) draws one number per layer and compares it; a graph cannot hold that choice. Depth of
    a sorted model is drawn by the sampler instead. `count` tells how many numbers were asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.rand and _single(args):
            self.count += 1
            return One(1.0)
        return function(*args, **(kwargs or {}))


def _single(sizes: Any) -> bool:
    """Whether these sizes, in any of the spellings that torch takes, are those of one number."""
    flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    return all(type(size) is int and size == 1 for size in flat)


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """An attempt that fails is no news: torch's tracer would log pages about it and print the graph so far."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
