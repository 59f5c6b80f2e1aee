"""Checkpoints: a folder with weights as safetensors, everything else as JSON. No pickle, no re-tracing.

    sortify.json         format version, plan, costs, signature, names, trained levels
    graph.json           the captured train and eval graphs
    model.safetensors    every tensor under its original name
    example.safetensors  the example inputs
    statistics.safetensors  recalibrated batch-norm statistics, if any

A folder is written beside its place and moved when complete; files of others in it stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sortify.blueprint import Blueprint
from sortify.capture import TensorInfo
from sortify.cost import CostModel
from sortify.dims import full
from sortify.errors import CheckpointError, SortifyError
from sortify.files import replacing
from sortify.graphs import graph_from_json, graph_to_json
from sortify.lifting import Program
from sortify.plan import Plan
from sortify.signature import Signature
from sortify.space import Subnet, Trained
from sortify.structure import Structure

VERSION = 1
MAIN, GRAPH, WEIGHTS, EXAMPLE, STATISTICS = (
    "sortify.json",
    "graph.json",
    "model.safetensors",
    "example.safetensors",
    "statistics.safetensors",
)


@dataclass(frozen=True, eq=False)
class Contents:
    """What a checkpoint holds."""

    blueprint: Blueprint
    tensors: Mapping[str, torch.Tensor]
    examples: tuple[torch.Tensor, ...]
    statistics: Mapping[Subnet, dict[str, torch.Tensor]]


def save(
    path: str | Path,
    blueprint: Blueprint,
    tensors: Mapping[str, torch.Tensor],
    examples: Sequence[torch.Tensor],
    statistics: Mapping[Subnet, Mapping[str, torch.Tensor]],
) -> None:
    """Write a checkpoint folder.

    Raises:
        CheckpointError: the folder cannot be written (disk full, no permission); what was there is untouched.
    """
    path = Path(path)
    members = list(statistics)
    main = {
        "format": "sortify",
        "version": VERSION,
        "source": blueprint.source,
        "plan": blueprint.plan.to_json(),
        "costs": blueprint.costs.to_json(),
        "signature": blueprint.signature.to_json(),
        "trained": blueprint.trained.to_json() if blueprint.trained else None,
        "tensors": {name: [info.kind, info.requires_grad] for name, info in blueprint.infos.items()},
        "aliases": dict(blueprint.aliases),
        "statistics": [member.to_json() for member in members],
    }
    programs = {
        mode: {"graph": graph_to_json(p.graph), "tensors": list(p.tensors), "outputs": p.outputs.to_json()}
        for mode, p in blueprint.programs.items()
    }
    measured = {f"{i}.{name}": t for i, member in enumerate(members) for name, t in statistics[member].items()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        with _all_or_nothing(path) as place:
            save_file(_plain(tensors), place(WEIGHTS))
            save_file({str(i): t.detach().contiguous().cpu() for i, t in enumerate(examples)}, place(EXAMPLE))
            save_file(_plain(measured), place(STATISTICS))
            place(GRAPH).write_text(json.dumps(programs))
            main["sha256"] = {name: _digest(place(name)) for name in (WEIGHTS, EXAMPLE, STATISTICS, GRAPH)}
            place(MAIN).write_text(json.dumps(main, indent=1))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); what was there before is untouched") from error


class _all_or_nothing:
    """Files are written into one draft folder beside the checkpoint and moved into it when all are complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._manager = replacing(path / ".complete")

    def __enter__(self) -> Any:
        self._draft = self._manager.__enter__()
        self._draft.mkdir()
        return lambda name: self._draft / name

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            for file in sorted(self._draft.iterdir(), key=lambda file: file.name == MAIN):
                file.replace(self._path / file.name)
            self._draft.rmdir()
            self._draft.touch()
        self._manager.__exit__(*error)
        (self._path / ".complete").unlink(missing_ok=True)


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensors[name].detach().contiguous().cpu().clone() for name in tensors}


