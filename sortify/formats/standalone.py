"""What a written `model.py` is made of beside its graph: these functions are copied into it as they stand here.

They use torch and safetensors alone, and not each other's private names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn


class Group(nn.Module):
    """Tensors and further groups by their names: `group.fc`, `group[0]`, `group["any name"]`."""

    def __getitem__(self, name: int | str) -> Any:
        tables = (self._parameters, self._buffers, self._modules)
        return next(table[str(name)] for table in tables if str(name) in table)


def put(group: nn.Module, name: str, tensor: torch.Tensor, saved: bool) -> None:
    """Hold a tensor under a dotted name."""
    *path, key = name.split(".")
    for part in path:
        if part not in group._modules:
            group._modules[part] = Group()
        group = group._modules[part]  # type: ignore[assignment]
    if isinstance(tensor, nn.Parameter):
        group._parameters[key] = tensor
    else:
        group._buffers[key] = tensor
        if not saved:
            group._non_persistent_buffers_set.add(key)


def make(model: nn.Module, tensors: Mapping[str, Any], tied: Mapping[str, str]) -> None:
    """Give a model empty tensors; tied ones are one tensor under several names."""
    made: dict[str, torch.Tensor] = {}
    for name, (kind, dtype, sizes) in tensors.items():
        tensor = torch.empty(sizes, dtype=dtype)
        is_parameter = kind in ("parameter", "frozen parameter")
        made[name] = nn.Parameter(tensor, kind == "parameter") if is_parameter else tensor
        put(model, name, made[name], kind != "constant")
    for name, first in tied.items():
        put(model, name, made[first], tensors[first][0] != "constant")


def fill(model: nn.Module, folder: Path, tied: Mapping[str, str]) -> None:
    """Read the tensors of a model: its weights, and constants that are no part of its state dict."""
    weights = load_file(folder / "model.safetensors")
    state = {name: weights.get(tied.get(name, name)) for name in model.state_dict()}
    model.load_state_dict({name: tensor for name, tensor in state.items() if tensor is not None})
    file = folder / "constants.safetensors"
    constants = load_file(file) if file.exists() else {}
    for name, first in {**{name: name for name in constants}, **tied}.items():
        if first in constants:
            put(model, name, constants[first], saved=False)


def expect(name: str, tensor: Any, *sizes: int | None) -> None:
    """Refuse a tensor of sizes that the graph was not made for; None stands for any size."""
    found = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else None
    fits = found is not None and len(found) == len(sizes)
    if found is None or not fits or any(b not in (None, a) for a, b in zip(found, sizes, strict=True)):
        raise ValueError(f"{name}: expected a tensor of sizes {sizes}, where None is any, got {found or type(tensor)}")


def fixed(name: str, value: Any, *allowed: Any) -> None:
    """Refuse a value that the graph was not made for."""
    if not any(type(value) is type(each) and value == each for each in allowed):
        raise ValueError(f"{name}: expected {' or '.join(map(repr, allowed))}, got {value!r}")
