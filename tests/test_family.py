"""Families: one folder with the sub-network for each budget and an index, all of it or nothing."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
import transformers
from cli_calls import call, works, write_folder
from compare import assert_close_outputs
from safetensors.torch import load_file
from test_native import bert
from zoo import MODELS

from sortify import (
    BudgetError,
    ProofError,
    SortedModel,
    SortifyError,
    Subnet,
    Trained,
    extract_family,
    load,
    sortify,
    write_subnet,
)
from sortify.formats import table
from sortify.formats.table import FORMATS
from sortify.models.scores import Scores

CASES = {case.name: case for case in MODELS}


@functools.cache
def converted(name: str) -> SortedModel:
    model = sortify(CASES[name].build(), CASES[name].inputs()).eval()
    model.record_trained(Trained((("width", (0.25, 0.5, 1.0)), ("depth", (0.5, 1.0)))))
    return model


def test_members_are_the_sub_networks_of_the_budgets(tmp_path: Path) -> None:
    model = converted("residual_mlp")
    family = extract_family(model, ["0.25", 0.5, "100%"], tmp_path / "family", form="safetensors")
    index = json.loads((tmp_path / "family/index.json").read_text())
    assert index == family.to_json()
    assert [row["path"] for row in index["members"]] == [f"{n}.safetensors" for n in ("0.25", "0.5", "100-percent")]
    assert sorted(path.name for path in (tmp_path / "family").iterdir()) == sorted(
        ["index.json", *(row["path"] for row in index["members"])]
    )
    assert family.notes == ()
    for row in index["members"]:
        chosen = model.choose(row["budget"]).subnet
        assert Subnet.from_json(row["subnet"]) == chosen
        assert (row["flops"], row["params"]) == (model.cost(chosen).flops, model.cost(chosen).params)
        state = load_file(tmp_path / "family" / row["path"])
        assert sum(tensor.numel() for tensor in state.values()) == row["params"]
        assert row["difference"] <= 1e-5
        assert (row["score"], row["format"]) == (None, "safetensors")
    assert index["metric"] is None
    assert len({row["params"] for row in index["members"]}) == 3


def test_members_of_another_format_run(tmp_path: Path) -> None:
    model = converted("tied_embeddings")
    family = extract_family(model, ["0.5", "1"], tmp_path / "family", form="onnx", batch=3, sequence=7)
    assert family.sizes == {"batch": 3, "sequence": 7}
    tokens = torch.randint(0, 30, (3, 7))
    outputs = []
    for member in family.members:
        session = onnxruntime.InferenceSession(tmp_path / "family" / member.path, providers=["CPUExecutionProvider"])
        outputs.append(torch.from_numpy(session.run(None, {"tokens": tokens.numpy()})[0]))
        with torch.no_grad(), model.using(member.subnet):
            assert_close_outputs(outputs[-1], model(tokens), 1e-5)
        assert member.cost == model.cost(member.subnet, batch=3, sequence=7)
    with pytest.raises(AssertionError, match="differ"):
        assert_close_outputs(outputs[0], outputs[1], 1e-5)


def test_budgets_of_one_sub_network_share_its_file_and_are_told(tmp_path: Path) -> None:
    model, seen = converted("residual_mlp"), list[Subnet]()
    family = extract_family(
        model, ["0.99", "0.98", "1.0"], tmp_path / "family", form="safetensors", prepare=seen.append
    )
    first, second, whole = family.members
    assert first.subnet == second.subnet != whole.subnet
    assert first.path == second.path == "0.99.safetensors"
    assert family.notes == (f"budgets 0.99 and 0.98 give the same sub-network, {first.subnet}: it is written once",)
    assert seen == [first.subnet, whole.subnet]
    assert len(list((tmp_path / "family").iterdir())) == 3


def test_measured_scores_are_in_the_index(tmp_path: Path) -> None:
    model = sortify(CASES["residual_mlp"].build(), CASES["residual_mlp"].inputs()).eval()
    full = model.space.full
    model.record_scores(Scores("accuracy", model._fingerprint(), {full: 0.75}))
    chosen = extract_family(model, ["0.3", "1"], tmp_path / "first", form="safetensors")
    assert [member.score for member in chosen.members] == [None, 0.75]
    assert chosen.to_json()["metric"] == "accuracy"
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    stale = extract_family(model, ["1"], tmp_path / "second", form="safetensors")
    assert (stale.members[0].score, stale.metric) == (None, None)


def test_a_budget_that_nothing_fits_writes_nothing(tmp_path: Path) -> None:
    seen = list[Subnet]()
    for budgets, words in (
        (["0.5", "0.0001"], "too small: the smallest reachable is"),
        (["0.5", "fast"], "fast"),
        ([], "a family needs budgets"),
    ):
        with pytest.raises(BudgetError, match=words) as refusal:
            extract_family(converted("residual_mlp"), budgets, tmp_path / "family", prepare=seen.append)
        assert "\n" not in str(refusal.value)
    with pytest.raises(SortifyError, match="format 'gguf': expected one of auto, pt2"):
        extract_family(converted("residual_mlp"), ["1"], tmp_path / "family", form="gguf")
    assert list(tmp_path.iterdir()) == []
    assert seen == []


def test_the_folder_appears_when_all_members_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = converted("residual_mlp"), []
    right = FORMATS["safetensors"]

    def second_fails(*given: object) -> None:
        calls.append(given)
        right.write(*given)  # type: ignore[arg-type]
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(table, "FORMATS", {"safetensors": replace(right, write=second_fails)})
    with pytest.raises(SortifyError, match="No space left on device"):
        extract_family(model, ["0.5", "1"], tmp_path / "family", form="safetensors")
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    (tmp_path / "family").mkdir()
    (tmp_path / "family/mine.txt").write_text("mine")
    with pytest.raises(SortifyError, match="there is something already; name a folder that is new or empty"):
        extract_family(converted("residual_mlp"), ["1"], tmp_path / "family")
    assert [path.read_text() for path in (tmp_path / "family").iterdir()] == ["mine"]


def test_an_extraction_that_is_another_function_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted("residual_mlp")
    other = model.extract(subnet=model.space.full)
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    monkeypatch.setattr(type(model), "extract", lambda *_, **__: other)
    with pytest.raises(ProofError, match="not written: the extracted model's outputs differ"):
        write_subnet(model, model.space.full, tmp_path / "small.safetensors")
    assert list(tmp_path.iterdir()) == []


# -- the command


def test_the_command_prints_a_table_and_takes_data_for_each_member(tmp_path: Path) -> None:
    write_folder(tmp_path)
    works(tmp_path, "convert", "model.pt")
    result = works(tmp_path, "extract", "--budgets", "0.4, 100%", "-o", "nets")
    rows = json.loads((tmp_path / "nets/index.json").read_text())["members"]
    assert [row["path"] for row in rows] == ["0.4.pt2", "100-percent.pt2"]
    assert all(word in result.stdout for row in rows for word in (row["name"], row["path"], row["budget"]))
    assert "saved: nets  (index.json lists 2 members)" in result.stdout
    assert "warning" not in result.stderr  # the data of sortify.toml measured the statistics
    x = torch.randn(5, 1, 8, 8)
    small, whole = (torch.export.load(str(tmp_path / "nets" / row["path"])).module()(x) for row in rows)
    with torch.no_grad():
        assert_close_outputs(whole, load(tmp_path / "sorted")(x), 1e-5)
    with pytest.raises(AssertionError, match="differ"):
        assert_close_outputs(whole, small, 1e-5)
    for line, status in (
        ("extract --budgets 0.5,0.0001 -o other", 1),
        ("extract --budgets 0.5 --budget 0.5 -o other", 2),
        ("extract --budgets 0.5 --width 0.5 -o other", 2),
        ("extract --budgets 0.5 -o nets", 1),
    ):
        assert call(tmp_path, *line.split()).exit_code == status
    assert not (tmp_path / "other").exists()
    with (tmp_path / "sortify.toml").open("a") as settings:
        settings.write('\n[extract]\nbudgets = "0.5"\noutput = "named"\n')
    works(tmp_path, "extract", "--budget", "0.5", "--format", "safetensors")
    assert (tmp_path / "named.safetensors").is_file()
    works(tmp_path, "extract")
    assert (tmp_path / "named/index.json").is_file()


def test_native_members_are_models_of_the_class(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "given")  # type: ignore[operator]
    works(tmp_path, "convert", "transformers/given")
    said = works(tmp_path, "extract", "--budgets", "0.5,1", "--native", "-o", "family").stdout
    rows = json.loads((tmp_path / "family/index.json").read_text())["members"]
    assert [(row["path"], row["format"]) for row in rows] == [("0.5", "huggingface"), ("1", "huggingface")]
    assert "huggingface" in said
    sizes = []
    for row in rows:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "family" / row["path"])
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
    assert sizes == [row["params"] for row in rows]
    assert sizes[0] < sizes[1]
