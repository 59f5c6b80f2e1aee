"""Files that are written: complete or not at all."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from sortify import files
from sortify.files import newest, replacing, replacing_files, settle


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


def test_a_folder_takes_the_place_of_nothing_or_of_an_empty_folder(tmp_path: Path) -> None:
    for target in (tmp_path / "new", tmp_path / "empty"):
        if target.name == "empty":
            target.mkdir()
        with replacing(target) as draft:
            write_folder(draft, "new")
        assert (target / "part.txt").read_text() == "new"
    assert names(tmp_path) == ["empty", "new"]


def test_a_folder_never_takes_the_place_of_a_full_one(tmp_path: Path) -> None:
    target = tmp_path / "sorted"
    write_folder(target, "old")
    with pytest.raises(OSError, match="not empty"), replacing(target) as draft:
        write_folder(draft, "new")
    assert (target / "part.txt").read_text() == "old"
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


# -- several files at once ----------------------------------------------------------------------------------------


def save(folder: Path, old: tuple[str, ...] = (), **texts: str) -> None:
    with replacing_files(folder, old) as draft:
        for name, text in texts.items():
            (draft / name).write_text(text)
            (draft / "deep").mkdir(exist_ok=True)
            (draft / "deep" / name).write_text(text)


def test_files_take_their_places_and_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "sorted"
    save(folder, one="1", two="1")
    (folder / "theirs").write_text("theirs")
    save(folder, ("one", "two", "deep/two", "never"), one="2")
    assert names(folder) == ["deep", "one", "theirs"]
    assert names(folder / "deep") == ["one"]
    assert {newest(folder, name).read_text() for name in ("one", "deep/one")} == {"2"}
    assert newest(folder, "never") == folder / "never"


@pytest.mark.parametrize("moves", range(4))
def test_a_save_that_is_cut_short_while_moving_is_complete_and_goes_on(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`moves` files are moved, then the process is gone: nothing of what follows runs."""
    save(tmp_path, one="1", two="1", three="1")
    made, replace = [0], os.replace

    def gone(source: Path, target: Path) -> None:
        made[0] += 1
        if made[0] == 2 + moves:  # the first one commits
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", gone)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, ("three", "deep/three"), one="2", two="2")
    for name in ("one", "two", "deep/one", "deep/two"):
        assert newest(tmp_path, name).read_text() == "2"
    settle(tmp_path)
    settle(tmp_path)
    assert names(tmp_path) == ["deep", "one", "two"]
    assert names(tmp_path / "deep") == ["one", "two"]


def test_before_the_step_all_is_old(tmp_path: Path) -> None:
    save(tmp_path, one="1")
    with suppress(ValueError), replacing_files(tmp_path) as draft:
        (draft / "one").write_text("2")
        assert newest(tmp_path, "one").read_text() == "1"
        raise ValueError("broken")
    assert newest(tmp_path, "one").read_text() == "1"
    assert names(tmp_path) == ["deep", "one"]


def test_a_link_in_the_place_of_waiting_files_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    write_folder(precious, "theirs")
    save(tmp_path / "sorted", one="1")
    (tmp_path / "sorted" / files.PENDING).symlink_to(precious)
    settle(tmp_path / "sorted")
    assert names(precious) == ["part.txt"]
    assert newest(tmp_path / "sorted", "part.txt") == tmp_path / "sorted" / "part.txt"


# -- what a killed process leaves ---------------------------------------------------------------------------------


def test_what_was_left_over_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    left, other = tmp_path / ".model.pt.unfinished-abcdefgh", tmp_path / ".model.pt2.unfinished-abcdefgh"
    for folder in (left, other):
        write_folder(folder, "half")
    with replacing(target) as draft:
        draft.write_text("first")
        with replacing(target) as second:
            second.write_text("second")
        assert draft.exists()
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert names(tmp_path) == [other.name, "model.pt"]


@pytest.mark.parametrize("gone", ["../kept", "{parent}/kept", "link/kept"])
def test_what_a_folder_says_is_gone_is_in_it(tmp_path: Path, gone: str) -> None:
    outside, folder = tmp_path / "kept", tmp_path / "folder"
    outside.write_text("mine")
    (folder / files.PENDING).mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    (folder / files.PENDING / ".gone").write_text(f'["{gone.format(parent=tmp_path)}"]')
    settle(folder)
    assert outside.read_text() == "mine"


def test_files_are_not_moved_through_links(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / files.PENDING / "link").mkdir(parents=True)
    (folder / files.PENDING / "link" / "kept").write_text("theirs")
    (folder / files.PENDING / ".gone").write_text("[]")
    (tmp_path / "kept").write_text("mine")
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="leads out of"):
        settle(folder)
    assert (tmp_path / "kept").read_text() == "mine"
