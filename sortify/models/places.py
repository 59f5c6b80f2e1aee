"""Modules in the places of others: what they hold, and what the code around may ask them for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sortify.models.sorted_model import SortedModel
from sortify.network.network import hold

CARRIED = "_carried"


def stand_for(module: nn.Module, whole: nn.Module | None) -> None:
    """Let `module` hold what `whole` holds, by the same names, so that `whole` runs on it."""
    vars(module)["_whole"] = whole
    if whole is not None:
        hold(module, whole)


def outside(module: nn.Module, paths: Sequence[str]) -> dict[str, torch.Tensor]:
    """Parameters and buffers that no part holds."""
    inside = tuple(f"{path}." for path in paths)
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor for name, tensor in named if not name.startswith(inside)}


def carry(old: nn.Module, new: Any) -> Any:
    """Give a replacement the attributes and methods that the code around may ask the old module for.

    Methods are those of a copy without weights: one that computes with them fails, it is never silently wrong.
    """
    if isinstance(old, SortedModel):
        found = {name: vars(old)[name] for name in vars(old).get(CARRIED, ())}
    else:
        tensors = [*old.parameters(), *old.buffers()]
        bare = copy.deepcopy(old, {id(t): t.detach().to("meta") for t in tensors})
        names = [name for name in dir(bare) if not name.startswith("_") and not hasattr(type(new), name)]
        found = {name: getattr(bare, name, None) for name in names}
    fresh = {
        name: value
        for name, value in found.items()
        if name not in vars(new) and name not in new._modules and not isinstance(value, torch.Tensor)
    }
    vars(new).update({**fresh, CARRIED: (*vars(new).get(CARRIED, ()), *fresh)})
    return new
