"""The highest rung of extraction: the original class with smaller settings, proven by equal outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sortify.difference import difference
from sortify.errors import InputError, NativeError, ProfileError, SortifyError
from sortify.files import replacing
from sortify.models.profiling import inputs_at
from sortify.models.sorted_model import SortedModel
from sortify.native import hugging_face
from sortify.native.numbering import renumbered
from sortify.native.settings import Settings, changed, told
from sortify.native.solve import Shapes, Wanted, solve
from sortify.network.extract import ExtractedModel, extract
from sortify.proof.trials import perturbed, statistics_of
from sortify.sources.origin import TRANSFORMERS, Origin
from sortify.space.space import Subnet

TOLERANCE = 1e-5
CANDIDATES = 60
"""Settings of the right shapes whose outputs are compared, at most."""


@dataclass(frozen=True)
class Library:
    """What is asked of a library: a model with some settings, and its shapes without making it."""

    build: Callable[[str, Settings], nn.Module]
    shapes: Callable[[str, Settings], Shapes]
    save: Callable[[nn.Module, Path], None]


LIBRARIES: Mapping[str, Library] = MappingProxyType(
    {TRANSFORMERS: Library(hugging_face.build, hugging_face.shapes, hugging_face.save)}
)
"""Libraries whose models can be made smaller by their settings."""


@dataclass(frozen=True)
class Native:
    """A sub-network as a model of the library that the original came from.

    Attributes:
        library: that the class is of.
        module: of the original's class.
        changes: the settings that differ from the original's, as `{"hidden_size": 32}`.
        error: the largest difference of its outputs from the extracted graph's.
    """

    library: str
    module: nn.Module
    changes: Mapping[str, Any]
    error: float

    def save(self, target: str | Path) -> None:
        """Write a folder that the library loads; it appears when it is complete and has been read back.

        Args:
            target: a folder that is not there yet, or is empty.

        Raises:
            NativeError: there is something already, or the library does not read what it wrote.
            SortifyError: the disk refuses.
        """
        target = Path(target)
        if target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise NativeError(f"{target}: there is something already; name a folder that is new or empty")
        try:
            with replacing(target) as draft:
                LIBRARIES[self.library].save(self.module, draft)
        except (OSError, SafetensorError) as error:
            raise SortifyError(f"{target}: cannot be written ({error}); earlier files are untouched") from error


def to_native(model: SortedModel, subnet: Subnet) -> Native:
    """A sub-network as a model of the original's class, loadable where sortify is not installed.

    Args:
        model: a sorted model that was converted from a model of a known library.
        subnet: which sub-network.

    Raises:
        NativeError: it is of no known library, or no settings of the class give this sub-network; the message says why.
    """
    origin = model.blueprint.origin
    if origin is None or origin.library not in LIBRARIES:
        known = ", ".join(sorted(LIBRARIES))
        raise NativeError(f"the model was not converted from a class of a known library ({known})")
    library, small = LIBRARIES[origin.library], model.extract(subnet=subnet).eval()
    state, full = small.state_dict(), model.state_dict()
    names = renumbered(list(full), list(state))
    weights = {names[name]: tensor for name, tensor in state.items()}
    best, wanted = float("inf"), _wanted(model, subnet, full, names, weights)
    found = solve(lambda settings: library.shapes(origin.name, settings), origin.settings, wanted)
    noisy = extract(model.blueprint, perturbed(model.tensors, statistics_of(model.blueprint)), subnet).eval()
    for changes in islice(found, CANDIDATES):
        module, error = library.build(origin.name, changed(origin.settings, changes)), 0.0
        for each in (noisy, small):  # fresh weights hide much: attention that is the same everywhere, zeros
            module.load_state_dict({names[name]: tensor for name, tensor in each.state_dict().items()})
            error = max(error, _error(model, each, module))
        if error <= TOLERANCE:
            return Native(origin.library, module, {told(path): value for path, value in changes.items()}, error)
        best = min(best, error)
    raise NativeError(_why(origin, subnet, best))


def _wanted(
    model: SortedModel, subnet: Subnet, full: Mapping[str, Tensor], names: Mapping[str, str], own: Mapping[str, Tensor]
) -> Wanted:
    sizes = dict(subnet.sizes)
    depths = dict(subnet.depths)
    smaller = {len(chain.blocks): depths[name] for name, chain in model.chains.items()}
    smaller |= {axis.size: sizes[name] for name, axis in model.axes.items()}
    smaller = {size: kept for size, kept in smaller.items() if kept < size}
    before, after = ({name: tuple(t.shape) for name, t in each.items()} for each in (full, own))
    return Wanted(before, tuple(names), after, smaller)


def _why(origin: Origin, subnet: Subnet, best: float) -> str:
    if best == float("inf"):
        return f"no settings of {origin.name} give a model with the shapes of {subnet}"
    return f"settings of {origin.name} give the shapes of {subnet}, but outputs that differ by {best:.1e}"


def _error(model: SortedModel, small: ExtractedModel, module: nn.Module) -> float:
    """The largest difference of outputs, at the example inputs and at other sizes of them."""
    worst = 0.0
    with torch.no_grad():
        for tensors in _inputs(model):
            args, kwargs = small.signature.call(tensors)
            expected = small(*args, **kwargs)
            found = module(*args, **small.signature.completed(args, kwargs))
            worst = max(worst, difference(_plain(expected), _plain(found, expected)))
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
