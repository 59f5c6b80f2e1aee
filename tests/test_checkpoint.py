"""Checkpoints: what is saved comes back anywhere; what is damaged is refused in one line; what was there survives."""

from __future__ import annotations

import copy
import errno
import functools
import importlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_checkpoints as golden
import pytest
import torch
import zoo_dense as dense
from compare import assert_close_outputs, assert_same_tensors
from safetensors.torch import load_file, save_file
from torch import nn
from zoo import CONV, ROW, randomize

from sortify import SortedModel, load, sortify
from sortify.errors import CheckpointError
from sortify.models import manifest, tensor_files
from sortify.models.manifest import describe
from sortify.space.space import Trained

FILES = ("sortify.json", "graph.json", "model.safetensors", "example.safetensors", "statistics.safetensors")
CLASSES = """
from dataclasses import dataclass
import torch
from torch import nn
from transformers.utils import ModelOutput

@dataclass
class Answer(ModelOutput):
    logits: torch.Tensor | None = None
    features: tuple[torch.Tensor, ...] | None = None

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, 24)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(24, 5)

    def forward(self, x, scale=2.0):
        y = torch.relu(self.fc2(torch.relu(self.norm(self.fc1(x)))))
        logits = self.head(self.drop(y)) * scale
        return Answer(logits=logits, features=(logits + 1,))
"""
ELSEWHERE = """
import sys, torch
from safetensors.torch import load_file, save_file
from sortify import load

folder, inputs, target = sys.argv[1:]
model = load(folder)
x = load_file(inputs)["x"]
found = {"full": model(x).logits, "feature": model(x)["features"][0]}
with model.using(width=0.5):
    found["half"] = model(x, scale=2.0).logits
    torch.manual_seed(5)
    found["train"] = model.train()(x).logits.detach()
save_file({k: v.contiguous() for k, v in found.items()}, target)
assert model.verify().passed
assert "their_network" not in sys.modules
"""


@functools.cache
def converted() -> SortedModel:
    return sortify(randomize(dense.BatchNormMLP(), 2), ROW()).eval()


@pytest.fixture
def model() -> SortedModel:
    return copy.deepcopy(converted())


@pytest.fixture
def saved(model: SortedModel, tmp_path: Path) -> Path:
    """A checkpoint with everything in it: trained levels and statistics of two sub-networks."""
    model.record_trained(Trained((("width", (0.5, 1.0)),)))
    for width in (0.5, 1.0):
        with model.using(width=width):
            model.recalibrate([torch.randn(16, 8)])
    model.save(tmp_path / "sorted")
    return tmp_path / "sorted"


def refused(folder: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=text) as refusal:
        load(folder)
    assert "\n" not in str(refusal.value)


def signed(folder: Path) -> None:
    """Write the checksums anew, as somebody who means harm would."""
    main = json.loads((folder / "sortify.json").read_text())
    main["files"] = describe(folder, main["files"])
    (folder / "sortify.json").write_text(json.dumps(main))


# -- there and back -----------------------------------------------------------------------------------------------


def test_everything_comes_back(model: SortedModel, saved: Path) -> None:
    again = load(saved)
    assert sorted(file.name for file in saved.iterdir()) == sorted(FILES)
    assert not again.training
    assert_same_tensors(again.state_dict(), model.state_dict())
    assert again.plan == model.plan
    assert again.space.trained == Trained((("width", (0.5, 1.0)),))
    assert again.space.members() == model.space.members()
    assert set(again.statistics) == set(model.statistics)
    for subnet in model.space.grid(width=4):
        assert again.cost(subnet) == model.cost(subnet)
        with model.using(subnet), again.using(subnet):
            assert_close_outputs(again(*ROW()), model(*ROW()), 0.0)
            torch.manual_seed(5)
            expected = copy.deepcopy(model).train()(*ROW())
            torch.manual_seed(5)
            assert_close_outputs(copy.deepcopy(again).train()(*ROW()), expected, 0.0)
    assert_close_outputs(again.examples, model.examples, 0.0)
    assert again.verify().passed


