"""The file formats, as a table, and the one way in which all of them are written: into place when they are proven."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from safetensors import SafetensorError
from torch import Tensor

from sortify.capture.prepare import mode_of
from sortify.difference import difference
from sortify.errors import ProofError, SortifyError, first_line
from sortify.files import is_taken, replacing
from sortify.formats import onnx_files, programs, python_folder
from sortify.formats.calls import Call, calls_of
from sortify.network.extract import ExtractedModel

TOLERANCE = 1e-5
"""Largest difference of outputs, relative to their scale, in float32."""
COARSE = 1e-2
"""The same in float16 and bfloat16."""


@dataclass(frozen=True)
class Format:
    """A way to write an extracted model.

    Attributes:
        suffix: what the file's name ends in; empty for a folder.
        write: of a model and its example inputs, to a path.
        run: the outputs of what was written, for some calls; nothing of the model but its signature may help.
        use: how to use it, for people.
    """

    suffix: str
    write: Callable[[ExtractedModel, Sequence[Tensor], Path], None]
    run: Callable[[ExtractedModel, Path, Sequence[Call]], Sequence[Sequence[Tensor]]]
    use: str


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "pt2": Format(".pt2", programs.write_program, programs.run_program, "use it: torch.export.load(path).module()"),
        "safetensors": Format(".safetensors", programs.write_weights, programs.run_weights, "weights"),
        "onnx": Format(
            ".onnx", onnx_files.write_onnx, onnx_files.run_onnx, "use it: onnxruntime.InferenceSession(path)"
        ),
        "python": Format(
            "", python_folder.write_python, python_folder.run_python, "use it: from model import load, in the folder"
        ),
    }
)
"""Formats by name."""


def write(model: ExtractedModel, examples: Sequence[Tensor], target: str | Path, form: str) -> float:
    """Write an extracted model to files that need no sortify, and check them before they are put in their place.

    What was written is run at the sizes of the example inputs and at others, and compared with the model.

    Args:
        model: the extracted model.
        examples: its tensor inputs, for tracing and for the check.
        target: the file or folder; it appears when it is complete and checked. A folder has to be new or empty.
        form: 'pt2' (a program: `torch.export.load(file).module()`), 'safetensors' (the state dict), 'onnx', or 'python'
            (a folder of source and weights).

    Returns:
        the largest difference of outputs, relative to the largest output.

    Raises:
        SortifyError: unknown form, there is something already, the model cannot be expressed, or the disk refuses.
        ProofError: what was written computes something else.
    """
    if form not in FORMATS:
        raise SortifyError(f"format {form!r}: expected one of {', '.join(FORMATS)}")
    made, target = FORMATS[form], Path(target)
    if not made.suffix and is_taken(target):
        raise SortifyError(f"{target}: there is something already; name a folder that is new or empty")
    calls = calls_of(model, examples)
    try:
        with mode_of(model, training=False), replacing(target) as draft:
            made.write(model, examples, draft)
            error = _checked(model, draft, form, calls, target)
    except (OSError, SafetensorError, RuntimeError) as problem:
        raise SortifyError(f"{target}: cannot be written ({problem}); earlier files are untouched") from problem
    return error


def _checked(model: ExtractedModel, draft: Path, form: str, calls: Sequence[Call], target: Path) -> float:
    """How far what was written is from the model; ProofError where that is too far, or it does not run."""
    try:
        outputs = FORMATS[form].run(model, draft, calls)
    except SortifyError as error:
        raise ProofError(f"{target}: not written: {error}") from error
    except Exception as error:
        raise ProofError(f"{target}: not written: as {form} it does not run: {first_line(error)}") from error
    allowed, worst = tolerance(model), 0.0
    for call, found in zip(calls, outputs, strict=True):
        gap = difference([tensor.cpu() for tensor in call.leaves], [tensor.cpu() for tensor in found])
        if not gap <= allowed:
            raise ProofError(
                f"{target}: not written: as {form} its outputs differ from the sub-network's by {gap:.1e} at inputs "
                f"of sizes {call}; at most {allowed:.0e} is allowed"
            )
        worst = max(worst, gap)
    return worst


def tolerance(model: ExtractedModel) -> float:
    """The largest difference that rounding explains."""
    tensors = [tensor for tensor in model.tensors.values() if tensor.is_floating_point()]
    return COARSE if any(tensor.element_size() < 4 for tensor in tensors) else TOLERANCE
