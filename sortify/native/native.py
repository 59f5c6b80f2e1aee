"""The highest rung of extraction: the original class with smaller settings, proven by equal outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError
from torch import nn

from sortify.axes.reasons import UNUSED
from sortify.errors import NativeError, SortifyError, first_line
from sortify.files import is_taken, replacing
from sortify.models.sorted_model import SortedModel
from sortify.native import hugging_face, timm_models, torchvision_models
from sortify.native.comparing import TOLERANCE, furthest
from sortify.native.numbering import renumbered
from sortify.native.settings import Settings, changed, told
from sortify.native.solve import Shapes, Wanted, solve
from sortify.sources.origin import TIMM, TORCHVISION, TRANSFORMERS, Origin
from sortify.space.space import Subnet

CANDIDATES = 60
"""Settings of the right shapes whose outputs are compared, at most."""


@dataclass(frozen=True)
class Library:
    """What is asked of a library: a model with some settings, its shapes without making it, and files.

    Attributes:
        named: what the others take as a name, of an origin and the shapes of its full model.
        settings: of an origin and that name, as JSON values.
        build, shapes: of a class or architecture with some settings.
        save: writes a folder of a model, which was made with some settings, and reads it back.
        not_saved: weights that the folder does not hold, and reading makes anew.
        use: how to read a folder of a model, for people.
    """

    named: Callable[[Origin, Shapes], str]
    settings: Callable[[Origin, str], Settings]
    build: Callable[[str, Settings], nn.Module]
    shapes: Callable[[str, Settings], Shapes]
    save: Callable[[nn.Module, str, Settings, Path], None]
    not_saved: Callable[[nn.Module], set[str]]
    use: Callable[[nn.Module], str]


LIBRARIES: Mapping[str, Library] = MappingProxyType(
    {
        TRANSFORMERS: Library(
            lambda origin, shapes: origin.name,
            lambda origin, name: origin.settings,
            hugging_face.build,
            hugging_face.shapes,
            hugging_face.save,
            hugging_face.not_saved,
            lambda module: f"{type(module).__name__}.from_pretrained(path)",
        ),
        TIMM: Library(
            lambda origin, shapes: origin.name,
            lambda origin, name: timm_models.settings(name),
            timm_models.build,
            timm_models.shapes,
            timm_models.save,
            lambda module: set(),
            lambda module: 'timm.create_model("local-dir:" + path, pretrained=True)',
        ),
        TORCHVISION: Library(
            lambda origin, shapes: torchvision_models.named(origin.name, shapes),
            lambda origin, name: torchvision_models.settings(name),
            torchvision_models.build,
            torchvision_models.shapes,
            torchvision_models.save,
            lambda module: set(),
            lambda module: "from model import load; load()",
        ),
    }
)
"""Libraries whose models can be made smaller by their settings."""


@dataclass(frozen=True)
class Native:
    """A sub-network as a model of the library that the original came from.

    Attributes:
        subnet: that it is.
        library, name: what the original is of.
        module: of the original's class.
        settings: that it was made with.
        changes: the settings that differ from the original's, as `{"hidden_size": 32}`.
        error: the largest difference of its outputs from the extracted graph's.
    """

    subnet: Subnet
    library: str
    name: str
    module: nn.Module
    settings: Mapping[str, Any]
    changes: Mapping[str, Any]
    error: float

    @property
    def use(self) -> str:
        """How to read the folder, for people."""
        return LIBRARIES[self.library].use(self.module)

    def save(self, target: str | Path) -> None:
        """Write a folder that the library loads; it appears when it is complete and has been read back.

        Args:
            target: a folder that is not there yet, or is empty.

        Raises:
            NativeError: there is something already, or the library does not read what it wrote.
            SortifyError: the disk refuses.
        """
        target = Path(target)
        if is_taken(target):
            raise NativeError(f"{target}: there is something already; name a folder that is new or empty")
        try:
            with replacing(target) as draft:
                LIBRARIES[self.library].save(self.module, self.name, self.settings, draft)
        except (OSError, SafetensorError) as error:
            raise SortifyError(f"{target}: cannot be written ({error}); earlier files are untouched") from error


def has_native_library(model: SortedModel) -> bool:
    """Whether a model was converted from a class of a library whose models can be made smaller by their settings."""
    origin = model.blueprint.origin
    return origin is not None and origin.library in LIBRARIES


def to_native(model: SortedModel, subnet: Subnet) -> Native:
    """A sub-network as a model of the original's class, loadable where sortify is not installed.

    Args:
        model: a sorted model that was converted from a model of a known library.
        subnet: which sub-network.

    Raises:
        NativeError: it is of no known library, or no settings of the class give this sub-network, or its weights are on
            the meta device; the message says why.
    """
    origin = model.blueprint.origin
    if origin is None or not has_native_library(model):
        known = ", ".join(sorted(LIBRARIES))
        raise NativeError(f"the model was not converted from a class of a known library ({known})")
    if any(tensor.is_meta for tensor in model.tensors.values()):
        raise NativeError("the weights are on the meta device: without values nothing can be compared")
    library, best = LIBRARIES[origin.library], float("inf")
    wanted, names = _wanted(model, subnet)
    name = library.named(origin, wanted.full)
    settings = library.settings(origin, name)
    found = solve(lambda given: library.shapes(name, given), settings, wanted)
    why = f"no settings of {name} give a model with the shapes of {subnet}"
    for changes in islice(found, CANDIDATES):
        new = changed(settings, changes)
        module = library.build(name, new)
        try:
            error = furthest(model, subnet, module, names, library.not_saved(module))
        except Exception as problem:  # shapes that fit by themselves, such as heads that do not divide a width
            if best == float("inf"):
                why = f"settings of {name} give the shapes of {subnet}, but do not run: {first_line(problem)}"
            continue
        if error <= TOLERANCE:
            said = {told(path): value for path, value in changes.items()}
            return Native(subnet, origin.library, name, module, new, said, error)
        if error <= best:
            best = error
            why = f"settings of {name} give the shapes of {subnet}, but outputs that differ by {best:.1e}"
    raise NativeError(why)


def _unused(model: SortedModel) -> set[str]:
    """Parameters that no op uses, such as an embedding for masks that the call does not make."""
    return {frozen.where.partition(" dimension ")[0] for frozen in model.frozen if frozen.why == UNUSED}


def _wanted(model: SortedModel, subnet: Subnet) -> tuple[Wanted, Mapping[str, str]]:
    """What a model of its own has to have, and the names of the sub-network's weights there."""
    state, full = model.extract(subnet=subnet).state_dict(), model.state_dict()
    names = renumbered(list(full), list(state))
    sizes, depths = dict(subnet.sizes), dict(subnet.depths)
    smaller = {len(chain.blocks): depths[name] for name, chain in model.chains.items()}
    smaller |= {axis.size: sizes[name] for name, axis in model.axes.items()}
    smaller = {size: kept for size, kept in smaller.items() if kept < size}
    before = {name: tuple(tensor.shape) for name, tensor in full.items()}
    after = {names[name]: tuple(tensor.shape) for name, tensor in state.items()}
    idle = frozenset(names[name] for name in _unused(model) & set(names))
    units = tuple(sorted({sizes[name] for name, axis in model.axes.items() if axis.group != "width"}))
    return Wanted(before, tuple(names), after, smaller, units, idle), names
