"""Checkpoints: a folder with weights as safetensors, everything else as JSON. No pickle, no re-tracing.

    sortify.json         format version, plan, costs, signature, names, trained levels, the list of files
    graph.json           the captured train and eval graphs
    model.safetensors    every tensor under its original name; several files and an index where it would be too large
    example.safetensors  the example inputs
    statistics.safetensors  recalibrated batch-norm statistics, if any

All files take their places in one step; files of others in the folder stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sortify.capture.capture import TensorInfo
from sortify.capture.lifting import DEVICE, DTYPE, Program
from sortify.costs.cost import CostModel
from sortify.errors import AxesError, CheckpointError, InputError
from sortify.files import newest, replacing_files
from sortify.graph.dims import active, axes_of, full
from sortify.graph.graphs import graph_from_json, graph_to_json
from sortify.graph.signature import Signature
from sortify.graph.structure import Structure
from sortify.models.manifest import MAIN, VERSION, check, describe, files_of, read_json, read_main, written
from sortify.models.tensor_files import LARGEST, read_tensors, weight_files, write_all, write_tensors
from sortify.network.blueprint import Blueprint
from sortify.network.network import running_statistics
from sortify.plan import Plan
from sortify.sources.origin import Origin
from sortify.space.profile import Profile
from sortify.space.space import Subnet, Trained

OWN, FROZEN = "own", "frozen"
KINDS = ("parameter", "buffer", "temporary", "constant")
GRAPH, MODEL = "graph.json", "model"
EXAMPLE, STATISTICS = "example.safetensors", "statistics.safetensors"


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
    largest: int | str = LARGEST,
) -> None:
    """Write a checkpoint folder.

    Args:
        path: the folder.
        blueprint, tensors, examples, statistics: what it is to hold.
        largest: bytes that a file of weights may hold, see `write_tensors`.

    Raises:
        CheckpointError: the folder cannot be written (disk full, no permission); it then holds what it held before.
    """
    path = Path(path)
    try:
        with replacing_files(path, written(path)) as draft:
            write(draft, blueprint, tensors, examples, statistics, largest)
    except (OSError, SafetensorError) as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: Exception) -> CheckpointError:
    """What to raise where the disk refuses."""
    return CheckpointError(f"{path}: cannot be written ({error}); the folder holds what was saved there last")


def write(
    folder: Path,
    blueprint: Blueprint,
    tensors: Mapping[str, torch.Tensor],
    examples: Sequence[torch.Tensor],
    statistics: Mapping[Subnet, Mapping[str, torch.Tensor]],
    largest: int | str,
) -> None:
    """Write the files of a checkpoint, `sortify.json` last; see `save`."""
    members = list(statistics)
    programs = {
        mode: {"graph": graph_to_json(p.graph), "tensors": list(p.tensors), "outputs": p.outputs.to_json()}
        for mode, p in blueprint.with_frozen_norms(False).programs.items()
    }
    (folder / GRAPH).write_text(json.dumps(programs))
    files = [
        GRAPH,
        *write_tensors(folder, MODEL, tensors, largest),
        *write_all(folder, EXAMPLE, {str(i): tensor for i, tensor in enumerate(examples)}),
        *write_all(folder, STATISTICS, named_statistics(members, statistics)),
    ]
    main = {
        "format": "sortify",
        "version": VERSION,
        "source": blueprint.source,
        "origin": blueprint.origin.to_json() if blueprint.origin else None,
        "plan": blueprint.plan.to_json(),
        "costs": blueprint.costs.to_json(),
        "signature": blueprint.signature.to_json(),
        "trained": blueprint.trained.to_json() if blueprint.trained else None,
        "profile": blueprint.profile.to_json() if blueprint.profile else None,
        "ordered": {"units": blueprint.ordered, "blocks": blueprint.blocks_ranked},
        "norms": FROZEN if blueprint.norms_frozen else OWN,
        "tensors": {
            name: [info.kind, info.requires_grad, list(tensors[name].shape), _dtype(tensors[name])]
            for name, info in blueprint.infos.items()
        },
        "aliases": dict(blueprint.aliases),
        "statistics": [member.to_json() for member in members],
        "files": describe(folder, files),
    }
    (folder / MAIN).write_text(json.dumps(main, indent=1))


def save_statistics(
    path: str | Path, tensors: Mapping[str, torch.Tensor], statistics: Mapping[Subnet, Mapping[str, torch.Tensor]]
) -> None:
    """Put statistics in the place of those in a checkpoint folder; all else stays.

    Args:
        path: the folder.
        tensors: of the model that they were measured with: the folder must hold these.
        statistics: by sub-network.

    Raises:
        CheckpointError: the folder cannot be read or written, or holds other tensors.
    """
    path, members = Path(path), list(statistics)
    main = read_main(path)
    there = _weights(path, "", files_of(path / MAIN, main))
    same = there.keys() == set(tensors) and all(torch.equal(there[n], tensors[n].detach().cpu()) for n in there)
    if not same or main["version"] != VERSION:
        raise CheckpointError(f"{path}: holds other weights than those that were measured: save the model")
    try:
        with replacing_files(path) as draft:
            write_all(draft, STATISTICS, named_statistics(members, statistics))
            main["statistics"] = [member.to_json() for member in members]
            main["files"] |= describe(draft, [STATISTICS])
            (draft / MAIN).write_text(json.dumps(main, indent=1))
    except (OSError, SafetensorError) as error:
        raise not_written(path, error) from error


def named_statistics(
    members: Sequence[Subnet], statistics: Mapping[Subnet, Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Measured statistics by the number of the sub-network and the original name."""
    return {f"{i}.{name}": tensor for i, member in enumerate(members) for name, tensor in statistics[member].items()}


