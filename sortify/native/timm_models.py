"""Models of timm with other arguments of their constructors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sortify.errors import NativeError
from sortify.native.calls import defaults, is_plain, noting, plain
from sortify.native.settings import Settings
from sortify.native.solve import Shapes


def settings(name: str) -> Settings:
    """The arguments of the constructor that an architecture stands for, those that are plain values."""
    return _arguments(name)


@cache
def _arguments(name: str) -> Mapping[str, Any]:
    with torch.device("meta"):
        kind = type(_create(name))
        with noting(kind) as calls:
            _create(name)
    given = {**defaults(kind), **calls[-1]}
    return MappingProxyType({key: plain(value) for key, value in given.items() if is_plain(value)})


def _create(name: str, **arguments: Any) -> torch.nn.Module:
    import timm  # takes seconds

    if not timm.is_model(name):
        raise NativeError(f"timm {timm.__version__} has no architecture {name}")
    module: torch.nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return module.eval()


def _changed(name: str, wanted: Settings) -> dict[str, Any]:
    known = settings(name)
    return {key: value for key, value in wanted.items() if key not in known or known[key] != value}


def build(name: str, wanted: Settings) -> torch.nn.Module:
    """A model of an architecture, in evaluation mode, with weights as the class makes them.

    Args:
        name: of the architecture.
        wanted: arguments of the constructor; those that differ from what the name stands for are handed over.

    Raises:
        NativeError: the installed timm has no such architecture.
        Exception: whatever the class says of arguments that do not go together.
    """
    return _create(name, **_changed(name, wanted))


def shapes(name: str, wanted: Settings) -> Shapes:
    """The shapes of the state dict of such a model; no memory is taken for it."""
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build(name, wanted).state_dict().items()}


def save(module: torch.nn.Module, name: str, wanted: Settings, folder: Path) -> None:
    """Write a folder that `timm.create_model("local-dir:...")` reads, and read it back to see that it does.

    Raises:
        NativeError: what comes back is not what was written.
    """
    import timm

    arguments = _changed(name, wanted)
    timm.models.save_for_hf(module, str(folder), model_args=arguments, safe_serialization=True)
    state, again = module.state_dict(), timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    if state.keys() != again.keys() or not all(torch.equal(tensor, again[key]) for key, tensor in state.items()):
        raise NativeError(f"{name}: timm.create_model does not read what save_for_hf wrote")
