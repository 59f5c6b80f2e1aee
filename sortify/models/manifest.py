"""The list of files in `sortify.json`: which belong to a saved model, how large they are, and their checksums.

Version 1 lists checksums; version 2 sizes as well, and weights that may be in several files. What is told of a file is
checked before it is read. Reading much slower than the disk is for `verify=True` alone: of files of more than `WHOLE`
bytes, which hold tensors, only size and header are checked otherwise.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sortify.errors import CheckpointError
from sortify.files import newest

MAIN = "sortify.json"
VERSION, READ = 2, (1, 2)
WHOLE = 64 * 2**20
LARGEST_JSON = 256 * 2**20
_NAME = re.compile(r"(parts/\d{1,5}/)?[a-z]+(-\d{5}-of-\d{5})?(\.safetensors(\.index\.json)?|\.json)\Z")


def describe(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What `sortify.json` tells of files in a folder."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)} for name in names}


def digest(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: there is none.
    """
    try:
        if _size(file) > LARGEST_JSON:
            raise CheckpointError(f"{file}: cannot be read (larger than any that sortify writes)")
        data = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file}: not found; make a checkpoint with `sortify convert SOURCE -o {file.parent}`"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(data).__name__}")
    return data


def _size(file: Path) -> int:
    """Of an ordinary file; a link may lead to it."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{file}: is no ordinary file")
    return status.st_size


def read_main(root: Path, inside: str = "") -> dict[str, Any]:
    """What `sortify.json` holds, of a version that can be read.

    Raises:
        CheckpointError: it is missing, damaged, or of another version.
    """
    file = newest(root, inside + MAIN)
    main = read_json(file)
    if main.get("format") != "sortify":
        raise CheckpointError(f"{file}: this is no sortify checkpoint")
    version = main.get("version")
    if type(version) is not int or version not in READ:
        known = " and ".join(map(str, READ))
        raise CheckpointError(f"{file}: format version {version!r}, this sortify reads {known}: install a newer one")
    return main


def files_of(file: Path, main: Mapping[str, Any]) -> dict[str, tuple[int | None, str]]:
    """The size, where it is told, and the checksum of every file that is listed.

    Raises:
        CheckpointError: the list is missing or holds something else.
    """
    listed = main.get("files") if main["version"] > 1 else _first_version(main.get("sha256"))
    try:
        found = {name: (told["bytes"], told["sha256"]) for name, told in listed.items()}  # type: ignore[union-attr]
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged checkpoint (the list of checksums is missing)") from error
    if strange := [name for name in found if not _NAME.match(name)]:
        raise CheckpointError(f"{file}: damaged checkpoint (it lists the file {strange[0]!r:.100})")
    return found


def _first_version(digests: Any) -> Any:
    return (
        {name: {"bytes": None, "sha256": text} for name, text in digests.items()} if isinstance(digests, dict) else None
    )


def check(root: Path, inside: str, files: Mapping[str, tuple[int | None, str]], verify: bool) -> None:
    """Every file must be the one that was written with `sortify.json`.

    Args:
        root: the folder of the whole checkpoint; inside: where in it the files are (`parts/0/`).
        files: their sizes and checksums.
        verify: read files of any size whole, to compare their checksums.

    Raises:
        CheckpointError: one is missing, or another.
    """
    for name, (size, expected) in files.items():
        file = newest(root, inside + name)
        try:
            found = _size(file)
            if size not in (None, found):
                raise CheckpointError(f"{file}: has {found} bytes, expected {size}: damaged, or of another checkpoint")
            if (verify or found <= WHOLE) and digest(file) != expected:
                raise CheckpointError(
                    f"{file}: its checksum is not the one in {MAIN}; the file is damaged or of another checkpoint"
                )
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror}); the checkpoint is incomplete") from error


def written(root: Path, inside: str = "") -> set[str]:
    """The paths of all files of the checkpoint that a folder holds, parts included; none where it cannot be read."""
    try:
        names = files_of(root, read_main(root, inside))
    except CheckpointError:
        return set()
    parts = [name.removesuffix(MAIN) for name in names if name.endswith(f"/{MAIN}")] if not inside else []
    return {inside + MAIN, *(inside + name for name in names)}.union(*(written(root, part) for part in parts))
