"""Saved models are read: whole ones, and those in parts with the original's code between them."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from sortify.capture.prepare import unwrap
from sortify.errors import CheckpointError
from sortify.models import checkpoint, composed_checkpoint
from sortify.models.composed import ComposedModel
from sortify.models.places import carry
from sortify.models.scores import read_scores
from sortify.models.sorted_model import SortedModel, made_of


def load(
    path: str | Path,
    module: nn.Module | None = None,
    *,
    device: str | torch.device | None = None,
    verify: bool = False,
    runnable: bool = True,
) -> SortedModel:
    """Read a model that `SortedModel.save` wrote. Runs no code from the folder and traces nothing.

    Weights are mapped into memory: they take none until they are used.

    Args:
        path: the folder.
        module: the original module, for a model in parts: its code runs between them. Its weights are not used.
        device: where the weights are to be, such as `"cuda"`; `"meta"` reads none. Else on the CPU, or with `module`.
        verify: compare the checksums of all files; else those of files above 64 MiB are not read for that, and only
            size and header are checked.
        runnable: False reads a model in parts without the original, to look at.

    Raises:
        CheckpointError: the folder is missing, damaged, or of a newer version, or the original is missing or another.
    """
    in_parts = composed_checkpoint.is_in_parts(path)
    model = _parts(path, module, verify, runnable) if in_parts else made_of(checkpoint.read(path, verify=verify))
    model.record_scores(read_scores(path))
    return model if device is None else model.to(device)


def _parts(path: str | Path, module: nn.Module | None, verify: bool, runnable: bool) -> SortedModel:
    if module is None and runnable:
        raise CheckpointError(
            f"{path}: this model was converted in parts, and the original's code runs between them: "
            f"give the original, load(path, module=original)"
        )
    found = composed_checkpoint.read(path, verify=verify)
    whole = None if module is None else _filled(path, module, found)
    model = ComposedModel(
        whole, found.parts, found.left, found.signature, found.examples, found.rest_parameters, found.source
    )
    if found.trained is not None:
        model.record_trained(found.trained)
    if found.profile is not None:
        model.record_profile(found.profile)
    model.take_statistics(found.statistics)
    model.activate()
    return model.eval()


def _filled(path: str | Path, module: nn.Module, found: composed_checkpoint.Contents) -> nn.Module:
    """A copy of the original with the saved parts and tensors in place."""
    module, _ = unwrap(module)
    try:
        places = {}
        for part in found.parts:
            old = module.get_submodule(part.path)
            theirs = {name: tuple(t.shape) for name, t in old.state_dict().items()}
            ours = {name: tuple(t.shape) for name, t in part.model.state_dict().items()}
            if ours != theirs:
                raise CheckpointError(f"{path}: {part.path} of the given module has other tensors than the saved one")
            places[id(old)] = carry(old, part.model)
        whole = copy.deepcopy(module, {**places})
        own = dict([*whole.named_parameters(), *whole.named_buffers()])
        with torch.no_grad():
            for name, tensor in found.rest.items():
                own[name].copy_(tensor)
    except (AttributeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the given module is not the one that was converted ({error})") from error
    return whole