def read(path: str | Path) -> Contents:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: it is missing, damaged, inconsistent, or of a newer version.
    """
    path = Path(path)
    main = _json(path / MAIN)
    if main.get("format") != "sortify":
        raise CheckpointError(f"{path / MAIN}: this is no sortify checkpoint")
    if main.get("version") != VERSION:
        raise CheckpointError(
            f"{path / MAIN}: format version {main.get('version')!r}, this sortify reads {VERSION}: install a newer one"
        )
    _check_files(path, main)
    try:
        programs = {mode: _program(data) for mode, data in _json(path / GRAPH).items()}
        blueprint, members = _blueprint(main, programs)
    except SortifyError:
        raise
    except Exception as error:  # whatever a damaged file makes of these readers, the user gets one line
        raise CheckpointError(f"{path}: damaged checkpoint ({type(error).__name__}: {error})") from error
    tensors = _tensors(path / WEIGHTS)
    _check(path, blueprint, tensors)
    tensors = {name: tensors[name] for name in blueprint.infos}  # in the original order
    examples = _tensors(path / EXAMPLE)
    measured = _tensors(path / STATISTICS) if members else {}
    statistics = {
        member: {key.split(".", 1)[1]: t for key, t in measured.items() if key.split(".", 1)[0] == str(i)}
        for i, member in enumerate(members)
    }
    return Contents(blueprint, tensors, tuple(examples[key] for key in sorted(examples, key=int)), statistics)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_files(path: Path, main: Mapping[str, Any]) -> None:
    """Every file must be the one that was written with `sortify.json`."""
    expected = main.get("sha256")
    if not isinstance(expected, dict) or set(expected) != {WEIGHTS, EXAMPLE, STATISTICS, GRAPH}:
        raise CheckpointError(f"{path / MAIN}: damaged checkpoint (the list of checksums is missing)")
    for name, digest in expected.items():
        try:
            found = _digest(path / name)
        except OSError as error:
            raise CheckpointError(
                f"{path / name}: cannot be read ({error.strerror}); the checkpoint is incomplete"
            ) from error
        if found != digest:
            raise CheckpointError(
                f"{path / name}: its checksum is not the one in {MAIN}; the file is damaged or of another checkpoint"
            )


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file}: not found; make a checkpoint with `sortify convert SOURCE -o {file.parent}`"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(data).__name__}")
    return data


def _program(data: Mapping[str, Any]) -> Program:
    return Program(
        graph_from_json(data["graph"]), tuple(map(str, data["tensors"])), Structure.from_json(data["outputs"])
    )


def _blueprint(main: Mapping[str, Any], programs: Mapping[str, Program]) -> tuple[Blueprint, list[Subnet]]:
    if set(programs) != {"train", "eval"}:
        raise CheckpointError(f"{GRAPH}: expected the graphs 'train' and 'eval', found {sorted(programs)}")
    plan = Plan.from_json(main["plan"])
    blueprint = Blueprint(
        programs=programs,
        infos={name: TensorInfo(str(kind), bool(grad)) for name, (kind, grad) in main["tensors"].items()},
        aliases={str(k): str(v) for k, v in main["aliases"].items()},
        signature=Signature.from_json(main["signature"]),
        plan=plan,
        costs=CostModel.from_json(main["costs"], [axis.name for axis in plan.axes]),
        trained=Trained.from_json(main["trained"]) if main["trained"] else None,
        source=main["source"],
    )
    members = [Subnet.from_json(data) for data in main["statistics"]]
    blueprint.sorted_runners  # noqa: B018 - builds the graphs now, so that a damaged plan shows here
    return blueprint, members


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: not found; the checkpoint is incomplete") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); the file is damaged") from error


def _check(path: Path, blueprint: Blueprint, tensors: Mapping[str, torch.Tensor]) -> None:
    expected, found = set(blueprint.infos), set(tensors)
    if expected != found:
        name = sorted(expected ^ found)[0]
        state = "missing" if name in expected else "unexpected"
        raise CheckpointError(
            f"{path / WEIGHTS}: tensor {name!r} is {state}; the file belongs to another model or is damaged"
        )
    for name, dims in blueprint.plan.shapes.items():
        wanted = tuple(map(full, dims))
        if tuple(tensors[name].shape) != wanted:
            raise CheckpointError(f"{path / WEIGHTS}: {name} has shape {tuple(tensors[name].shape)}, expected {wanted}")
