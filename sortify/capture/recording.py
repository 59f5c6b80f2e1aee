"""Recording: what sub-modules are called with while the whole model runs once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sortify.capture.exporting import run_untouched
from sortify.capture.prepare import Example
from sortify.errors import CaptureError, first_line
from sortify.graph.signature import Signature

Dynamic = dict[str, tuple[int, ...]]


@dataclass(eq=False)
class Calls:
    """The calls of one sub-module in one run: the first one, and the tensor shapes of all of them."""

    first: Example
    shapes: list[tuple[torch.Size, ...]] = field(default_factory=list)

    def varied(self) -> list[tuple[int, int]] | None:
        """Which dimensions of which input tensors differ from call to call; None where calls are not alike."""
        ranks = {tuple(map(len, shapes)) for shapes in self.shapes}
        if len(ranks) > 1:
            return None
        return [
            (number, dim)
            for number, sizes in enumerate(zip(*self.shapes, strict=True))
            for dim, values in enumerate(zip(*sizes, strict=True))
            if len(set(values)) > 1
        ]


def record(module: nn.Module, example: Example, wanted: Iterable[nn.Module]) -> dict[nn.Module, Calls]:
    """The calls of some sub-modules in one run of the whole, in evaluation mode or else in training mode.

    Only theirs: holding what every sub-module was called with would take as much memory as training.

    Raises:
        CaptureError: the model runs in neither mode.
    """
    failures = list[str]()
    for training in (False, True):
        found: dict[nn.Module, Calls] = {}
        with ExitStack() as hooks:
            for child in wanted:
                if not isinstance(child, torch.jit.ScriptModule):
                    hooks.enter_context(_listening(child, found))
            try:
                run_untouched(module, example.args, example.kwargs, training)
                return found
            except Exception as error:
                failures.append(f"{type(error).__name__}: {first_line(error)}")
    raise CaptureError(f"{type(module).__name__} itself does not run on the example inputs: {failures[0]}")


class _listening:
    """A hook that notes the inputs of one sub-module, taken off at the end."""

    def __init__(self, child: nn.Module, found: dict[nn.Module, Calls]) -> None:
        self.child, self.found = child, found

    def __enter__(self) -> None:
        self.handle = self.child.register_forward_pre_hook(self._note, with_kwargs=True)

    def __exit__(self, *error: Any) -> None:
        self.handle.remove()

    def _note(self, child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if child not in self.found:
            self.found[child] = Calls(Example(*pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))))
        self.found[child].shapes.append(tuple(leaf.shape for leaf in leaves))


def open_sizes(child: nn.Module, calls: Calls, varied: list[tuple[int, int]]) -> Iterator[Dynamic]:
    """Which sizes to ask for, the most first: those of pictures and the like, then only those seen to vary."""
    args, kwargs = calls.first.args, calls.first.kwargs
    names = Signature.of(child.forward, args, kwargs).tensor_names
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    spatial = [
        (number, dim)
        for number, leaf in enumerate(leaves)
        if leaf.dim() >= 4 and leaf.is_floating_point()
        for dim in range(2, leaf.dim())
    ]
    least = _by_name(varied, names)
    most = _by_name([*varied, *spatial], names)
    yield most
    if most != least:
        yield least


def check_served(child: nn.Module, calls: Calls, signature: Signature) -> None:
    """Raise InputError if captured graphs do not serve the sizes of one of the calls."""
    names = Signature.of(child.forward, calls.first.args, calls.first.kwargs).tensor_names
    for shapes in calls.shapes:
        by_name = dict(zip(names, shapes, strict=True))
        signature.check_sizes([tuple(by_name[name]) for name in signature.tensor_names])


def _by_name(places: list[tuple[int, int]], names: tuple[str, ...]) -> Dynamic:
    wanted: dict[str, set[int]] = {}
    for number, dim in places:
        wanted.setdefault(names[number], set()).add(dim)
    return {name: tuple(sorted(dims)) for name, dims in wanted.items()}


def owners(module: nn.Module) -> Mapping[int, set[nn.Module]]:
    """Which sub-modules hold each parameter and buffer, by the tensor's id."""
    found: dict[int, set[nn.Module]] = {}
    for child in module.modules():
        for tensor in (*child._parameters.values(), *child._buffers.values()):
            if tensor is not None:
                found.setdefault(id(tensor), set()).add(child)
    return found
