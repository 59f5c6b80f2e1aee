"""Partial capture: the largest sub-modules that can be captured, found from the root down."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sortify.capture.exporting import run_untouched
from sortify.capture.prepare import Example, LeftOut
from sortify.capture.recording import Calls, Dynamic, check_served, open_sizes, owners, record
from sortify.difference import difference
from sortify.errors import AxesError, CaptureError, SortifyError, first_line
from sortify.models.composed import ComposedModel, compare_whole, compose, merged_left_out, merged_report
from sortify.models.merging import Part
from sortify.models.sorted_model import SortedModel
from sortify.proof import proof

Convert = Callable[[nn.Module, Example, Dynamic], SortedModel]


def sortify_parts(
    module: nn.Module, example: Example, convert: Convert, why: CaptureError, source: str | None = None
) -> ComposedModel:
    """Sort the largest parts of a module that cannot be captured whole.

    Args:
        module: the model; it is not changed.
        example: the example call of the whole.
        convert: sorts one part with the inputs recorded for it and the sizes to leave open.
        why: what kept the whole from being captured.
        source: where the model comes from, for people.

    Raises:
        CaptureError: no part can be captured; the message is that of the whole.
        ProofError: the parts put together do not give the original's outputs.
    """
    if any(tensor.is_meta for tensor in module.parameters()):
        raise type(why)(f"{why}; parts of it can only be found by running it: give weights with data")
    finder = _Finder(module, example, convert)
    try:
        finder.descend(module, "")
    except CaptureError:
        raise why from None
    parts, left = finder.parts, {"the code between the parts": str(why), **finder.left}
    while parts:
        checks, not_checked = _checks(module, compose(module, parts, left, example), example)
        left |= {f"the whole in {mode} mode": f"not checked, as {text}" for mode, text in not_checked.items()}
        model = compose(module, parts, left, example, source)
        if all(check.passed for check in checks):
            model.report = merged_report(parts, checks)
            model.train(module.training)
            return model
        guilty = _guilty(module, parts, example)
        left |= {
            path: f"the whole does not give the original's outputs with it: {note}" for path, note in guilty.items()
        }
        parts = [part for part in parts if part.path not in guilty] if guilty else []
    told = sorted(finder.left.items(), key=lambda item: item[1] == _NOT_CALLED)
    reasons = "; ".join(f"{path}: {text}" for path, text in told[:3])
    raise type(why)(f"{why}; no part of it can be sorted either ({reasons})" if reasons else str(why)) from why


class _Finder:
    """Goes down the tree of modules, sorts what can be sorted, and notes why the rest stays."""

    def __init__(self, root: nn.Module, example: Example, convert: Convert) -> None:
        self.root, self.example, self.convert = root, example, convert
        self.owners = owners(root)
        self.names = {id(tensor): name for name, tensor in [*root.named_parameters(), *root.named_buffers()]}
        self.parts: list[Part] = []
        self.left: dict[str, str] = {}
        self.seen: set[nn.Module] = set()

    def descend(self, module: nn.Module, path: str) -> None:
        children = [(n, child) for n, child in module.named_children() if _size(child) and child not in self.seen]
        calls = record(self.root, self.example, [child for _, child in children]) if children else {}
        for name, child in sorted(children, key=lambda pair: -_size(pair[1])):
            self.seen.add(child)
            self._visit(child, f"{path}.{name}" if path else name, calls.pop(child, None))

    def _visit(self, child: nn.Module, path: str, calls: Calls | None) -> None:
        found = len(self.parts)
        why = self._shared(child)
        if isinstance(child, torch.jit.ScriptModule):
            self.left[path] = "it is a torch.jit module"
            return
        if calls is None and why is None:
            why = _NOT_CALLED
        elif calls is not None and why is None:
            why = self._try(child, path, calls)
        if why is None:
            return
        if not why.startswith(_NOTHING):
            self.descend(child, path)
        if len(self.parts) == found and not any(name.startswith(f"{path}.") for name in self.left):
            self.left[path] = why

    def _try(self, child: nn.Module, path: str, calls: Calls) -> str | None:
        """Sort one module; why not, where that fails."""
        varied = calls.varied()
        if varied is None:
            return "it is called with inputs of different kinds"
        why = "its inputs cannot be described"
        try:
            for sizes in open_sizes(child, calls, varied):
                try:
                    model = self.convert(child, calls.first, sizes)
                    check_served(child, calls, model.signature)
                    self.parts.append(Part(path, model, len(calls.shapes)))
                    return None
                except AxesError as error:
                    why = f"{_NOTHING}: {first_line(error).removeprefix(_WHOLE)}"
                except SortifyError as error:
                    why = first_line(error)
        except Exception as error:  # a call of unusual form: the module stays as it is
            why = f"{type(error).__name__}: {first_line(error)}"
        return why

    def _shared(self, child: nn.Module) -> str | None:
        """Why a module cannot be cut out: others use its tensors."""
        inside = set(child.modules())
        for tensor in [*child.parameters(), *child.buffers()]:
            if not self.owners[id(tensor)] <= inside:
                return f"{self.names[id(tensor)]} is used outside of it too"
        return None


_NOT_CALLED = "it is not called with the example inputs"
_NOTHING = "nothing in it is elastic between fixed inputs and outputs"
_WHOLE = "nothing in this model is elastic: "


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _checks(module: nn.Module, model: ComposedModel, example: Example) -> tuple[list[proof.Check], dict[str, str]]:
    """The whole against the original in the modes in which the original runs on the example; why not in the others."""
    found, not_run, left_out = list[proof.Check](), dict[str, str](), merged_left_out(model.parts)
    for mode in ("eval", "train"):
        try:
            check = compare_whole(module, model, example, mode == "train", left_out)
            if check.passed or _repeats(module, example, mode == "train", left_out):
                found.append(check)
            else:
                not_run[mode] = "the original gives other outputs when it is called again with the same random state"
        except Exception as error:  # such as a detection model that wants targets in training
            not_run[mode] = f"the original does not run on the example: {type(error).__name__}: {first_line(error)}"
    return found, not_run


def _repeats(module: nn.Module, example: Example, training: bool, left_out: LeftOut) -> bool:
    """Whether two calls of the original with the same random state give the same."""
    with left_out.of(module):
        first, second = (run_untouched(module, example.args, example.kwargs, training) for _ in range(2))
    return difference(first, second) <= proof.SINGLE


def _guilty(module: nn.Module, parts: list[Part], example: Example) -> dict[str, str]:
    """The parts with which alone the whole fails, and how."""
    found: dict[str, str] = {}
    for part in parts:
        checks, _ = _checks(module, compose(module, [part], {}, example), example)
        wrong = [check.note for check in checks if not check.passed]
        found |= {part.path: wrong[0]} if wrong else {}
    return found
