"""Whether a model of the library computes what an extracted graph does, for weights that hide nothing."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sortify.difference import difference
from sortify.errors import InputError, ProfileError
from sortify.models.profiling import inputs_at
from sortify.models.sorted_model import SortedModel
from sortify.network.extract import ExtractedModel, extract
from sortify.proof.trials import Lazily
from sortify.space.space import Subnet

TOLERANCE = 1e-5
"""Largest difference of outputs, relative to the largest output."""


def lively(model: SortedModel, subnet: Subnet) -> ExtractedModel:
    """A sub-network whose parameters are moved so far that each of them matters; in float64 if it runs in that.

    Fresh weights hide much: where projections are small, attention is the same everywhere, whatever its heads are. A
    matrix gets noise that by itself keeps the variance of its input; a vector gets a tenth of that.
    """

    def moved(tensor: Tensor, name: str) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return tensor
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        fan = tensor.numel() / max(1, *tensor.shape[:1], *tensor.shape[-1:])
        return tensor + (0.1 if tensor.dim() < 2 else fan**-0.5) * noise.to(tensor)

    def change(name: str, tensor: Tensor) -> Tensor:
        return moved(tensor, name).detach() if tensor.is_floating_point() else tensor

    small = extract(model.blueprint, Lazily(model.tensors, change), subnet).eval()
    wide = copy.deepcopy(small).double()
    try:
        _run(wide, list(model.example_tensors))
    except RuntimeError:  # as of a tensor of zeros that the model makes in the default dtype
        return small
    return wide


def _run(small: ExtractedModel, tensors: Sequence[Tensor], module: nn.Module | None = None) -> Any:
    """The outputs of a sub-network, or of a module with its arguments, for inputs on its device and in its dtype."""
    like = _like(small)
    args, kwargs = small.signature.call(
        [t.to(like.device, like.dtype if t.is_floating_point() else t.dtype) for t in tensors]
    )
    with torch.no_grad():
        return small(*args, **kwargs) if module is None else module(*args, **small.signature.completed(args, kwargs))


def _like(small: ExtractedModel) -> Tensor:
    return next((t for t in small.state_dict().values() if t.is_floating_point()), torch.zeros(()))


def apart(model: SortedModel, small: ExtractedModel, module: nn.Module, names: Mapping[str, str]) -> float:
    """The largest difference of outputs, at the example inputs and at other sizes of them.

    Args:
        model: gives the inputs.
        small: a sub-network of it; the module gets its device, its dtype and its weights.
        module: of a library.
        names: of the weights of small -> those of the module.

    Returns:
        the difference relative to the largest output; infinite where the module does not run, or gives other tensors.
    """
    state, like = small.state_dict(), _like(small)
    module.to(like.device, like.dtype)
    module.load_state_dict({names[name]: tensor for name, tensor in state.items()})
    worst = 0.0
    for tensors in _inputs(model):
        expected = _plain(_run(small, tensors))
        try:
            found = _run(small, tensors, module)
        except Exception:  # shapes that fit by themselves, such as heads that do not divide a width
            return float("inf")
        worst = max(worst, difference(expected, _plain(found, expected)))
    return worst


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
