"""A sub-network written in the form that is asked for, or in that of what the model came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from sortify.capture.prepare import mode_of
from sortify.difference import difference
from sortify.errors import NativeError, ProofError, SortifyError
from sortify.formats.table import FORMATS, tolerance, write
from sortify.models.sorted_model import SortedModel
from sortify.native.native import Native, has_native_library, to_native
from sortify.network.extract import ExtractedModel
from sortify.sources.origin import TIMM, TORCHVISION, TRANSFORMERS
from sortify.space.space import Subnet

AUTO, NATIVE, PLAIN = "auto", "native", "pt2"
"""The form that the target's name or the model's origin tells; the folder of its library; where neither tells one."""
FOLDERS: Mapping[str, str] = MappingProxyType({"huggingface": TRANSFORMERS, "timm": TIMM, "torchvision": TORCHVISION})
"""Forms that are folders of a library -> the library."""
FORMS = (AUTO, *FORMATS, *FOLDERS)
"""What `write_subnet` writes."""
NAME = "extracted"
"""Of what nobody named."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: of the file or folder.
        form: the name of its format.
        error: the largest difference of its outputs from the sub-network's, relative to the largest output.
        use: how to use it, for people.
        note: why it is no folder of the library that the model came from; empty where nothing needs to be said.
    """

    path: Path
    form: str
    error: float
    use: str
    note: str = ""


def write_subnet(model: SortedModel, subnet: Subnet, target: str | Path | None = None, form: str = AUTO) -> Written:
    """Cut out a sub-network and write it to files that need no sortify; they appear when they are checked.

    Args:
        model: the sorted model.
        subnet: which sub-network.
        target: the file or folder; a file's name without an ending gets the format's, and in a folder it is called
            `extracted`, as it is here where no target is named.
        form: a format, a key of `FOLDERS` (the folder of the library that the model came from), 'native' (whichever
            it is), or 'auto': as the target's name ends, else the folder of its library where a class of it can be
            this sub-network, else 'pt2'.

    Raises:
        SortifyError: unknown form, or as `write` and `to_native`.
    """
    check_form(form)
    target, note = None if target is None else Path(target), ""
    endings = {each.suffix: name for name, each in FORMATS.items() if each.suffix}
    if form == AUTO:
        form = endings.get(target.suffix if target else "") or (NATIVE if has_native_library(model) else PLAIN)
        try:
            native = to_native(model, subnet) if form == NATIVE else None
        except NativeError as error:
            native, form, note = None, PLAIN, f"written as a graph, as {error}"
    else:
        native = to_native(model, subnet) if form in (NATIVE, *FOLDERS) else None
    if native is not None:
        return _write_native(native, named(target, form), form)
    small = model.extract(subnet=subnet).eval()
    apart = _from_the_subnet(model, subnet, small)
    target = named(target, form)
    return Written(target, form, max(apart, write(small, model.example_tensors, target, form)), FORMATS[form].use, note)


def check_form(form: str) -> None:
    """Raise SortifyError for a form that `write_subnet` does not know."""
    if form not in (*FORMS, NATIVE):
        raise SortifyError(f"format {form!r}: expected one of {', '.join(FORMS)}")


def named(target: Path | None, form: str) -> Path:
    """Where a format's file or folder goes."""
    suffix = FORMATS[form].suffix if form in FORMATS else ""
    if target is None:
        return Path(f"{NAME}{suffix}")
    if not suffix:
        return target
    target = target / NAME if target.is_dir() else target
    return target if target.suffix[1:2].isalpha() else target.with_name(f"{target.name}{suffix}")


def _write_native(native: Native, target: Path, form: str) -> Written:
    own = {library: name for name, library in FOLDERS.items()}.get(native.library, native.library)
    if form not in (NATIVE, own):
        raise NativeError(f"format {form!r}, but the model was converted from {native.library}: take {own!r}")
    native.save(target)
    changes = ", ".join(f"{name}={value}" for name, value in native.changes.items())
    return Written(target, own, native.error, f"use it: {native.use}; {changes}")


def _from_the_subnet(model: SortedModel, subnet: Subnet, small: ExtractedModel) -> float:
    """How far the extracted model is from the sub-network in its place."""
    args, kwargs = model.examples
    with torch.no_grad(), mode_of(model, training=False), model.using(subnet):
        error = difference(model(*args, **kwargs), small(*args, **kwargs))
    if not error <= tolerance(small):
        raise ProofError(f"not written: the extracted model's outputs differ from {subnet}'s by {error:.1e}")
    return error
