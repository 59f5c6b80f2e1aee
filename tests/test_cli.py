"""The commands as people type them: from a model file to a small model, for pictures, text and language models."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from cli_calls import call, errors, small_net, works, write_folder
from safetensors.torch import load_file
from typer.testing import Result

import sortify
from sortify.proof import proof
from sortify.training.train import _Run

MEMBERS = 4
"""Two widths times two depths."""


@dataclasses.dataclass(frozen=True)
class Walk:
    """A folder in which all commands ran one after the other, and what they printed."""

    folder: Path
    said: dict[str, Result]

    @property
    def sorted(self) -> Path:
        return self.folder / "sorted"


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The way of the documentation, word by word, in a folder whose sortify.toml names the data."""
    folder = write_folder(tmp_path_factory.mktemp("walk"))
    lines = (
        "convert model.pt",
        "train --dims width,depth",
        "evaluate",
        "extract --budget 0.5",
        "inspect",
        "verify",
    )
    return Walk(folder, {line.split()[0]: works(folder, *line.split()) for line in lines})


@pytest.fixture
def trained(walk: Walk, tmp_path: Path) -> Path:
    """A copy of that folder which a test may change."""
    return Path(shutil.copytree(walk.folder, tmp_path / "copy"))


# -- the way of the documentation -------------------------------------------------------------------------------------


def test_convert_tells_what_it_found_and_where_it_is(walk: Walk) -> None:
    text = walk.said["convert"].stdout
    assert "channels" in text
    assert "2 blocks" in text
    assert "elastic: " in text
    assert "slice = extraction" in text
    assert "FAILED" not in text
    assert text.splitlines()[-1] == "saved: sorted"
    assert sortify.load(walk.sorted).source == "model.pt"


def test_train_records_the_levels_of_the_settings(walk: Walk) -> None:
    trained = sortify.load(walk.sorted).space.trained
    assert trained is not None
    assert dict(trained.levels) == {"width": (0.5, 1.0), "depth": (0.5, 1.0)}
    assert "width 0.5, 1; depth 0.5, 1; 6 steps" in walk.said["train"].stdout
    assert json.loads((walk.sorted / "training" / "status.json").read_text())["config"]["steps"] == 6


