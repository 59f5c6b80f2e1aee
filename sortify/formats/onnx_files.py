"""ONNX: written by torch's own exporter, run by onnxruntime."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sortify.costs.open_sizes import natural_name
from sortify.errors import SortifyError, first_line
from sortify.formats.calls import Call
from sortify.formats.programs import export
from sortify.graph.structure import flatten
from sortify.network.extract import ExtractedModel

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LARGEST = 2**31 - 2**20
"""Bytes of weights that one ONNX file can hold, with room for the graph."""


def write_onnx(model: ExtractedModel, examples: Sequence[Tensor], target: Path) -> None:
    """Write the eval graph as ONNX: inputs and outputs under the model's own names, open sizes as dynamic axes.

    Raises:
        SortifyError: a package is missing, or the exporter has no ONNX for an operation, or the weights are too large.
    """
    _check_packages()
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > LARGEST:
        raise SortifyError(f"onnx: {size:,} bytes of weights; one file holds up to 2 GB: take another format")
    program = export(model, examples)
    names = _distinct([*_plain(model.signature.tensor_names), *_output_names(model, examples)])
    given, made = names[: len(examples)], names[len(examples) :]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Any = torch.onnx.export(
                program, input_names=given, output_names=made, dynamo=True, verbose=False, optimize=True
            )
    except Exception as error:
        raise SortifyError(f"onnx: torch's exporter cannot write the model: {first_line(_cause(error))}") from error
    _name_sizes(found.model, _sizes(model, program, examples))
    found.save(str(target), external_data=False)


def _cause(error: BaseException) -> BaseException:
    """What an error began with: the exporter's own tells how to report it."""
    return error if error.__cause__ is None else _cause(error.__cause__)


def run_onnx(model: ExtractedModel, target: Path, calls: Sequence[Call]) -> list[list[Tensor]]:
    """The outputs of a written ONNX file, in onnxruntime on the processor."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
    known = {each.name for each in session.get_inputs()}
    names = _distinct(_plain(model.signature.tensor_names))
    found = []
    for call in calls:
        feed = {name: t.detach().cpu().numpy() for name, t in zip(names, call.tensors, strict=True) if name in known}
        found.append([torch.from_numpy(array) for array in session.run(None, feed)])
    return found


def _check_packages() -> None:
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise SortifyError(
                f"onnx: the package {name} is missing: pip install 'sortify[onnx]' brings {', '.join(PACKAGES)}"
            ) from error


def _output_names(model: ExtractedModel, examples: Sequence[Tensor]) -> list[str]:
    args, kwargs = model.signature.call(list(examples))
    with torch.no_grad():
        leaves, structure = flatten(model(*args, **kwargs))
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise SortifyError("onnx: an output is no tensor, which an ONNX file cannot hold: take another format")
    return structure.names()


def _plain(names: Sequence[str]) -> list[str]:
    """Names with dots alone: `batch.mask` of `batch['mask']`."""
    return [re.sub(r"[\[\]'\"]+", ".", name).strip(".").replace("..", ".") for name in names]


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of which none stands twice: an ONNX graph has one value of a name."""
    found = dict[str, None]()
    for name in names:
        number, own = 1, name
        while own in found:
            number += 1
            own = f"{name}_{number}"
        found[own] = None
    return list(found)


def _sizes(model: ExtractedModel, program: torch.export.ExportedProgram, examples: Sequence[Tensor]) -> dict[str, str]:
    """The exporter's name of every open size of the inputs, and what people call it."""
    inputs = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in inputs]
    values = [node.meta["val"] for node in nodes if isinstance(node.meta.get("val"), Tensor)]
    found = dict[str, str]()
    for label, tensor, value in zip(model.signature.tensor_names, examples, values, strict=True):
        for dim, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt) and str(size).isidentifier():
                found.setdefault(str(size), natural_name(label, tensor, dim))
    return dict(zip(found, _distinct(list(found.values())), strict=True))


def _name_sizes(model: Any, names: Mapping[str, str]) -> None:
    """Give the sizes of a graph of onnxscript other names."""
    for value in _values(model.graph):
        if value.shape is not None:
            for dim, size in enumerate(value.shape):
                if not isinstance(size, int) and size.value is not None:
                    value.shape[dim] = re.sub(r"[A-Za-z_]\w*", lambda hit: names.get(hit[0], hit[0]), str(size.value))


def _values(graph: Any) -> Iterator[Any]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs
