"""A folder of readable Python and weights, and what a process without sortify makes of it."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sortify.errors import SortifyError
from sortify.formats.calls import Call, tensors_of
from sortify.formats.programs import untied
from sortify.formats.python_source import named_tensors, plain, source_of
from sortify.formats.spelling import literal
from sortify.graph.structure import flatten
from sortify.network.extract import ExtractedModel


def write_python(model: ExtractedModel, examples: Sequence[Tensor], target: Path) -> None:
    """Write model.py and model.safetensors; constants that are no part of the state dict stand in a file of their own.

    Raises:
        SortifyError: the model cannot be said in Python with torch alone.
    """
    source = source_of(model)
    tensors, saved = untied(named_tensors(model)[0]), set(model.state_dict())
    weights = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    target.mkdir()
    (target / "model.py").write_text(source, "utf-8")
    save_file({name: tensor for name, tensor in weights.items() if name in saved}, target / "model.safetensors")
    constants = {name: tensor for name, tensor in weights.items() if name not in saved}
    if constants:
        save_file(constants, target / "constants.safetensors")


def outline(value: Any, leaves: list[Any]) -> Any:
    """A nested value with words in the place of its tensors, which go to `leaves`."""
    if type(value).__name__ == "Tensor":
        leaves.append(value.contiguous().clone())
        return "a tensor"
    if isinstance(value, dict):
        return {key: outline(part, leaves) for key, part in value.items()}
    return type(value)(outline(part, leaves) for part in value) if isinstance(value, (list, tuple)) else value


SCRIPT = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sortify", "sortify_cli"):
            raise ModuleNotFoundError(f"{name} is imported")

sys.meta_path.insert(0, Refused())
sys.path.insert(0, sys.argv[1])
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from model import load

torch.set_num_threads(int(sys.argv[3]))
"""


def run_python(model: ExtractedModel, target: Path, calls: Sequence[Call]) -> list[list[Tensor]]:
    """The outputs of a written folder in a process of its own, which cannot import sortify.

    Raises:
        SortifyError: it ends with an error, or outputs are put together otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        inputs = {f"{i}.{j}": t for i, call in enumerate(calls) for j, t in enumerate(call.tensors)}
        save_file({name: tensor.contiguous().clone() for name, tensor in inputs.items()}, place / "inputs")
        (place / "run.py").write_text(_script(calls), "utf-8")
        command = [
            sys.executable,
            "-IB",
            str(place / "run.py"),
            str(target.resolve()),
            folder,
            str(torch.get_num_threads()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SortifyError(f"model.py does not run: {done.stderr.strip().splitlines()[-1]}")
        found = load_file(place / "outputs")
        for number, (call, told) in enumerate(zip(calls, (place / "outlines").read_text().splitlines(), strict=True)):
            wanted = repr(outline(_plain(call.output), []))
            if told != wanted:
                raise SortifyError(f"model.py returns {told} at call {number}, expected {wanted}")
    return [[found[f"{i}.{j}"] for j in range(len(tensors_of(call.output)))] for i, call in enumerate(calls)]


def _plain(output: Any) -> Any:
    leaves, structure = flatten(output)
    return plain(structure).build(leaves)


def _script(calls: Sequence[Call]) -> str:
    """A script that runs the calls, and writes the outputs' tensors and how they are put together."""
    runs = []
    for number, call in enumerate(calls):
        tensors = iter(range(len(call.tensors)))
        text = _call_text((list(call.args), call.kwargs), number, tensors)
        runs.append(f"outlines.append(outline_of({number}, *{text}))")
    return "\n".join(
        [
            SCRIPT,
            inspect.getsource(outline).replace("value: Any, leaves: list[Any]) -> Any", "value, leaves)"),
            "given, outputs, outlines, model = load_file(sys.argv[2] + '/inputs'), {}, [], load()",
            "def outline_of(number, args, kwargs):",
            "    leaves = []",
            "    with torch.no_grad():",
            "        told = outline(model(*args, **kwargs), leaves)",
            "    outputs.update({f'{number}.{i}': leaf for i, leaf in enumerate(leaves)})",
            "    return repr(told)",
            *runs,
            "save_file(outputs, sys.argv[2] + '/outputs')",
            "Path(sys.argv[2], 'outlines').write_text('\\n'.join(outlines))",
        ]
    )


def _call_text(value: Any, number: int, tensors: Any) -> str:
    """Nested arguments as source, tensors by the names in the file of inputs."""
    if isinstance(value, Tensor):
        return f"given['{number}.{next(tensors)}']"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k, {})}: {_call_text(v, number, tensors)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_call_text(part, number, tensors) for part in value) + "]"
    return literal(value, {})
