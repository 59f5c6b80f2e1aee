"""torch's own files: a program (.pt2), and weights (.safetensors)."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sortify.capture.prepare import mode_of, quiet_tracing
from sortify.errors import SortifyError, first_line
from sortify.formats.calls import Call, tensors_of
from sortify.network.extract import ExtractedModel


def export(model: ExtractedModel, examples: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """The eval graph as an exported program; dynamic dimensions stay dynamic, outputs keep their structure.

    Raises:
        SortifyError: torch.export cannot follow the model.
    """
    args, kwargs = model.signature.call(list(examples))
    specs = iter(model.signature.specs)

    def dynamic(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        return {i: torch.export.Dim.AUTO for i, size in enumerate(next(specs).shape) if size is None}

    shapes = torch.utils._pytree.tree_map(dynamic, (args, kwargs))
    spec = {name: shape for name, shape in (("args", tuple(shapes[0])), ("kwargs", shapes[1])) if shape}
    try:
        with mode_of(model, training=False), quiet_tracing():
            program = torch.export.export(model, tuple(args), kwargs, dynamic_shapes=spec, strict=False)
    except Exception as error:
        raise SortifyError(
            f"torch.export cannot follow the extracted model ({first_line(error)}); take the format safetensors"
        ) from error
    program._guards_code = []  # they call inputs by a forward's parameters; with *args, **kwargs they raise NameError
    return program


def write_program(model: ExtractedModel, examples: Sequence[Tensor], target: Path) -> None:
    """Write the eval graph as torch.export.load reads it."""
    archive = io.BytesIO()  # torch's own writer ends the process when the disk is full
    torch.export.save(export(model, examples), archive)
    target.write_bytes(archive.getbuffer())


def run_program(model: ExtractedModel, target: Path, calls: Sequence[Call]) -> list[list[Tensor]]:
    """The outputs of a written program."""
    program: Any = torch.export.load(str(target)).module()
    with torch.no_grad():
        return [tensors_of(program(*call.args, **call.kwargs)) for call in calls]


def write_weights(model: ExtractedModel, examples: Sequence[Tensor], target: Path) -> None:
    """Write the state dict under the original names."""
    save_file({name: tensor.contiguous() for name, tensor in untied(model.state_dict()).items()}, target)


def run_weights(model: ExtractedModel, target: Path, calls: Sequence[Call]) -> list[list[Tensor]]:
    """The outputs of the model with written weights."""
    again = copy.deepcopy(model).eval()
    again.load_state_dict(load_file(target))
    with torch.no_grad():
        return [tensors_of(again(*call.args, **call.kwargs)) for call in calls]


def untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under several names get one copy each: safetensors files share no memory."""
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return result
