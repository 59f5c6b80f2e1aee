"""Models of torchvision with other arguments of their constructors.

torchvision has no folder of its own: what is written is a file of Python that makes the class with its arguments, and
the weights beside it.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from sortify.errors import NativeError
from sortify.native.calls import defaults, expression, modules_of, noting, plain, restored
from sortify.native.settings import Settings
from sortify.native.solve import Shapes

CODE, WEIGHTS = "model.py", "model.safetensors"
CANDIDATES = 3
"""Names of a class that are built to find the one that a model is of, at most: the nearest in size."""


def named(kind: str, wanted: Shapes) -> str:
    """The name, among those that stand for a class, of the model that is most like one of these shapes.

    Raises:
        NativeError: no name stands for the class.
    """
    import torchvision

    models, size = torchvision.models, sum(map(math.prod, wanted.values()))

    def apart(name: str) -> float:
        sizes = [weights.meta["num_params"] for weights in models.get_model_weights(name)]
        return abs(sizes[0] - size) if sizes else math.inf

    names = [name for name in models.list_models() if _result(models.get_model_builder(name)) == kind]
    best: str | None = None
    most = -math.inf
    for name in sorted(names, key=apart)[:CANDIDATES]:
        found = {key: tuple(tensor.shape) for key, tensor in _made(name).state_dict().items()}
        alike = len(found.items() & wanted.items()) - len(found.keys() ^ wanted.keys())
        best, most = (name, alike) if alike > most else (best, most)
        if found == wanted:
            break
    if best is None:
        raise NativeError(f"torchvision {torchvision.__version__} has no name that stands for {kind}")
    return best


def _result(builder: Any) -> str:
    """The class that a builder says it returns."""
    found = inspect.signature(builder).return_annotation
    return str(getattr(found, "__name__", found))


def _made(name: str) -> nn.Module:
    """A model by its name, on the meta device where its builder allows that."""
    import torchvision

    builder = torchvision.models.get_model_builder(name)
    weights = dict.fromkeys(key for key in inspect.signature(builder).parameters if key.startswith("weights"))
    try:
        with torch.device("meta"):
            return builder(**weights)  # type: ignore[no-any-return]
    except NotImplementedError:  # it computes its sizes with tensors
        return builder(**weights)  # type: ignore[no-any-return]


@cache
def _call(name: str) -> tuple[type[nn.Module], Mapping[str, Any]]:
    """The class that a name of torchvision stands for, and the arguments that it is made with."""
    kind = type(_made(name))
    with noting(kind) as calls:
        _made(name)
    given = {**defaults(kind), **calls[-1]}
    unknown = [argument for argument, value in given.items() if expression(value) is None]
    if unknown:
        raise NativeError(f"{kind.__name__} is made with what cannot be written down: {', '.join(unknown)}")
    return kind, MappingProxyType(given)


def settings(name: str) -> Settings:
    """The arguments of the constructor that a name stands for.

    Raises:
        NativeError: some of them cannot be written down, such as a module.
    """
    return {key: plain(value) for key, value in _call(name)[1].items()}


def _arguments(name: str, wanted: Settings) -> dict[str, Any]:
    return {key: restored(value, wanted[key]) for key, value in _call(name)[1].items()}


def build(name: str, wanted: Settings) -> nn.Module:
    """A model in evaluation mode, with weights as the class makes them.

    Args:
        name: of torchvision.
        wanted: arguments of the constructor.

    Raises:
        Exception: whatever the class says of arguments that do not go together.
    """
    return _call(name)[0](**_arguments(name, wanted)).eval()


def shapes(name: str, wanted: Settings) -> Shapes:
    """The shapes of the state dict of such a model; no memory is taken for it."""
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build(name, wanted).state_dict().items()}


def save(module: nn.Module, name: str, wanted: Settings, folder: Path) -> None:
    """Write a file of Python and the weights, and run it to see that it makes the model.

    Raises:
        NativeError: what comes back is not what was written.
    """
    folder.mkdir()
    kind, arguments = _call(name)[0], _arguments(name, wanted)
    default = defaults(kind)
    own = {key: value for key, value in arguments.items() if key not in default or default[key] != value}
    (folder / CODE).write_text(_code(name, kind, own), "utf-8")
    state = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    again = load(folder).state_dict()
    if state.keys() != again.keys() or not all(torch.equal(tensor, again[key]) for key, tensor in state.items()):
        raise NativeError(f"{name}: {CODE} does not make what was written")


def _code(name: str, kind: type[nn.Module], arguments: Mapping[str, Any]) -> str:
    places = sorted({kind.__module__}.union(*map(modules_of, arguments.values())))
    given = "\n".join(f"        {key}={expression(value)}," for key, value in arguments.items())
    return TEMPLATE.format(
        name=name, imports="\n".join(f"import {place}" for place in places), kind=expression(kind), given=given
    )


TEMPLATE = '''"""A smaller {name} of torchvision: `from model import load; model = load()`."""

from pathlib import Path

{imports}
from safetensors.torch import load_file


def build():
    """The model with fresh weights."""
    return {kind}(
{given}
    )


def load():
    """The model with the weights that lie beside this file, in evaluation mode."""
    model = build()
    model.load_state_dict(load_file(Path(__file__).with_name("model.safetensors")))
    return model.eval()
'''


def load(folder: Path) -> nn.Module:
    """Run the file of Python in a folder that `save` wrote."""
    spec = importlib.util.spec_from_file_location("model", folder / CODE)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    model: nn.Module = code.load()
    return model
