"""One copy of the weights for two models, where the weights of one are the beginning of the other's."""

from __future__ import annotations

import torch
from torch import nn


def share_weights(small: nn.Module, full: nn.Module) -> int:
    """Let a smaller model use the weights of a larger one, in place: both then hold one copy.

    A sub-network keeps the first units of every axis, so its weights are the first rows and columns of those that have
    the same name. Where they are equal, number by number, `small` gets a view of those of `full`, or the parameter
    itself where nothing is cut; elsewhere it keeps its own. Whatever then changes the one changes the other; moving one
    of them to another device or type parts them again. Save `small` before: `save_pretrained` writes no such views.

    Args:
        small: for example `to_native(model, subnet).module`.
        full: for example `to_native(model, model.space.full).module`.

    Returns:
        bytes that are no longer held twice.
    """
    known, views = dict(full.named_parameters(remove_duplicate=False)), dict[nn.Parameter, nn.Parameter]()
    for path, module in small.named_modules():
        for name, own in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            view = views.get(own)
            if view is None:
                view = _beginning(known.get(f"{path}.{name}" if path else name), own)
            if view is not None:
                setattr(module, name, view)
                views[own] = view
    return sum(own.nbytes for own, view in views.items() if own is not view)


def _beginning(whole: nn.Parameter | None, own: nn.Parameter) -> nn.Parameter | None:
    """The first units of a parameter, without a copy, if they are these numbers."""
    if whole is None or whole.dim() != own.dim() or (whole.dtype, whole.device) != (own.dtype, own.device):
        return None
    view = whole.detach()[tuple(slice(size) for size in own.shape)]
    if not torch.equal(view, own):
        return None
    return whole if whole.shape == own.shape else nn.Parameter(view, own.requires_grad)