def test_saved_again_it_is_the_same(saved: Path, tmp_path: Path) -> None:
    load(saved).save(tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes(), name


def test_requires_grad_and_dtype_come_back(tmp_path: Path) -> None:
    module = dense.MLP()
    module.fc1.weight.requires_grad_(False)
    model = sortify(module, ROW()).bfloat16()
    model.save(tmp_path / "sorted")
    again = load(tmp_path / "sorted").state_dict(keep_vars=True)
    assert not again["fc1.weight"].requires_grad
    assert again["fc2.weight"].requires_grad
    assert {tensor.dtype for tensor in again.values()} == {torch.bfloat16}


def test_loads_where_the_class_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "their_network.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(str(theirs))
    module = importlib.import_module("their_network").Network()
    model = sortify(randomize(module, 2), ROW()).eval()
    model.activate(width=0.5)
    model.recalibrate([torch.randn(32, 8)])
    model.save(tmp_path / "sorted")
    (x,) = ROW()
    save_file({"x": x}, tmp_path / "inputs")
    arguments = [str(tmp_path / name) for name in ("sorted", "inputs", "outputs")]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ELSEWHERE), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert result.returncode == 0, result.stderr
    found = load_file(tmp_path / "outputs")
    assert_close_outputs(found["half"], model(x).logits, 1e-6)
    model.activate()
    assert_close_outputs(found["full"], model(x).logits, 1e-6)
    assert_close_outputs(found["feature"], model(x).features[0], 1e-6)
    model.activate(width=0.5)
    torch.manual_seed(5)
    assert_close_outputs(found["train"], model.train()(x).logits, 1e-6)


def test_no_pickle_in_any_file(saved: Path) -> None:
    for name in FILES:
        data = (saved / name).read_bytes()
        assert not data.startswith((b"\x80", b"PK")), name
        if name.endswith(".json"):
            json.loads(data)
        else:
            header = int.from_bytes(data[:8], "little")
            assert set(json.loads(data[8 : 8 + header])) <= {"__metadata__", *load_file(saved / name)}


def test_size_is_that_of_the_weights(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 5))
    sortify(module, ROW()).save(tmp_path / "sorted")
    weights = sum(parameter.numel() * 4 for parameter in module.parameters())
    written = sum(file.stat().st_size for file in (tmp_path / "sorted").iterdir())
    assert weights < written <= 1.01 * weights + 50_000


def sizes_of(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir()}


def test_large_weights_are_in_several_files_as_transformers_has_them(model: SortedModel, tmp_path: Path) -> None:
    folder = tmp_path / "sorted"
    model.save(folder, max_shard_size="2KB")
    shards = {name: size for name, size in sizes_of(folder).items() if name.startswith("model-")}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(shards) > 2
    assert not (folder / "model.safetensors").exists()
    assert set(index["weight_map"].values()) == set(shards)
    assert set(index["weight_map"]) == set(model.state_dict())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(folder / file)[name], model.state_dict()[name])
    again = load(folder, verify=True)
    assert_same_tensors(again.state_dict(), model.state_dict())
    model.recalibrate([torch.randn(16, 8)])
    model.save_statistics(folder)
    assert set(load(folder).statistics) == set(model.statistics)
    (folder / "model-00009-of-00009.safetensors").write_text("of others")
    model.save(folder)
    assert set(sizes_of(folder)) == {*FILES, "model-00009-of-00009.safetensors"}


