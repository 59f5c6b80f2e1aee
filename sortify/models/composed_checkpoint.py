"""Folders of models in parts: one checkpoint per part, the tensors of the rest, and what holds them together.

    sortify.json         kind "parts", the paths of the parts, what was left, signature, trained levels, checksums
    parts/0, parts/1...  a checkpoint per part
    rest.safetensors     every saved tensor outside the parts, by original name
    example.safetensors  the example inputs
    statistics.safetensors  recalibrated batch-norm statistics, by sub-network of the whole

`sortify.json` is written last and holds checksums of everything else: a save that was cut short is refused.
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

from sortify.errors import CheckpointError
from sortify.files import replacing
from sortify.graph.signature import Signature
from sortify.models.checkpoint import EXAMPLE, MAIN, STATISTICS, VERSION, named_statistics
from sortify.models.merging import Part
from sortify.models.sorted_model import load as load_one
from sortify.space.profile import Profile
from sortify.space.space import Subnet, Trained

KIND, REST, FOLDER = "parts", "rest.safetensors", "parts"


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


def save(path: str | Path, contents: Contents) -> None:
    """Write a folder.

    Raises:
        CheckpointError: it cannot be written.
    """
    path = Path(path)
    folders = {f"{FOLDER}/{number}": part for number, part in enumerate(contents.parts)}
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder, part in folders.items():
            part.model.save(path / folder)
        _write(path / REST, contents.rest)
        _write(path / EXAMPLE, {str(i): tensor for i, tensor in enumerate(contents.examples)})
        members = list(contents.statistics)
        _write(path / STATISTICS, named_statistics(members, contents.statistics))
        files = [REST, EXAMPLE, STATISTICS, *(f"{folder}/{MAIN}" for folder in folders)]
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
            "sha256": {file: _digest(path / file) for file in files},
        }
        with replacing(path / MAIN) as draft:
            draft.write_text(json.dumps(main, indent=1))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error


def _write(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with replacing(file) as draft:
        save_file({name: t.detach().contiguous().cpu().clone() for name, t in tensors.items()}, draft)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_in_parts(path: str | Path) -> bool:
    """Whether a folder holds a model in parts; whatever else it holds, `checkpoint.read` tells."""
    try:
        main = json.loads((Path(path) / MAIN).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(main, dict) and main.get("kind") == KIND


def read(path: str | Path) -> Contents:
    """Read a folder for which `is_in_parts` holds.

    Raises:
        CheckpointError: it is damaged, incomplete, or of a newer version.
    """
    path = Path(path)
    try:
        main = json.loads((path / MAIN).read_text())
        if main["version"] != VERSION:
            raise CheckpointError(
                f"{path / MAIN}: format version {main['version']!r}, this sortify reads {VERSION}: install a newer one"
            )
        for file, digest in main["sha256"].items():
            if _digest(path / file) != digest:
                raise CheckpointError(
                    f"{path / file}: its checksum is not the one in {MAIN}: damaged, or of another save"
                )
        examples = load_file(path / EXAMPLE)
        return Contents(
            [Part(place, load_one(path / folder), int(calls)) for folder, (place, calls) in main["parts"].items()],
            {str(place): str(why) for place, why in main["left"].items()},
            Signature.from_json(main["signature"]),
            [examples[str(i)] for i in range(len(examples))],
            load_file(path / REST),
            int(main["rest_parameters"]),
            _statistics(path / STATISTICS, main["statistics"]),
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
    for name, tensor in load_file(file).items():
        number, _, own = name.partition(".")
        found[members[int(number)]][own] = tensor
    return found