def read(path: str | Path, inside: str = "", *, verify: bool = False) -> Contents:
    """Read a checkpoint folder. Weights are mapped into memory: those that are not used are not read.

    Args:
        path: the folder.
        inside: where in it the files are: `parts/0/` of a model in parts.
        verify: read every file whole to compare its checksum, see `manifest.check`.

    Raises:
        CheckpointError: it is missing, damaged, inconsistent, or of a newer version.
    """
    path = Path(path)
    main = read_main(path, inside)
    files = files_of(path / MAIN, main)
    weights = weight_files(MODEL, files)
    others = {GRAPH, EXAMPLE, STATISTICS}
    _require(
        bool(weights) and others <= set(files), path / MAIN, f"weights, {', '.join(sorted(others))} among its files"
    )
    check(path, inside, files, verify)
    try:
        return _contents(path, inside, main, _weights(path, inside, files))
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged file makes of these readers, the user gets one line
        text = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged checkpoint ({type(error).__name__}: {text})") from error


def _weights(path: Path, inside: str, files: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return read_tensors(newest(path, inside + name) for name in weight_files(MODEL, files))


def _contents(path: Path, inside: str, main: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Contents:
    graph, example, statistics = (newest(path, inside + name) for name in (GRAPH, EXAMPLE, STATISTICS))
    programs = {mode: _program(data) for mode, data in read_json(graph).items()}
    _require(set(programs) == {"train", "eval"}, graph, f"the graphs train and eval, found {sorted(programs)}")
    _check_weights(path / f"{MODEL}.safetensors", main["tensors"], tensors)
    tensors = {name: tensors[name] for name in main["tensors"]}  # in the original order
    norms = main.get("norms", OWN)
    _require(norms in (OWN, FROZEN), path / MAIN, f"norms that are {OWN} or {FROZEN}, found {norms!r}")
    blueprint = _blueprint(path / inside, main, programs).with_frozen_norms(norms == FROZEN)
    _check_plan(path / MAIN, blueprint, tensors)
    _check_programs(graph, blueprint)
    blueprint.sorted_runners["eval"]  # made now, so that a damaged plan shows here; that of train when it is used
    examples = _examples(example, blueprint.signature)
    return Contents(blueprint, tensors, examples, _statistics(statistics, main["statistics"], blueprint))


def _program(data: Mapping[str, Any]) -> Program:
    return Program(
        graph_from_json(data["graph"]), tuple(map(str, data["tensors"])), Structure.from_json(data["outputs"])
    )


def _blueprint(path: Path, main: Mapping[str, Any], programs: Mapping[str, Program]) -> Blueprint:
    plan = Plan.from_json(main["plan"])
    ordered = main.get("ordered") or {"units": None, "blocks": False}
    return Blueprint(
        programs=programs,
        infos={name: TensorInfo(kind, grad) for name, (kind, grad, _, _) in main["tensors"].items()},
        aliases={str(k): str(v) for k, v in main["aliases"].items()},
        signature=Signature.from_json(main["signature"]),
        plan=plan,
        costs=CostModel.from_json(main["costs"], [axis.name for axis in plan.axes]),
        trained=Trained.from_json(main["trained"]) if main["trained"] else None,
        source=main["source"],
        origin=Origin.from_json(main["origin"]) if main.get("origin") else None,
        profile=Profile.from_json(main["profile"]) if main.get("profile") else None,
        ordered=ordered["units"],
        blocks_ranked=bool(ordered["blocks"]),
        read_from=str(path),
    )


# -- what belongs together ----------------------------------------------------------------------------------------


def _require(condition: bool, file: Path, what: str) -> None:
    if not condition:
        raise CheckpointError(f"{file}: damaged checkpoint: expected {what}")


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_weights(file: Path, described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """The tensors are those that `sortify.json` describes, by name, kind, shape and dtype."""
    for name in sorted(set(described) ^ set(tensors)):
        state = "missing" if name in described else "unexpected"
        raise CheckpointError(f"{file}: tensor {name!r} is {state}; the file belongs to another model or is damaged")
    for name, (kind, grad, shape, dtype) in described.items():
        found = tensors[name]
        if list(found.shape) != shape or _dtype(found) != dtype:
            raise CheckpointError(
                f"{file}: {name} has shape {tuple(found.shape)} and dtype {_dtype(found)}, "
                f"expected {tuple(shape)} and {dtype}"
            )
        _require(kind in KINDS and type(grad) is bool, file, f"a known kind of tensor for {name}, found {kind!r}")
        _require(not grad or found.is_floating_point() or found.is_complex(), file, f"no gradients for {name}")


def _check_plan(file: Path, blueprint: Blueprint, tensors: Mapping[str, torch.Tensor]) -> None:
    """Axes, shapes and size arguments speak of the same sizes as the tensors; names are known and unique."""
    plan, aliases = blueprint.plan, blueprint.aliases
    sizes = {axis.name: axis.size for axis in plan.axes}
    _require(len(sizes) == len(plan.axes), file, "axes of different names")
    for name, dims in plan.shapes.items():
        wanted = tuple(map(full, dims))
        _require(name in tensors and tuple(tensors[name].shape) == wanted, file, f"{name} of shape {wanted}")
    literals = [x for items in plan.literals.values() for x in items]
    for dim in [*(dim for dims in plan.shapes.values() for dim in dims), *(x.dim for x in literals)]:
        _require(all(sizes.get(a.axis) == a.size for a in axes_of(dim)), file, f"the sizes of the axes in {dim}")
    _require(set(plan.literals) == set(blueprint.programs), file, "size arguments of the train and the eval graph")
    for mode, items in plan.literals.items():
        nodes = {node.name for node in blueprint.programs[mode].graph.nodes}
        _require({x.node for x in items} <= nodes, file, f"size arguments of nodes of the {mode} graph")
    _require(set(aliases.values()) <= set(tensors) and not set(aliases) & set(tensors), file, "names of tied tensors")
    _require(blueprint.source is None or isinstance(blueprint.source, str), file, "a source as text")
    try:
        blueprint.costs(blueprint.space.full.values)
    except (LookupError, InputError) as error:
        _require(False, file, f"costs of the axes and blocks of this model, but {error} is none")
    for row in blueprint.profile.rows if blueprint.profile else ():
        _require(row.subnet in blueprint.space, file, f"a profile of sub-networks of this model, found {row.subnet}")
    try:
        blueprint.space.knobs  # noqa: B018 - works out what was trained
    except AxesError as error:
        _require(False, file, f"trained levels of this model, but {error}")


def _check_programs(file: Path, blueprint: Blueprint) -> None:
    """Every graph takes a device, a dtype, its tensors and the inputs, and returns as many tensors as it should."""
    for mode, program in blueprint.programs.items():
        nodes = list(program.graph.nodes)
        holes = [node.target for node in nodes if node.op == "placeholder"]
        count = 2 + len(program.tensors) + len(blueprint.signature.specs)
        _require(holes[:2] == [DEVICE, DTYPE] and len(holes) == count, file, f"{count} inputs of the {mode} graph")
        _require(set(program.tensors) <= set(blueprint.infos), file, f"known tensors in the {mode} graph")
        _require(len(nodes[-1].args[0]) == program.outputs.size, file, f"{program.outputs.size} outputs ({mode})")


def _examples(file: Path, signature: Signature) -> tuple[torch.Tensor, ...]:
    found = read_tensors([file])
    wanted = [str(i) for i in range(len(signature.specs))]
    _require(sorted(found) == sorted(wanted), file, f"the tensors {', '.join(wanted)}, found {', '.join(found)}")
    for name, spec, key in zip(signature.tensor_names, signature.specs, wanted, strict=True):
        try:
            spec.check(name, found[key])
        except InputError as error:
            raise CheckpointError(f"{file}: {error}") from error
    return tuple(found[key] for key in wanted)


def _statistics(file: Path, listed: list[Any], blueprint: Blueprint) -> dict[Subnet, dict[str, torch.Tensor]]:
    """Measured statistics by sub-network, each tensor of the sub-network's own size."""
    found = read_tensors([file])
    names = running_statistics(blueprint.programs["eval"])
    result: dict[Subnet, dict[str, torch.Tensor]] = {}
    for number, data in enumerate(listed):
        member = Subnet.from_json(data)
        _require(member in blueprint.space, file, f"statistics of sub-networks of this model, found {member}")
        result[member] = {name: found.pop(f"{number}.{name}", torch.empty(0)) for name in names}
        for name, tensor in result[member].items():
            shape = tuple(active(dim, dict(member.sizes)) for dim in blueprint.plan.shapes.get(name, ()))
            _require(not shape or tuple(tensor.shape) == shape, file, f"{number}.{name} of shape {shape}")
    _require(not found, file, f"no other tensors than statistics, found {', '.join(found)}")
    return result