def test_evaluate_writes_what_it_prints(walk: Walk) -> None:
    stored = json.loads((walk.sorted / "evaluation.json").read_text())
    assert len(stored["rows"]) == MEMBERS
    assert any(row["front"] for row in stored["rows"])
    assert (walk.sorted / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    text = walk.said["evaluate"].stdout
    assert "accuracy" in text
    assert "*" in text
    assert "sorted/evaluation.json" in text
    assert "sorted/evaluation.png" in text


def test_extract_writes_a_program_that_equals_its_subnetwork(walk: Walk) -> None:
    model = sortify.load(walk.sorted)
    subnet = model.choose(0.5).subnet
    small = torch.export.load(str(walk.folder / "extracted.pt2")).module()
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad(), model.using(subnet):
        expected = model(x)
        assert sortify.difference(expected, small(x)) <= 1e-5
        assert sortify.difference(expected, model.using(model.space.full) and small(x + 1)) > 1e-3
    assert model.cost(subnet).flops <= 0.5 * model.cost(model.space.full).flops
    text = walk.said["extract"].stdout
    assert f"chosen: {subnet}: the best within the budget of {MEMBERS} measured (accuracy " in text
    assert "extracted.pt2" in text
    assert "largest difference" in text
    assert errors(walk.said["extract"]) == []


def test_inspect_shows_axes_reasons_costs_and_levels(walk: Walk) -> None:
    model, text = sortify.load(walk.sorted), walk.said["inspect"].stdout
    assert all(name in text for name in model.chains)
    every = works(walk.folder, "inspect", "--all").stdout
    assert all(name in every for name in [*model.axes, *model.chains])
    assert "*.conv.channels" in text
    assert "1.conv.channels" not in text.replace("*.conv", "")
    assert "4 of 8, 8 of 16 (2 axes)" in text
    (chain,) = model.chains
    assert f"of {chain} the first 1 of 2 blocks" in text
    assert "kernel size" in text
    assert "trained: width 0.5, 1" in text
    assert "smallest" in text


def test_order_sorts_units_and_blocks_and_spares_what_was_trained(trained: Path) -> None:
    refused = call(trained, "order")
    assert refused.exit_code == 2
    assert "holds a model in training or trained" in refused.stderr
    works(trained, "convert", "model.pt", "--overwrite")
    before = sortify.load(trained / "sorted")
    assert "order by 'size': expected one of magnitude" in call(trained, "order", "--by", "size").stderr
    said = works(trained, "order", "--by", "taylor", "--batches", "2", "--batch-size", "16", "--blocks").stdout
    assert "ordered by taylor" in said
    assert "the first of these stay: " in said
    after = sortify.load(trained / "sorted")
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert sortify.difference(before(x), after(x)) < 1e-5
    assert any(not torch.equal(t, dict(before.named_parameters())[name]) for name, t in after.named_parameters())
    assert "trained: nothing yet; ordered by taylor, blocks too" in works(trained, "inspect").stdout
    facts = json.loads(works(trained, "inspect", "--json").stdout)
    assert facts["ordered"] == {"units": "taylor", "blocks": True}
    works(trained, "train", "--steps", "1")
    assert sortify.load(trained / "sorted").ordered == "taylor"


def test_profile_prints_measured_and_predicted_and_budgets_go_by_it(trained: Path) -> None:
    """What the machine says is not known; that it is shown, saved and used is."""
    weights = load_file(trained / "sorted" / "model.safetensors")
    result = works(trained, "profile", "--seconds", "0.1", "--subnets", "6", "--sizes", "batch=1", "--device", "cpu")
    assert all(word in result.stdout for word in ("predicted", "spread", "samples/s", "MB", "off in the median"))
    assert result.stdout.splitlines()[-1] == "saved: sorted"
    model = sortify.load(trained / "sorted")
    assert model.profiled is not None
    assert len(model.profiled.rows) == 6
    assert dict(model.profiled.sizes) == {"batch": 1}
    assert all(torch.equal(t, weights[name]) for name, t in load_file(trained / "sorted" / "model.safetensors").items())
    shown = works(trained, "inspect").stdout
    assert "latency and memory at batch=1" in shown
    assert "profile (device cpu" in shown
    facts = json.loads(works(trained, "inspect", "--json").stdout)
    assert sortify.Profile.from_json(facts["profile"]) == model.profiled
    said = works(trained, "extract", "--budget", "100% latency, 1 GB", "-o", "quick.pt2").stdout
    assert " ms " in said
    assert "the best within the budget of 4 measured" in said
    assert "was measured at batch=1" in call(trained, "extract", "--budget", "5ms", "--sizes", "batch=2").stderr
    assert "no device" in call(trained, "profile", "--device", "toaster").stderr


def test_inspect_as_json(walk: Walk) -> None:
    model = sortify.load(walk.sorted)
    facts = json.loads(works(walk.folder, "inspect", "--json").stdout)
    assert {axis["name"]: axis["size"] for axis in facts["axes"]} == {n: a.size for n, a in model.axes.items()}
    assert facts["costs"]["full"] == dataclasses.asdict(model.cost(model.space.full))
    assert facts["elastic"] >= 0.99
    assert facts["trained"]["levels"] == {"width": [0.5, 1.0], "depth": [0.5, 1.0]}
    assert len(facts["frozen"]) == len(model.frozen)


def test_verify_prints_every_check(walk: Walk) -> None:
    text = walk.said["verify"].stdout
    assert all(row.name in text for row in sortify.load(walk.sorted).verify().rows)
    assert "FAILED" not in text
    assert "checks passed" in text


def test_verify_ends_with_1_when_a_check_fails(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = proof.Report((proof.Check("identity (eval)", 0.5, 1e-5), proof.Check("permutation", 0.0, 1e-10)))
    monkeypatch.setattr(proof, "prove", lambda *_: wrong)
    result = call(walk.folder, "verify")
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert errors(result) == ["error: sorted: the proof fails: identity (eval)"]


def test_a_process_of_its_own(walk: Walk) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sortify_cli", "verify"], cwd=walk.folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "sorted: all" in done.stdout


# -- options ----------------------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_settings(trained: Path) -> None:
    works(trained, "train", "--dims", "depth", "--levels", "depth=0.5,1", "--steps", "1", "--sampler", "sandwich")
    levels = sortify.load(trained / "sorted").space.trained
    assert levels is not None
    assert levels.to_json() == {"levels": {"depth": [0.5, 1.0]}, "untied": [], "multiple": 1, "every": []}
    config = json.loads((trained / "sorted" / "training" / "status.json").read_text())["config"]
    assert (config["steps"], config["sampler"]) == (1, "sandwich")


def test_a_grid_of_ones_own(trained: Path) -> None:
    text = works(trained, "evaluate", "--grid", "width=0.5,0.75,depth=1").stdout
    stored = json.loads((trained / "sorted" / "evaluation.json").read_text())
    assert [row["subnet"]["fractions"] for row in stored["rows"]] == [
        {"width": 0.5, "depth": 1.0},
        {"width": 0.75, "depth": 1.0},
    ]
    assert "0.75" in text


def test_a_grid_that_sizes_do_not_allow_is_told(trained: Path) -> None:
    result = works(trained, "evaluate", "--grid", "depth=5")
    assert "--grid depth=5: 3 different sub-networks, not 5" in errors(result)[0]
    assert len(json.loads((trained / "sorted" / "evaluation.json").read_text())["rows"]) == 3


def test_untied_axes_and_multiples_are_trained_and_recorded(trained: Path) -> None:
    words = (
        "--untie",
        "channels",
        "--multiple",
        "4",
        "--levels",
        "width=0.25,0.5,1",
        "--dims",
        "width",
        "--steps",
        "2",
    )
    text = works(trained, "train", *words).stdout
    assert "trained: width 0.25, 0.5, 1; untied channels; multiples of 4; 2 steps" in text
    model = sortify.load(trained / "sorted")
    assert model.space.trained == sortify.Trained((("width", (0.25, 0.5, 1.0)),), ("channels",), 4)
    assert all(n % 4 == 0 for _, n in model.space.smallest.sizes)
    assert model.space.count > len(model.space.tied.members())
    assert "untied channels" in works(trained, "inspect").stdout


def test_budgets_have_units_and_several_hold_together(trained: Path) -> None:
    model = sortify.load(trained / "sorted")
    limit = model.cost(model.space.full).params - 1
    text = works(trained, "extract", "--budget", f"{limit} params", "--budget", "90%", "-o", "a.safetensors").stdout
    assert "chosen: " in text
    (trained / "sorted" / "evaluation.json").unlink()
    text = works(trained, "extract", "--budget", f"90%, {limit} params", "-o", "b.safetensors").stdout
    chosen = model.space.at(["90%", f"{limit} params"])
    assert f"chosen: {chosen}: the largest within the budget of the trained ones" in text
    flops = model.cost(chosen, batch=1).flops
    once = works(trained, "extract", "--budget", f"{flops} flops", "--sizes", "batch=1", "-o", "c.safetensors").stdout
    assert f"chosen: {chosen}:" in once
    assert "one call at batch=1" in once
    (trained / "sortify.toml").write_text('[extract]\nbudget = ["90%", "0.95 params"]\noutput = "d.safetensors"\n')
    assert "chosen: " in works(trained, "extract").stdout


def test_extract_a_given_subnetwork_as_weights(trained: Path) -> None:
    result = works(trained, "extract", "--width", "0.5", "-o", "small/net.safetensors")
    model = sortify.load(trained / "sorted")
    expected = model.extract(subnet=model.space.subnet(width=0.5)).state_dict()
    found = load_file(trained / "small" / "net.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert found["0.0.weight"].shape == (4, 1, 3, 3)
    assert errors(result) == []


def test_extract_tells_of_what_was_never_trained(trained: Path) -> None:
    result = works(trained, "extract", "--width", "0.75", "--format", "safetensors")
    assert len(errors(result)) == 1
    assert "width=0.75 depth=1 is none of the sub-networks that were trained" in errors(result)[0]
    assert (trained / "extracted.safetensors").is_file()


def test_extract_measures_statistics_that_are_missing(trained: Path) -> None:
    for name in ("fresh", "other"):
        works(trained, "convert", "model.pt", "-o", name)
    works(trained, "extract", "fresh", "--width", "0.5", "-o", "measured.safetensors")
    (trained / "sortify.toml").unlink()
    assert errors(works(trained, "extract", "fresh", "--width", "0.5", "-o", "kept.safetensors")) == []
    assert (trained / "kept.safetensors").read_bytes() == (trained / "measured.safetensors").read_bytes()
    result = works(trained, "extract", "other", "--width", "0.5", "-o", "plain.safetensors")
    assert len(errors(result)) == 1
    assert "batch-norm statistics are not those of width=0.5" in errors(result)[0]
    measured, plain = load_file(trained / "measured.safetensors"), load_file(trained / "plain.safetensors")
    assert torch.equal(plain["0.1.running_var"], torch.ones(4))
    assert not torch.equal(measured["0.1.running_var"], plain["0.1.running_var"])


def test_a_training_that_was_interrupted_goes_on(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--dims", "width", "--save-steps", "1")
    works(trained, "convert", "model.pt", "-o", "unbroken")
    works(trained, "train", "unbroken", *words)
    works(trained, "convert", "model.pt", "-o", "broken")
    with stopped_after(3, monkeypatch):
        result = call(trained, "train", "broken", *words)
    assert (result.exit_code, errors(result)[-1]) == (130, "interrupted")
    again = call(trained, "train", "broken", *words)
    assert again.exit_code == 1
    assert "--resume or --overwrite" in errors(again)[-1]
    assert call(trained, "convert", "model.pt", "-o", "broken").exit_code == 2
    works(trained, "train", "broken", *words, "--resume")
    expected, found = (sortify.load(trained / name).state_dict() for name in ("unbroken", "broken"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert "nothing to do" in works(trained, "train", "broken", *words, "--resume").stdout


@contextlib.contextmanager
def stopped_after(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C comes when this many steps are saved."""
    keep = _Run._keep

    def keep_and_stop(run: Any, *arguments: Any) -> None:
        keep(run, *arguments)
        if run._update.step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_keep", keep_and_stop)
        yield


def test_only_the_first_of_several_processes_prints(walk: Walk) -> None:
    assert call(walk.folder, "inspect", env={"RANK": "1"}).stdout == ""
    assert call(walk.folder, "inspect", env={"RANK": "0"}).stdout != ""


def test_converting_anew_removes_what_belonged_to_the_old_model(trained: Path) -> None:
    result = call(trained, "convert", "model.pt")
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert (trained / "sorted" / "evaluation.json").exists()
    works(trained, "convert", "model.pt", "--overwrite")
    assert sorted(path.name for path in (trained / "sorted").iterdir() if not path.suffix) == []
    assert not (trained / "sorted" / "evaluation.json").exists()
    assert sortify.load(trained / "sorted").space.trained is None


# -- other sources and tasks ------------------------------------------------------------------------------------------


def test_an_exported_program(tmp_path: Path) -> None:
    write_folder(tmp_path)
    example = (torch.randn(2, 1, 8, 8),)
    program = torch.export.export(small_net().eval(), example, dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, str(tmp_path / "model.pt2"))
    result = works(tmp_path, "convert", "model.pt2")
    assert errors(result) == [
        "warning: model.pt2 was exported in one mode: dropout and batch-norm act alike in training and in evaluation"
    ]
    x, model = torch.randn(3, 1, 8, 8), sortify.load(tmp_path / "sorted")
    with torch.no_grad():
        assert sortify.difference(small_net().eval()(x), model(x)) <= 1e-5
    assert "0.0.weight" in model.state_dict()
    works(tmp_path, "train", "--steps", "1")


def test_evaluation_alone_is_captured_on_request(tmp_path: Path) -> None:
    write_folder(tmp_path)
    text = works(tmp_path, "convert", "model.pt", "--eval-only").stdout
    assert "gradients" not in text
    assert any("only evaluation was captured" in frozen.why for frozen in sortify.load(tmp_path / "sorted").frozen)
    assert "gradients" in works(tmp_path, "convert", "model.pt", "--overwrite").stdout


def test_a_factory_of_the_working_folder(tmp_path: Path) -> None:
    lines = (
        "from torch import nn",
        "def net():",
        "    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))",
    )
    (tmp_path / "ownfactory.py").write_text("\n".join(lines))
    works(tmp_path, "convert", "ownfactory:net", "--input", "2x6", "--dir", "net")
    assert [axis.size for axis in sortify.load(tmp_path / "net").axes.values()] == [8]


def bert() -> transformers.PreTrainedModel:
    """Text classification."""
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=256, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    )


def llama() -> transformers.PreTrainedModel:
    """Language modelling with grouped key/value heads."""
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config)


def texts(path: Path, labels: bool) -> None:
    """Tokens, with a label each or without."""
    chance = numpy.random.default_rng(0)
    arrays = {f"x_{part}": chance.integers(1, 256, (16, 16)) for part in ("train", "test")}
    if labels:
        arrays |= {f"y_{part}": chance.integers(0, 2, 16) for part in ("train", "test")}
    numpy.savez(path, **arrays)


@pytest.mark.parametrize(
    ("make", "labels", "told"),
    [(bert, True, "classification on"), (llama, False, "language-modelling on")],
    ids=["text classification", "language modelling"],
)
def test_models_of_text(make: Any, labels: bool, told: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "language")
    texts(tmp_path / "data.npz", labels)
    assert "heads" in works(tmp_path, "convert", "transformers/language").stdout
    data = ("--data", "data.npz", "--batch-size", "8")
    said = works(tmp_path, "train", *data, "--dims", "width,heads,depth", "--levels", "2", "--steps", "2").stdout
    assert told in said
    found = works(tmp_path, "evaluate", *data, "--grid", "width=1,heads=1,depth=2").stdout
    assert ("accuracy" if labels else "token accuracy") in found
    result = works(tmp_path, "extract", "--budget", "0.5")
    assert errors(result) == []


# -- errors of our own ------------------------------------------------------------------------------------------------


def test_an_unexpected_error_is_one_line_with_its_name(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(sortify, "load", broken)
    result = call(walk.folder, "inspect")
    assert result.exit_code == 1
    line = "error: unexpected ZeroDivisionError: division by zero; run again with --verbose to see where it comes from"
    assert errors(result) == [line]
    for words in (["inspect", "--verbose"], ["-v", "inspect"]):
        shown = errors(call(walk.folder, *words))
        assert shown[0].startswith("Traceback")
        assert shown[-1] == line


def test_ctrl_c_is_one_line(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sortify, "load", stop)
    result = call(walk.folder, "verify")
    assert (result.exit_code, errors(result)) == (130, ["interrupted"])


@pytest.mark.parametrize(
    "words",
    [
        ["convert"],
        ["extract"],
        ["train", "--steps", "many"],
        ["nonsense"],
        ["inspect", "--nonsense"],
        ["extract", "--budget", "0.5", "--width", "0.5"],
        ["extract", "--budget", "0.5", "--format", "gguf"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(words: list[str], tmp_path: Path) -> None:
    result = call(tmp_path, *words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert os.listdir(tmp_path) == []
