"""Bad input: one clear line, a status that is not zero, no traceback, and earlier files as they were."""

from __future__ import annotations

import contextlib
import errno
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from cli_calls import SETTINGS, call, errors, pictures, small_net, snapshot, works, write_data, write_folder
from torch import nn
from typer.testing import Result

Spoil = Callable[[Path], None]


class Own(nn.Module):
    """A user's class, which no allow-list knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, data, settings and the sorted model."""
    folder = write_folder(tmp_path_factory.mktemp("errors"))
    works(folder, "convert", "model.pt")
    return folder


@pytest.fixture
def place(converted: Path, tmp_path: Path) -> Path:
    """A copy of that folder, spoiled by one test only."""
    return Path(shutil.copytree(converted, tmp_path / "place"))


def refused(result: Result, *said: str) -> None:
    """The command ended with 1 and one line that says all this."""
    assert result.exit_code == 1, result.output
    lines = errors(result)
    told = [line for line in lines if line.startswith("error: ")]
    assert len(told) == 1, result.output
    assert lines[-1] == told[0]
    assert "Traceback" not in result.output
    assert not told[0].startswith("error: unexpected")
    assert [text for text in said if text not in told[0]] == [], told[0]


def refuses(folder: Path, line: str, *said: str) -> None:
    """`sortify LINE` is refused and changes no file."""
    before = snapshot(folder)
    refused(call(folder, *line.split()), *said)
    assert snapshot(folder) == before


