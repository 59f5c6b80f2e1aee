"""Whether a model of the library computes what an extracted graph does, for weights that hide nothing."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from sortify.capture.prepare import LeftOut, mode_of
from sortify.difference import difference
from sortify.errors import InputError, ProfileError
from sortify.models.profiling import inputs_at
from sortify.models.sorted_model import SortedModel
from sortify.network.extract import ExtractedModel, extract
from sortify.proof.proof import draws
from sortify.proof.trials import Lazily, quietly
from sortify.space.space import Subnet

TOLERANCE = 1e-5
"""Largest difference of outputs, relative to the largest output."""


def furthest(
    model: SortedModel, subnet: Subnet, module: nn.Module, names: Mapping[str, str], made: Set[str] = frozenset()
) -> float:
    """How far a module of a library is from a sub-network, which gives it its weights.

    Compared are outputs with the model's own weights and, as fresh weights hide much, with weights that do not.

    Args:
        model: gives the weights and the inputs.
        subnet: of it.
        module: of a library; if it is near enough, it has the sub-network's weights, device and dtype afterwards.
        names: of the weights of the sub-network -> those of the module.
        made: weights that the module makes itself: they have to be the sub-network's already.

    Returns:
        the largest difference of outputs, relative to the largest output; the first that is too large.

    Raises:
        Exception: whatever the module says of inputs on which it does not run.
    """
    firm = {name for name, own in names.items() if own in made}
    moved = extract(model.blueprint, lively(model.tensors, firm), subnet).eval()
    names = {name: own for name, own in names.items() if name not in firm}
    try:
        error = apart(model, copy.deepcopy(moved).double(), module, names, made)
    except Exception:  # one of the two does not run in float64, such as a tensor of zeros in the default dtype
        error = apart(model, moved, module, names, made)
    if not error <= TOLERANCE:
        return error
    return max(error, apart(model, model.extract(subnet=subnet).eval(), module, names, made))


def lively(tensors: Mapping[str, Tensor], firm: Set[str] = frozenset()) -> Mapping[str, Tensor]:
    """Weights moved so far that each of them matters.

    Where projections are small, attention is the same everywhere, whatever its heads are. A matrix gets noise that by
    itself keeps the variance of its input; a vector gets a tenth of that; what is firm gets none.
    """

    def change(name: str, tensor: Tensor) -> Tensor:
        if name in firm or not (isinstance(tensor, nn.Parameter) and tensor.is_floating_point()):
            return tensor
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        fan = tensor.numel() / max(1, *tensor.shape[:1], *tensor.shape[-1:])
        return tensor.detach() + (0.1 if tensor.dim() < 2 else fan**-0.5) * noise.to(tensor)

    return Lazily(tensors, change)


def apart(
    model: SortedModel, small: ExtractedModel, module: nn.Module, names: Mapping[str, str], made: Set[str] = frozenset()
) -> float:
    """The largest difference of outputs of an extracted sub-network and a module, at several sizes of inputs.

    The first that is too large ends it. In training mode, where that was captured, both draw the same numbers, and
    change copies of their buffers.
    """
    like = next((t for t in small.state_dict().values() if t.is_floating_point()), torch.zeros(()))
    fill(module.to(like.device, like.dtype), {own: small.state_dict()[name] for name, own in names.items()}, made)
    worst = 0.0
    for tensors in _inputs(model):
        fitting = [t.to(like.device, like.dtype if t.is_floating_point() else t.dtype) for t in tensors]
        args, kwargs = small.signature.call(fitting)
        for training in _modes(model):
            expected = _plain(_called(small, training, args, kwargs))
            with _left_out(model).of(module):
                found = _called(module, training, args, small.signature.completed(args, kwargs))
            worst = max(worst, difference(expected, _plain(found, expected)))
            if not worst <= TOLERANCE:
                return worst
    return worst


def _left_out(model: SortedModel) -> LeftOut:
    """What the graphs do not draw; of a model that was read from a file it is not known whether layers are skipped."""
    return LeftOut(skips=True) if model.report is None else model.report.left_out


def _modes(model: SortedModel) -> tuple[bool, ...]:
    """Evaluation, and training where the graph has all that the original does in it.

    What skips blocks at random often does so by their number, which is another one in a model of its own.
    """
    left_out, programs = _left_out(model), model.blueprint.programs
    known = programs["train"] is not programs["eval"] and not left_out.everything and not left_out.held_back
    return (False, True) if known and not draws(programs["train"]) else (False,)


def _called(module: nn.Module, training: bool, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if not training:
        with torch.no_grad():
            return module(*args, **kwargs)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with mode_of(module, True):
        return quietly(lambda: torch.func.functional_call(module, buffers, tuple(args), dict(kwargs)))


def fill(module: nn.Module, state: Mapping[str, Tensor], made: Set[str] = frozenset()) -> None:
    """Load weights; of those that no op uses, whose sizes are free, what fits.

    Raises:
        RuntimeError: a parameter is left without a value, or a value without its place.
    """
    own: Any = module.state_dict()
    cut = dict(state.items())
    for name, tensor in state.items():
        if name in own and own[name].shape != tensor.shape and own[name].dim() == tensor.dim():
            common = tuple(slice(min(a, b)) for a, b in zip(own[name].shape, tensor.shape, strict=True))
            cut[name] = own[name].clone()
            cut[name][common] = tensor[common]
    missing = sorted({name for name, _ in module.named_parameters()} - set(cut) - set(made))
    unexpected = sorted(set(cut) - set(own))
    if missing or unexpected:
        raise RuntimeError(f"without a value: {missing[:3]}; without a place: {unexpected[:3]}")
    own.update(cut)  # with the versions of the layers that it holds
    module.load_state_dict(own)


def _inputs(model: SortedModel) -> Iterator[list[Tensor]]:
    """The example inputs, then with each open size another one, where the graphs serve it."""
    yield list(model.example_tensors)
    for name, size in model.open_sizes.items():
        try:
            tensors = inputs_at(model, {name: size + 1})
            model.signature.check_sizes([tuple(t.shape) for t in tensors])
        except (InputError, ProfileError):
            continue
        yield tensors


def _plain(output: Any, like: Any = None) -> Any:
    """An output as plain values; of a mapping only what `like` has too, such as no cache."""
    if isinstance(output, Mapping):
        keys = output if not isinstance(like, Mapping) else like
        return {str(key): output[key] for key in keys if key in output}
    return output