@pytest.mark.parametrize("size", ["evil", "", -1, 0, 1.5, "5 elephants"])
def test_a_size_of_files_that_is_none(size: Any, model: SortedModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a size such as '5GB'"):
        model.save(tmp_path / "sorted", max_shard_size=size)
    assert list((tmp_path / "sorted").iterdir()) == []


def test_a_missing_shard(model: SortedModel, tmp_path: Path) -> None:
    model.save(tmp_path / "sorted", max_shard_size="2KB")
    gone = sorted(name for name in sizes_of(tmp_path / "sorted") if name.startswith("model-"))[1]
    (tmp_path / "sorted" / gone).unlink()
    refused(tmp_path / "sorted", rf"{gone}: cannot be read \(No such file or directory\); the checkpoint is incomplete")


def test_shards_that_hold_a_tensor_twice(model: SortedModel, tmp_path: Path) -> None:
    folder = tmp_path / "sorted"
    model.save(folder, max_shard_size="2KB")
    first, second = sorted(name for name in sizes_of(folder) if name.startswith("model-"))[:2]
    shutil.copy(folder / first, folder / second)
    signed(folder)
    refused(folder, rf"{second}: tensor '.*' is in another file too")


def test_large_files_are_read_whole_on_demand_only(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "model.safetensors").write_bytes(bytes(data))
    refused(saved, "its checksum")
    monkeypatch.setattr(manifest, "WHOLE", len(data) - 1)
    assert load(saved)
    with pytest.raises(CheckpointError, match=r"model.safetensors: its checksum is not the one"):
        load(saved, verify=True)
    (saved / "model.safetensors").write_bytes(bytes(data[:-1]))
    refused(saved, rf"model.safetensors: has {len(data) - 1} bytes, expected {len(data)}")


def test_weights_are_mapped_and_stay_where_the_files_are_replaced(model: SortedModel, saved: Path) -> None:
    again = load(saved)
    mapped = f"{saved / 'model.safetensors'}"
    assert any(mapped in line for line in Path("/proc/self/maps").read_text().splitlines())
    before = {name: tensor.clone() for name, tensor in again.state_dict().items()}
    digest = manifest.digest(saved / "model.safetensors")
    with torch.no_grad():
        next(again.parameters()).add_(1)
    assert manifest.digest(saved / "model.safetensors") == digest
    with torch.no_grad():
        next(again.parameters()).sub_(1)
    model.save(saved, max_shard_size="2KB")
    assert_close_outputs(dict(again.state_dict()), before, 1e-6)


def test_to_meta_and_back(model: SortedModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    empty = load(tmp_path, device="meta")
    assert {tensor.device.type for tensor in empty.state_dict().values()} == {"meta"}
    assert empty.cost() == model.cost()
    with pytest.raises(CheckpointError, match="is on the meta device: there is nothing to save"):
        empty.save(tmp_path)
    empty.to_empty(device="cpu").load_state_dict(load(tmp_path, device="cpu").state_dict())
    assert_close_outputs(empty(*ROW()), model(*ROW()), 0.0)


@pytest.mark.parametrize("version", sorted(path.name for path in golden.FOLDER.iterdir()))
@pytest.mark.parametrize("name", ["whole", "parts", "shards"])
def test_checkpoints_of_every_version_load(name: str, version: str, tmp_path: Path) -> None:
    folder = golden.FOLDER / version / name
    if not folder.exists():
        assert (version, name) == ("v1", "shards")
        return
    expected = load_file(folder / golden.EXPECTED)
    again = load(folder, golden.Router() if name == "parts" else None, verify=True)
    found = dict(sorted(golden.outputs(again).items()))
    assert_close_outputs(found, expected, 1e-6)
    with pytest.raises(AssertionError):
        assert_close_outputs({width: value + 1e-3 for width, value in found.items()}, expected, 1e-6)
    assert again.verify().passed
    assert (again.space.trained is not None) is (name != "parts")
    again.save(tmp_path)
    renewed = json.loads((tmp_path / "sortify.json").read_text())
    assert renewed["version"] == manifest.VERSION


@pytest.mark.parametrize("digests", [1, "evil", [], None, {"../evil": "0"}, {"graph.json": 1}])
def test_checksums_of_the_first_version_that_are_none(digests: Any, tmp_path: Path) -> None:
    shutil.copytree(golden.FOLDER / "v1" / "whole", tmp_path / "old")
    rewritten(tmp_path / "old", lambda main: main.update(sha256=digests))
    refused(tmp_path / "old", "damaged checkpoint")


def test_every_version_has_a_golden_checkpoint() -> None:
    assert {path.name for path in golden.FOLDER.iterdir()} == {f"v{version}" for version in manifest.READ}


def test_a_folder_is_no_file(saved: Path) -> None:
    (saved / "graph.json").unlink()
    (saved / "graph.json").mkdir()
    refused(saved, "graph.json: is no ordinary file")
    (saved / "graph.json").rmdir()
    os.mkfifo(saved / "graph.json")
    refused(saved, "graph.json: is no ordinary file")


def test_files_of_others_stay(model: SortedModel, tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "state").write_text("theirs")
    model.save(tmp_path)
    model.save(tmp_path)
    assert (tmp_path / "training" / "state").read_text() == "theirs"
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*FILES, "training"])


# -- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(name: str, saved: Path) -> None:
    (saved / name).unlink()
    refused(saved, rf"{name}: (not found; make a checkpoint with|cannot be read .*incomplete)")


