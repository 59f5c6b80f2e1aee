"""Files are written in a temporary place and moved when complete: a process that is killed leaves the old ones.

Complete means on the disk, not only in the system's memory. What a killed process leaves in temporary places, the next
one that writes the same target removes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # a system without such locks: what was left over stays
    fcntl = None

PENDING = ".pending"
"""The folder with the complete files of a save that could not move them all to their places."""
_GONE = ".gone"
_MARK = ".unfinished-"


def is_taken(target: Path) -> bool:
    """Whether there is a file, or a folder that is not empty."""
    return target.is_file() or (target.is_dir() and any(target.iterdir()))


@contextmanager
def replacing(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; move it there, in one step, when the block ends well.

    The block may create a file or a folder at the temporary path. On an error the temporary path is removed and
    whatever stood at `target` stays untouched. A file takes the place of a file; a folder that of nothing or of an
    empty folder, as no system replaces a full one in one step: see `replacing_files`.

    Args:
        target: where the finished file or folder belongs; its parent is created.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    workplace = Path(tempfile.mkdtemp(prefix=f".{target.name}{_MARK}", dir=target.parent))
    lock = _locked(workplace)
    try:
        draft = workplace / target.name
        yield draft
        _sync(draft)
        os.replace(draft, target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
        _unlocked(lock)


@contextmanager
def replacing_files(folder: str | Path, old: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty draft folder; its files take the places of those in `folder`, all in one step.

    The step is the move of the complete draft to `folder/.pending`. From then on `newest` finds the new files there,
    and they are moved to their places one by one; if that is cut short, the next `settle` goes on. Other files stay.

    Args:
        folder: is created.
        old: paths in the folder of files that belong to what is replaced: those that are not written anew are removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder)
    with replacing(folder / PENDING) as draft:
        draft.mkdir()
        yield draft
        gone = sorted(name for name in old if not (draft / name).exists())
        (draft / _GONE).write_text(json.dumps(gone))
    settle(folder)


def settle(folder: str | Path) -> None:
    """Move the files of a complete save, if they are not in their places yet, see `replacing_files`.

    Raises:
        OSError: one of them would be written outside of the folder, or the disk refuses.
    """
    folder = Path(folder)
    pending = folder / PENDING
    if pending.is_symlink() or not pending.is_dir():
        return
    with suppress(OSError, ValueError, TypeError):  # all is moved already, and the folder was being removed
        for name in json.loads((pending / _GONE).read_text()):
            _within(folder, folder / name).unlink(missing_ok=True)
    for file in sorted(path for path in pending.rglob("*") if path.is_file() and path.name != _GONE):
        place = _within(folder, folder / file.relative_to(pending))
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
        _sync_folder(place.parent)
    shutil.rmtree(pending)


def _within(folder: Path, place: Path) -> Path:
    """A place in a folder; OSError where `..` or a link leads out of it."""
    if not place.parent.resolve().is_relative_to(folder.resolve()):
        raise OSError(f"{place} leads out of {folder}")
    return place


def newest(folder: str | Path, name: str) -> Path:
    """Where a file of a folder is: among those that wait to be moved to their places, or in its place."""
    folder = Path(folder)
    waiting = folder / PENDING / name
    return waiting if waiting.exists() and not (folder / PENDING).is_symlink() else folder / name


def _sync(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    for each in [path, *path.rglob("*")]:
        if each.is_dir():
            _sync_folder(each)
        else:
            with each.open("rb+") as file:
                os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # not every system can do this for a folder
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _locked(folder: Path) -> int | None:
    """Lock a folder until `_unlocked`, or until the process ends; None where another one holds it."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        os.close(handle)
        return None
    return handle


def _unlocked(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _sweep(target: Path) -> None:
    """Remove the temporary places of processes that were killed while they wrote this target."""
    prefix = f".{target.name}{_MARK}"
    for left in [path for path in target.parent.iterdir() if path.name.startswith(prefix)]:
        with suppress(OSError):
            lock = _locked(left)
            if lock is not None:
                shutil.rmtree(left, ignore_errors=True)
                _unlocked(lock)
