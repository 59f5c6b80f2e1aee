"""A fixed sample of damaged and hostile files, and of kills while saving; `make fuzz` and `make kill` run thousands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fuzzing
import pytest

from sortify.errors import SourceError

pytestmark = pytest.mark.filterwarnings("ignore")
HERE = Path(__file__).parent
SAMPLE = range(0, 240)
KILLS = 6


@pytest.fixture(scope="module")
def watch() -> fuzzing.Watch:
    return fuzzing.Watch()


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    fuzzing.make_material(folder)
    return folder


def judged(kind: str, material: Path, place: Path, watch: fuzzing.Watch) -> fuzzing.Outcome:
    """One outcome on sound files of a kind."""
    fuzzing.shutil.copytree(material / kind, place / kind)
    return fuzzing._read(kind, "none", place / kind, True, watch)


def test_sound_files_load(material: Path, tmp_path: Path, watch: fuzzing.Watch) -> None:
    for kind in sorted(path.name for path in material.iterdir()):
        outcome = judged(kind, material, tmp_path, watch)
        assert outcome.status == "loaded", outcome


def test_the_law_holds_on_a_sample(material: Path, tmp_path: Path, watch: fuzzing.Watch) -> None:
    outcomes = []
    for case in SAMPLE:
        (tmp_path / str(case)).mkdir()
        outcomes.append(fuzzing.judge(case, material, tmp_path / str(case), watch))
    assert [outcome for outcome in outcomes if outcome.fault] == []
    refused = sum(outcome.status == "refused" for outcome in outcomes)
    assert len(outcomes) / 3 < refused < len(outcomes)


def runs(kind: str, folder: Path, verify: bool) -> None:
    os.system("true")


def damages(kind: str, folder: Path, verify: bool) -> None:
    (folder.parent / "more").write_text("x")


def crashes(kind: str, folder: Path, verify: bool) -> None:
    raise ValueError("some text")


def rambles(kind: str, folder: Path, verify: bool) -> None:
    raise SourceError("two\nlines")


def takes(kind: str, folder: Path, verify: bool) -> None:
    assert len(bytearray(b"x") * (fuzzing.BYTES + 2**28))


def sleeps(kind: str, folder: Path, verify: bool) -> None:
    raise fuzzing.Slow


READERS = {runs: "ran", damages: "changed", crashes: "traceback", rambles: "traceback", takes: "memory", sleeps: "slow"}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_every_fault_is_seen(
    reader: Callable[..., None], material: Path, tmp_path: Path, watch: fuzzing.Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzing, "read", reader)
    outcome = judged("pickled", material, tmp_path, watch)
    assert outcome.status == READERS[reader]
    assert outcome.fault


def test_a_process_that_dies_is_a_fault_and_the_rest_goes_on(tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE / "long"))
    try:
        import fuzz_files
    finally:
        sys.path.remove(str(HERE / "long"))
    dying = tmp_path / "dying.py"
    dying.write_text(
        "import json, os, sys\n"
        "for case in map(int, sys.argv[2:]):\n"
        "    if case == 2: os.kill(os.getpid(), 9)\n"
        "    print(json.dumps({'case': case, 'fault': False}), flush=True)\n"
    )
    fuzz_files.__file__ = str(dying)
    rows = list(fuzz_files.results([1, 2, 3, 4]))
    assert [(row["case"], row["fault"]) for row in rows] == [(1, False), (2, True), (3, False), (4, False)]


def test_kills_leave_whole_outputs() -> None:
    words = [sys.executable, "-W", "ignore", str(HERE / "long" / "kill_saves.py"), "--kills", str(KILLS)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "every output is whole" in done.stdout


def test_a_torn_output_is_seen(tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE / "long"))
    try:
        import kill_saves
    finally:
        sys.path.remove(str(HERE / "long"))
    output = kill_saves.Output("whole", tmp_path)
    output.write(1)
    first = {file.name: file.read_bytes() for file in output.target.iterdir()}
    output.write(3)
    assert output.read() == 3
    shard = sorted(name for name in first if name.startswith("model-"))[0]
    (output.target / shard).write_bytes(first[shard])
    fuzzing.sign(output.target)
    assert json.loads((output.target / "sortify.json").read_text())["version"] == 2
    with pytest.raises(AssertionError, match="of several outputs"):
        output.read()