def test_no_folder_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", r"sortify.json: not found; make a checkpoint with `sortify convert")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", r"cannot be read")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(name: str, share: float, saved: Path) -> None:
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: int(len(data) * share)])
    refused(saved, name)
    if name != "sortify.json":
        signed(saved)
        refused(saved, r"cannot be read|damaged|missing")


def test_a_flipped_bit(saved: Path) -> None:
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "model.safetensors").write_bytes(bytes(data))
    refused(saved, r"model.safetensors: its checksum is not the one in sortify.json")


@pytest.mark.parametrize("version", [3, 0, "1", None, [1], True, 1.0])
def test_another_version(version: Any, saved: Path) -> None:
    rewritten(saved, lambda main: main.update(version=version))
    refused(saved, r"format version .*, this sortify reads 1 and 2")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "{", '"x"', "1e999", "[" * 100_000, '{"format": "sortify"}'])
def test_no_checkpoint(text: str, saved: Path) -> None:
    (saved / "sortify.json").write_text(text)
    refused(saved, r"sortify.json: (cannot be read|expected a JSON object|this is no sortify|format version)")


@pytest.mark.parametrize("name", ["graph.json", "model.safetensors", "example.safetensors"])
def test_files_of_another_model(name: str, saved: Path, tmp_path: Path) -> None:
    other = sortify(dense.MLP(), (torch.randn(2, 8),))
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, saved / name)
    refused(saved, rf"{name}: (its checksum|has \d+ bytes)")


def test_weights_of_another_model_with_checksums_to_match(saved: Path, tmp_path: Path) -> None:
    sortify(dense.MLP(), ROW()).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", saved / "model.safetensors")
    signed(saved)
    refused(saved, r"tensor 'fc1.bias' is unexpected; the file belongs to another model")


def rewritten(folder: Path, change: Callable[[Any], Any], name: str = "sortify.json") -> None:
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))


WRONG_TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "elastic dimension": (
        lambda t: t.update({"net.0.weight": torch.zeros(16, 8)}),
        r"net.0.weight .*\(16, 8\).*\(32, 8\)",
    ),
    "fixed tensor": (lambda t: t.update({"net.7.bias": torch.zeros(4)}), r"net.7.bias .*\(4,\).*\(5,\)"),
    "rank": (lambda t: t.update({"net.7.bias": torch.zeros(5, 1)}), r"net.7.bias .*\(5, 1\)"),
    "counter": (lambda t: t.update({"net.1.num_batches_tracked": torch.zeros(3)}), "num_batches_tracked"),
    "kind of numbers": (lambda t: t.update({"net.7.bias": torch.zeros(5, dtype=torch.long)}), r"net.7.bias .*int64"),
    "missing": (lambda t: t.pop("net.7.bias"), r"'net.7.bias' is missing"),
    "unexpected": (lambda t: t.update({"evil": torch.zeros(1)}), r"'evil' is unexpected"),
}


@pytest.mark.parametrize("wrong", WRONG_TENSORS)
def test_tensors_that_do_not_fit(wrong: str, saved: Path) -> None:
    change, text = WRONG_TENSORS[wrong]
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, saved / "model.safetensors")
    signed(saved)
    refused(saved, text)


WRONG_PARTS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], Any]]] = {
    "example without a number": ("example.safetensors", lambda t: t.update({"x": t.pop("0")})),
    "example missing": ("example.safetensors", lambda t: t.clear()),
    "example too many": ("example.safetensors", lambda t: t.update({"1": torch.zeros(3)})),
    "example of another width": ("example.safetensors", lambda t: t.update({"0": torch.zeros(3, 9)})),
    "statistics without a number": ("statistics.safetensors", lambda t: t.update({"evil": torch.zeros(3)})),
    "statistics of no tensor": ("statistics.safetensors", lambda t: t.update({"0.evil": torch.zeros(3)})),
    "statistics of another size": (
        "statistics.safetensors",
        lambda t: t.update({"0.net.1.running_mean": torch.zeros(3)}),
    ),
    "statistics missing": ("statistics.safetensors", lambda t: t.pop("0.net.1.running_mean")),
}


@pytest.mark.parametrize("wrong", WRONG_PARTS)
def test_examples_and_statistics_that_do_not_fit(wrong: str, saved: Path) -> None:
    name, change = WRONG_PARTS[wrong]
    tensors = load_file(saved / name)
    change(tensors)
    save_file(tensors, saved / name)
    signed(saved)
    refused(saved, name)


def test_a_damaged_file_is_named_even_with_checksums_to_match(saved: Path) -> None:
    (saved / "example.safetensors").write_bytes(b"evil")
    signed(saved)
    refused(saved, r"example.safetensors: cannot be read")


HOSTILE: dict[str, Callable[[Any], Any]] = {
    "no plan": lambda m: m.pop("plan"),
    "plan is a list": lambda m: m.update(plan=[]),
    "axis without size": lambda m: m["plan"]["axes"][0].pop("size"),
    "axis of another size": lambda m: m["plan"]["axes"][0].update(size=64),
    "axis of a huge size": lambda m: m["plan"]["axes"][0].update(size=10**30),
    "axis of a negative size": lambda m: m["plan"]["axes"][0].update(size=-1),
    "axis with more fields": lambda m: m["plan"]["axes"][0].update(evil=1),
    "two axes of one name": lambda m: m["plan"]["axes"].append(m["plan"]["axes"][0]),
    "shape that does not parse": lambda m: m["plan"]["shapes"].update({"net.7.bias": "__import__('os')"}),
    "shape too deep": lambda m: m["plan"]["shapes"].update({"net.7.bias": "(" * 5000}),
    "shape of no tensor": lambda m: m["plan"]["shapes"].update({"evil": "5"}),
    "shape of an unknown axis": lambda m: m["plan"]["shapes"].update({"net.7.bias": "evil:5"}),
    "huge shape": lambda m: m["plan"]["shapes"].update({"net.7.bias": "999999999999999999"}),
    "literal of no node": lambda m: m["plan"]["literals"]["eval"].append(["evil", "size", 0, "5"]),
    "literal of no argument": lambda m: m["plan"]["literals"]["eval"].append(["linear", "evil", None, "5"]),
    "literals of one mode": lambda m: m["plan"]["literals"].pop("train"),
    "chain of no nodes": lambda m: m["plan"]["chains"].append(
        {"name": "c", "blocks": [{"name": "b", "regions": {"train": {"entry": "e", "exit": "e", "nodes": []}}}]}
    ),
    "costs": lambda m: m.update(costs="evil"),
    "cost of an unknown metric": lambda m: m["costs"]["terms"].append(["evil", 1, "5", [[]]]),
    "cost of an unknown axis": lambda m: m["costs"]["terms"].append(["flops", 1, "evil:5", [[]]]),
    "cost of an unknown chain": lambda m: m["costs"]["terms"].append(["flops", 1, "5", [[[99, 0]]]]),
    "open size without a size": lambda m: m["costs"]["open"].append(["batch", "evil", ""]),
    "signature": lambda m: m.update(signature={"parameters": [], "arguments": [], "positional": 7}),
    "signature of no argument": lambda m: m["signature"].update(arguments=[], positional=0),
    "source is no text": lambda m: m.update(source={"a": 1}),
    "trained is a list": lambda m: m.update(trained=[1]),
    "trained levels are text": lambda m: m["trained"].update(levels={"width": "full"}),
    "trained level above one": lambda m: m.update(trained={"width": [2.0]}),
    "trained levels are empty": lambda m: m["trained"].update(levels={"width": []}),
    "trained group unknown": lambda m: m.update(trained={"evil": [0.5]}),
    "kind of tensor": lambda m: m["tensors"].update({"net.7.bias": ["evil", True]}),
    "tensor without kind": lambda m: m["tensors"].update({"net.7.bias": []}),
    "gradients for integers": lambda m: m["tensors"].update({"net.1.num_batches_tracked": ["parameter", True]}),
    "alias of no tensor": lambda m: m.update(aliases={"evil": "nothing"}),
    "alias over a tensor": lambda m: m.update(aliases={"net.7.bias": "net.4.weight"}),
    "aliases are a list": lambda m: m.update(aliases=[1]),
    "statistics of no sub-network": lambda m: m["statistics"][0]["sizes"].update(evil=3),
    "statistics too large": lambda m: m["statistics"][0]["sizes"].update(
        dict.fromkeys(m["statistics"][0]["sizes"], 10**9)
    ),
    "statistics are text": lambda m: m.update(statistics=["evil"]),
    "checksums are text": lambda m: m.update(files="evil"),
    "checksum of another file": lambda m: m["files"].update({"../evil": {"bytes": 1, "sha256": "0"}}),
}


@pytest.mark.parametrize("wrong", HOSTILE)
def test_hostile_values(wrong: str, saved: Path) -> None:
    rewritten(saved, HOSTILE[wrong])
    refused(saved, r"sortify.json|damaged|saved|statistics|model.safetensors|sorted")


def test_a_plan_that_does_not_fit_the_train_graph_shows_when_that_is_used(tmp_path: Path) -> None:
    sortify(golden.Network(), (torch.arange(28).reshape(4, 7) % 20,)).save(tmp_path)
    rewritten(tmp_path, lambda m: m["plan"]["chains"][0]["blocks"][0]["regions"]["train"].update(entry="evil"))
    model = load(tmp_path)
    with pytest.raises(CheckpointError, match=r"damaged checkpoint: the plan does not fit the train graph") as refusal:
        model.train()(torch.arange(28).reshape(4, 7) % 20)
    assert "\n" not in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


HOSTILE_GRAPHS: dict[str, Callable[[Any], Any]] = {
    "no eval": lambda g: g.pop("eval"),
    "an op that reads files": lambda g: g["eval"]["graph"]["nodes"][-2].update(target="image.read_file.default"),
    "a function of Python": lambda g: g["eval"]["graph"]["nodes"][-2].update(target="os.system"),
    "tensors that are not there": lambda g: g["eval"]["tensors"].append("evil"),
    "fewer tensors": lambda g: g["eval"]["tensors"].pop(),
    "more outputs": lambda g: g["eval"].update(outputs={"kind": "tuple", "children": [{"kind": "leaf"}] * 2}),
    "no device": lambda g: g["eval"]["graph"]["nodes"].pop(0),
    "nodes are text": lambda g: g["eval"]["graph"].update(nodes="evil"),
}


@pytest.mark.parametrize("wrong", HOSTILE_GRAPHS)
def test_hostile_graphs(wrong: str, saved: Path) -> None:
    rewritten(saved, HOSTILE_GRAPHS[wrong], "graph.json")
    signed(saved)
    refused(saved, r".")


# -- failures while saving ----------------------------------------------------------------------------------------


def full_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the write of the file of that number; half of it has been written."""
    written = [0]

    def counted(write: Callable[..., Any], path: Callable[..., Path]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            written[0] += 1
            if written[0] == number:
                path(*args).write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*args, **kwargs)

        return wrapper

    save_file = tensor_files.save_file
    monkeypatch.setattr(tensor_files, "save_file", counted(save_file, lambda tensors, path, metadata=None: path))
    monkeypatch.setattr(Path, "write_text", counted(Path.write_text, lambda path, text: path))


@pytest.mark.parametrize("number", range(1, 6))
def test_a_full_disk_leaves_the_earlier_checkpoint(
    number: int, model: SortedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sorted"
    model.save(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with monkeypatch.context() as patch:
        full_at(number, patch)
        with pytest.raises(
            CheckpointError, match=r"cannot be written .*No space left.*holds what was saved there last"
        ) as refusal:
            model.save(folder)
    assert "\n" not in str(refusal.value)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert float(load(folder).state_dict()["net.0.weight"].abs().max()) > 0
    model.save(folder)
    assert float(load(folder).state_dict()["net.0.weight"].abs().max()) == 0


@pytest.mark.parametrize("number", range(1, 7))
def test_a_move_that_fails_leaves_one_checkpoint_whole(
    number: int, model: SortedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first move brings all new files; before it the old ones count, after it the new ones."""
    folder = tmp_path / "sorted"
    model.save(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    moves, replace = [0], os.replace

    def failing(source: Path, target: Path) -> None:
        moves[0] += 1
        if moves[0] == number:
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(CheckpointError, match=r"cannot be written .*Permission denied"):
            model.save(folder)
    assert (float(load(folder).state_dict()["net.0.weight"].abs().max()) > 0) is (number == 1)
    model.save(folder)
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)


def test_a_folder_that_cannot_be_made(model: SortedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written"):
        model.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_a_convolutional_network_keeps_its_blocks(tmp_path: Path) -> None:
    case = next(case for case in CONV if case.name == "resnet")
    model = sortify(case.build(), case.inputs()).eval()
    model.save(tmp_path / "sorted")
    again = load(tmp_path / "sorted")
    assert {name: len(chain.blocks) for name, chain in again.chains.items()} == {"stage1": 2, "stage2": 2}
    with model.using(width=0.5, depth=0.5), again.using(width=0.5, depth=0.5):
        assert_close_outputs(again(*case.inputs()), model(*case.inputs()), 0.0)
    small = again.extract(budget=0.5)
    with model.using(model.space.at(0.5)):
        assert_close_outputs(small(*case.inputs()), model(*case.inputs()), 1e-6)
