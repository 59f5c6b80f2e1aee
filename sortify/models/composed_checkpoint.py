"""Folders of models in parts: one checkpoint per part, the tensors of the rest, and what holds them together.

    sortify.json         kind "parts", the paths of the parts, what was left, signature, trained levels, checksums
    parts/0, parts/1...  a checkpoint per part
    rest.safetensors     every saved tensor outside the parts, by original name; in several files where it is large
    example.safetensors  the example inputs
    statistics.safetensors  recalibrated batch-norm statistics, by sub-network of the whole

All files, those of the parts too, take their places in one step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sortify.errors import CheckpointError
from sortify.files import newest, replacing_files
from sortify.graph.signature import Signature
from sortify.models import checkpoint
from sortify.models.checkpoint import EXAMPLE, STATISTICS, named_statistics, not_written
from sortify.models.manifest import MAIN, VERSION, check, describe, files_of, read_json, read_main, written
from sortify.models.merging import Part
from sortify.models.sorted_model import made_of
from sortify.models.tensor_files import LARGEST, read_tensors, weight_files, write_all, write_tensors
from sortify.space.profile import Profile
from sortify.space.space import Subnet, Trained

KIND, REST, FOLDER = "parts", "rest", "parts"


@dataclass(frozen=True, eq=False)
class Contents:
    """A model in parts without the original's code.

    Attributes:
        parts: the sorted parts; left: module path -> why it runs as it was.
        signature, examples: of the whole.
        rest: tensors outside the parts; rest_parameters: how many numbers of them are parameters.
        statistics: those of the sub-networks that have been recalibrated, by original name.
        trained: the levels that were trained; source: for people; profile: of the whole on a machine.
    """

    parts: Sequence[Part]
    left: Mapping[str, str]
    signature: Signature
    examples: Sequence[torch.Tensor]
    rest: Mapping[str, torch.Tensor]
    rest_parameters: int
    statistics: Mapping[Subnet, Mapping[str, torch.Tensor]]
    trained: Trained | None
    source: str | None
    profile: Profile | None = None


def save(path: str | Path, contents: Contents, largest: int | str = LARGEST) -> None:
    """Write a folder.

    Args:
        path: the folder.
        contents: what it is to hold.
        largest: bytes that a file of weights may hold, see `write_tensors`.

    Raises:
        CheckpointError: it cannot be written; it then holds what it held before.
    """
    path = Path(path)
    try:
        with replacing_files(path, written(path)) as draft:
            _write(draft, contents, largest)
    except (OSError, SafetensorError) as error:
        raise not_written(path, error) from error


def _write(draft: Path, contents: Contents, largest: int | str) -> None:
    folders = {f"{FOLDER}/{number}": part for number, part in enumerate(contents.parts)}
    for folder, part in folders.items():
        (draft / folder).mkdir(parents=True)
        model = part.model
        checkpoint.write(
            draft / folder, model.blueprint, model.tensors, model.example_tensors, model.statistics, largest
        )
    members = list(contents.statistics)
    files = [
        *write_tensors(draft, REST, contents.rest, largest),
        *write_all(draft, EXAMPLE, {str(i): tensor for i, tensor in enumerate(contents.examples)}),
        *write_all(draft, STATISTICS, named_statistics(members, contents.statistics)),
        *(f"{folder}/{MAIN}" for folder in folders),
    ]
    main = {
        "format": "sortify",
        "version": VERSION,
        "kind": KIND,
        "source": contents.source,
        "parts": {folder: [part.path, part.calls] for folder, part in folders.items()},
        "left": dict(contents.left),
        "signature": contents.signature.to_json(),
        "rest_parameters": contents.rest_parameters,
        "statistics": [subnet.to_json() for subnet in members],
        "trained": contents.trained.to_json() if contents.trained else None,
        "profile": contents.profile.to_json() if contents.profile else None,
        "files": describe(draft, files),
    }
    (draft / MAIN).write_text(json.dumps(main, indent=1))


def is_in_parts(path: str | Path) -> bool:
    """Whether a folder holds a model in parts; whatever else it holds, `checkpoint.read` tells."""
    try:
        return read_json(newest(path, MAIN)).get("kind") == KIND
    except CheckpointError:
        return False


def read(path: str | Path, *, verify: bool = False) -> Contents:
    """Read a folder for which `is_in_parts` holds.

    Args:
        path: the folder.
        verify: read every file whole to compare its checksum, see `manifest.check`.

    Raises:
        CheckpointError: it is damaged, incomplete, or of a newer version.
    """
    path = Path(path)
    try:
        main = read_main(path)
        files = files_of(path / MAIN, main)
        if strange := [folder for folder in main["parts"] if f"{folder}/{MAIN}" not in files]:
            raise CheckpointError(f"{path / MAIN}: damaged checkpoint: {strange[0]!r:.100} is not among its files")
        check(path, "", files, verify)
        examples = read_tensors([newest(path, EXAMPLE)])
        return Contents(
            [
                Part(place, made_of(checkpoint.read(path, f"{folder}/", verify=verify)), int(calls))
                for folder, (place, calls) in main["parts"].items()
            ],
            {str(place): str(why) for place, why in main["left"].items()},
            Signature.from_json(main["signature"]),
            [examples[str(i)] for i in range(len(examples))],
            read_tensors(newest(path, name) for name in weight_files(REST, files)),
            int(main["rest_parameters"]),
            _statistics(newest(path, STATISTICS), main["statistics"]),
            Trained.from_json(main["trained"]) if main["trained"] else None,
            main["source"],
            Profile.from_json(main["profile"]) if main.get("profile") else None,
        )
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged file makes of these readers, the user gets one line
        text = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged checkpoint ({type(error).__name__}: {text})") from error


def _statistics(file: Path, listed: Sequence[Any]) -> dict[Subnet, dict[str, torch.Tensor]]:
    """Measured statistics by sub-network."""
    found: dict[Subnet, dict[str, torch.Tensor]] = {Subnet.from_json(each): {} for each in listed}
    members = list(found)
    for name, tensor in read_tensors([file]).items():
        number, _, own = name.partition(".")
        found[members[int(number)]][own] = tensor
    return found
