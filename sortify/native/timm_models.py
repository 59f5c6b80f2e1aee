"""Models of timm with other arguments of their constructors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sortify.errors import NativeError
from sortify.native.settings import Settings
from sortify.native.solve import Shapes


def settings(name: str) -> Settings:
    """The arguments of the constructor that an architecture stands for, those that are plain values."""
    return _arguments(name)


@cache
def _arguments(name: str) -> Mapping[str, Any]:
    with torch.device("meta"):
        kind = type(_create(name))
        with _noting(kind) as calls:
            _create(name)
    given: dict[str, Any] = {}
    for each in reversed(kind.__mro__):  # arguments that a class hands on have their defaults where they are named
        if "__init__" in vars(each):
            known = inspect.signature(each).parameters.values()
            given |= {p.name: p.default for p in known if p.default is not p.empty}
    given |= calls[-1]
    return MappingProxyType({key: _plain(value) for key, value in given.items() if _is_plain(value)})


@contextmanager
def _noting(kind: type[torch.nn.Module]) -> Iterator[list[dict[str, Any]]]:
    """The arguments with which a class is called meanwhile, by name."""
    calls, real = list[dict[str, Any]](), kind.__init__
    signature = inspect.signature(real)
    rest = {p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD}

    def init(self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs).arguments
        calls.append({key: value for key, value in bound.items() if key not in rest})
        for name in rest & bound.keys():
            calls[-1].update(bound[name])
        real(self, *args, **kwargs)

    kind.__init__ = init  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        kind.__init__ = real  # type: ignore[method-assign]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


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
