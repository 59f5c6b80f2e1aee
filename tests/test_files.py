"""Files that are written: complete or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sortify.files import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_folder(path: Path, text: str) -> None:
    path.mkdir()
    (path / "part.txt").write_text(text)


def fail_half_way(target: Path, error: BaseException) -> None:
    with replacing(target) as draft:
        write_folder(draft, "half")
        raise error


def test_a_file_appears_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result.json"
    with replacing(target) as draft:
        draft.write_text("new")
        assert not target.exists()
        assert draft.parent.parent == target.parent
    assert target.read_text() == "new"
    assert names(target.parent) == ["result.json"]


def test_a_file_replaces_a_file(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    with replacing(str(target)) as draft:
        draft.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["result.json"]


def test_a_folder_replaces_a_folder_whole(tmp_path: Path) -> None:
    target = tmp_path / "sorted"
    write_folder(target, "old")
    (target / "stale.txt").write_text("stale")
    with replacing(target) as draft:
        write_folder(draft, "new")
    assert names(target) == ["part.txt"]
    assert (target / "part.txt").read_text() == "new"
    assert names(tmp_path) == ["sorted"]


@pytest.mark.parametrize("error", [ValueError("broken"), OSError(errno.ENOSPC, "no space left"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "sorted"
    write_folder(target, "old")
    with pytest.raises(type(error)):
        fail_half_way(target, error)
    assert (target / "part.txt").read_text() == "old"
    assert names(tmp_path) == ["sorted"]


def test_a_failing_move_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    target = tmp_path / "sorted"
    write_folder(target, "old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"), replacing(target) as draft:
        write_folder(draft, "new")
    assert (target / "part.txt").read_text() == "old"
    assert names(tmp_path) == ["sorted"]


def test_a_block_that_writes_nothing_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(FileNotFoundError, match=r"result\.json"), replacing(target):
        pass
    assert target.read_text() == "old"
    assert names(tmp_path) == ["result.json"]