def cut(path: Path) -> None:
    """Keep the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def garble(path: Path) -> None:
    """Something else altogether."""
    path.write_bytes(b"\x00\xffno such file" * 20)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("code", "stderr"),
    [
        (0, "error: a"),
        (1, "error: a\nerror: b"),
        (1, "Traceback\nerror: a"),
        (1, "error: unexpected a"),
        (1, "error: b"),
    ],
)
def test_a_wrong_ending_is_seen(code: int, stderr: str) -> None:
    def ended(code: int, stderr: str) -> Result:
        return Result(None, b"", stderr.encode(), stderr.encode(), None, code, None)  # type: ignore[arg-type]

    class Runner:
        charset = "utf-8"

    wrong, right = ended(code, stderr), ended(1, "error: a")
    wrong.runner = right.runner = Runner()  # type: ignore[assignment]
    refused(right, "a")
    with pytest.raises(AssertionError):
        refused(wrong, "a")


# -- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nonsense", "'nonsense' names no model: expected model.pt"),
        ("missing.pt", "'missing.pt' does not exist"),
        ("torchvision/resnet81", "torchvision has no model 'resnet81': did you mean"),
        ("transformers/missing", "'missing' is no folder"),
        ("nowhere:net", "no module 'nowhere'"),
    ],
)
def test_unknown_source(place: Path, source: str, said: str) -> None:
    refuses(place, f"convert {source}", said)


def test_wrong_input_shape(place: Path) -> None:
    refuses(place, "convert model.pt --input 2x3x8x8", "Sequential", "channels")


def test_input_that_is_no_shape(place: Path) -> None:
    refuses(place, "convert model.pt --input 2by3", "--input: cannot read '2by3'", "1x3x32x32")


def test_truncated_model_file(place: Path) -> None:
    cut(place / "model.pt")
    refuses(place, "convert model.pt", "model.pt", "damaged")


def test_untrusted_classes_are_named(place: Path) -> None:
    torch.save(nn.Sequential(Own(), nn.Linear(2, 2)), place / "own.pt")
    refuses(place, "convert own.pt", "own.pt", "test_cli_errors.Own", "--trust")


def test_a_model_that_cannot_be_captured(place: Path) -> None:
    (place / "branching.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(4, 4)\n"
        "    def forward(self, x):\n"
        "        y = self.layer(x)\n"
        "        return y if y.sum() > 0 else -y\n"
    )
    refused(call(place, "convert", "branching:Net", "--input", "2x4"), "Net cannot be captured", "mode")


def test_a_model_in_which_nothing_is_elastic(place: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(4, 4)), place / "stiff.pt")
    refuses(place, "convert stiff.pt --input 2x4", "nothing in this model is elastic")


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_missing_data(place: Path, command: str) -> None:
    refuses(place, f"{command} --data missing.npz", "missing.npz: no such data; expected digits")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_data_that_nobody_names(place: Path, command: str) -> None:
    (place / "sortify.toml").unlink()
    result = call(place, command)
    assert result.exit_code == 2
    assert "--data digits" in result.stderr


def wrong_shape(path: Path) -> None:
    write_data(path, x_train=numpy.zeros((48, 5), "float32"), x_test=numpy.zeros((24, 5), "float32"))


def wrong_labels(path: Path) -> None:
    write_data(path, y_train=pictures(48, 0)[1] + 5)


def too_few_labels(path: Path) -> None:
    write_data(path, y_train=pictures(40, 0)[1])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (wrong_shape, ("[5]", "do not fit the model's input [1, 8, 8]")),
        (wrong_labels, ("label",)),
        (too_few_labels, ("x_train has 48 samples but y_train has 40",)),
        (cut, ("data.npz", "not a readable .npz file")),
        (lambda path: numpy.savez(path, images=numpy.zeros(3)), ("array x_train is missing", "found images")),
    ],
    ids=["shape", "labels", "number of labels", "truncated", "arrays"],
)
def test_data_that_does_not_fit(place: Path, spoil: Spoil, said: tuple[str, ...]) -> None:
    spoil(place / "data.npz")
    refuses(place, "train", *said)


# -- sub-networks -----------------------------------------------------------------------------------------------------


def test_a_budget_that_is_too_small_tells_the_smallest(place: Path) -> None:
    refuses(place, "extract --budget 0.001", "budget 0.001", "too small: the smallest reachable is 0.", "width=0.25")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "extract --budget 0.5 --metric latency",
            "latency is measured on a machine, and this model has no profile of one: run `sortify profile`",
        ),
        ("extract --budget 5ms", "budget 5 ms latency: latency is measured"),
        ("extract --budget 20", "budget 20: a plain number is a share"),
        ("extract --budget 0.5 --sizes bach=1", "no open size 'bach'"),
        ("extract --budget -1", "budget -1: expected a fraction"),
        ("extract --width 1.5", "width=1.5: expected a fraction above 0 and at most 1"),
        ("extract --heads 0.5", "'heads' is no group, axis or chain of this model; groups: width, depth"),
        ("train --dims width,heads", "the model has no elastic 'heads'; it has width, depth"),
        ("train --dims width,width", "named twice"),
        ("train --dims width --levels depth=2", "levels are given for 'depth', which is not trained"),
        ("train --dims width --levels width=0.5,1.5", "width levels must be fractions above 0 and up to 1"),
        ("train --sampler best", "unknown sampler 'best'; there are random, sandwich"),
        ("train --lr 0", "lr must be above 0"),
        ("evaluate --grid heads=2", "'heads' is no group"),
        ("train --resume", "no interrupted training to resume"),
    ],
)
def test_unknown_levels_dims_and_settings(place: Path, line: str, said: str) -> None:
    refuses(place, line, said)


# -- saved models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [cut, garble, remove], ids=["truncated", "corrupt", "missing"])
@pytest.mark.parametrize("name", ["sortify.json", "graph.json", "model.safetensors", "example.safetensors"])
def test_a_damaged_checkpoint(place: Path, name: str, spoil: Spoil) -> None:
    spoil(place / "sorted" / name)
    refuses(place, "inspect", f"sorted/{name}")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("sortify.json", {"version": 99}, "format version 99"),
        ("sortify.json", {"format": "other"}, "this is no sortify checkpoint"),
        ("sortify.json", {"plan": {}}, "damaged checkpoint"),
        ("sortify.json", {"tensors": {}}, "sorted"),
        ("graph.json", {"eval": {}}, "damaged"),
    ],
)
def test_a_checkpoint_of_wrong_contents(place: Path, name: str, change: dict[str, Any], said: str) -> None:
    path = place / "sorted" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refuses(place, "verify", said)


def test_no_checkpoint_at_all(place: Path) -> None:
    refuses(place, "inspect elsewhere", "elsewhere/sortify.json: not found", "sortify convert SOURCE -o elsewhere")


# -- a full disk ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def little_room(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "line",
    ["convert model.pt", "train", "extract --budget 0.5", "extract --budget 0.5 --format safetensors", "evaluate"],
)
def test_no_room_for_a_file(place: Path, line: str) -> None:
    before = snapshot(place / "sorted")
    (place / "extracted.pt2").write_bytes(b"earlier")
    with little_room(2000):
        result = call(place, *line.split())
    refused(result, "File too large")
    after = snapshot(place / "sorted")
    assert {name: after[name] for name in before} == before
    assert (place / "extracted.pt2").read_bytes() == b"earlier"
    assert [path.name for path in place.rglob(".*")] == []


def test_a_full_disk_while_saving(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sortify.models.tensor_files.save_file", full)
    refuses(
        place,
        "convert model.pt",
        "sorted: cannot be written",
        "No space left on device",
        "the folder holds what was saved there last",
    )


# -- sortify.toml -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data digits", ("sortify.toml: cannot be read", "line 1")),
        ("dta = 1", ("sortify.toml: unknown key 'dta' (did you mean 'data'?); known: ", "[train]")),
        ("epochs = 5", ("sortify.toml: unknown key 'epochs'",)),
        ("[train]\nepoch = 5", ("sortify.toml, [train]: unknown key 'epoch' (did you mean 'epochs'?)", "batch-size")),
        ('[train]\nepochs = "five"', ("sortify.toml, [train]: 'epochs' must be a whole number, got 'five'",)),
        ("[train]\nepochs = true", ("'epochs' must be a whole number, got True",)),
        ("[train]\nresume = 1", ("'resume' must be true or false, got 1",)),
        ("[convert]\ninput = 3", ("sortify.toml, [convert]: 'input' must be text, got 3",)),
        ("[extract]\nbudget = true", ("'budget' must be text, a number, or a list of these, got True",)),
        ("data = 3", ("sortify.toml: 'data' must be text, got 3",)),
        ("[training]\nepochs = 5", ("unknown key 'training'", "[train]")),
        ("train = 5", ("sortify.toml: 'train' is a command", "[train]")),
    ],
)
def test_settings_that_are_wrong(place: Path, text: str, said: tuple[str, ...]) -> None:
    (place / "sortify.toml").write_text(text)
    refuses(place, "verify", *said)


def test_help_works_beside_wrong_settings(place: Path) -> None:
    (place / "sortify.toml").write_text(SETTINGS + "nonsense")
    assert "--budget" in works(place, "extract", "--help").stdout


def test_the_net_of_these_tests_is_right() -> None:
    assert small_net()(torch.randn(2, 1, 8, 8)).shape == (2, 3)
