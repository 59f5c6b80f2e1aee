"""The zoo sweep: a fixed sample of models passes, the comparison can fail, and the runner survives its children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from coverage_fakes import badly, well
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.coverage import check, feeds, models, report, sweep, tiny

LIMITS = sweep.Limits(seconds=30, memory=2**40)
TIGHT = sweep.Limits(seconds=4, memory=250 * 2**20)
LIGHT: dict[str, Any] = {"preload": ()}


# -- the sample


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", models.SAMPLE)
def test_a_model_of_the_sample_passes(name: str) -> None:
    row = check.check(name)
    assert row["status"] == "pass", row
    assert row["share"] >= check.SHARE or row["frozen"]
    assert row["axes"]
    assert set(row["errors"]) >= {"identity (eval)", "identity (train)", "smallest (eval)", "random (train)"}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def built(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.setattr(models, "build", lambda name, meta=False: make())


def test_a_row_says_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    built(monkeypatch, lambda: models.Built(mlp(), (torch.randn(2, 6),)))
    row = check.check("some/mlp")
    assert (row["status"], row["captured"], row["parameters"]) == ("pass", "whole", 83)
    assert sum(row["axes"].values()) == 1
    assert row["share"] == pytest.approx(80 / 83, abs=1e-6)  # all but the last bias
    assert sum(row["frozen"].values()) == pytest.approx(3 / 83, abs=1e-6)
    assert row["flops_share"] == 1.0


def test_evaluation_alone_is_captured_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    built(monkeypatch, lambda: models.Built(mlp(), (torch.randn(2, 6),)))
    row = check.check_evaluation("some/mlp")
    assert (row["status"], row["captured"]) == ("pass", "whole")
    assert set(row["errors"]) == {"permutation", "identity (eval)", "smallest (eval)", "random (eval)"}


def test_a_large_model_is_only_analysed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[bool]()

    def make(name: str, meta: bool = False) -> models.Built:
        asked.append(meta)
        with torch.device("meta"):
            return models.Built(mlp(), (torch.randn(2, 6),), meta=True)

    monkeypatch.setattr(models, "build", make)
    monkeypatch.setattr(models, "listed_size", lambda name: models.LARGEST_RUN + 1)
    row = check.check_evaluation("some/mlp")
    assert asked == [True]
    assert (row["status"], row["how"]) == ("pass", "analysis only, on the meta device")
    assert "errors" not in row


def test_what_cannot_be_built_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> models.Built:
        raise models.NotBuilt("no weights here")

    built(monkeypatch, make)
    row = check.check("some/model")
    assert (row["status"], row["message"]) == ("not-built", "no weights here")


def test_an_error_of_sortify_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    built(monkeypatch, lambda: models.Built(nn.ReLU(), (torch.randn(2, 6),)))
    row = check.check("some/relu")
    assert (row["status"], row["error"], row["stage"]) == ("refused", "AxesError", "convert")


def test_any_other_error_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **options: Any) -> Any:
        raise KeyError("some node")

    built(monkeypatch, lambda: models.Built(mlp(), (torch.randn(2, 6),)))
    monkeypatch.setattr(check, "sortify", wrong)
    row = check.check("some/mlp")
    assert (row["status"], row["error"], row["stage"]) == ("fail", "KeyError", "convert")


def test_a_missed_limit_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    built(monkeypatch, lambda: models.Built(mlp(), (torch.randn(2, 6),)))
    monkeypatch.setattr(check, "slicing", lambda *args: 1e-3)
    row = check.check("some/mlp")
    assert (row["status"], row["error"]) == ("fail", "LimitMissed")
    assert any(text.startswith("smallest (eval)") for text in row["missed"])


# -- the comparison


def test_equal_outputs_differ_by_nothing() -> None:
    value = {"a": torch.tensor([1.0, float("nan"), float("-inf")]), "b": (torch.tensor([1, 2]),)}
    assert check.difference(value, feeds.clone(value)) == 0.0


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([1.0, 2.001]),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, float("inf")]),
        torch.tensor([1.0, 2.0, 3.0]),
        torch.tensor([1, 2]),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0])),
    ],
)
def test_other_outputs_differ(other: Any) -> None:
    assert check.difference(torch.tensor([1.0, 2.0]), other) > 1e-4


def test_outputs_without_tensors_are_no_proof() -> None:
    assert check.difference(3, 3) == float("inf")


def test_a_wrong_model_is_no_identity() -> None:
    inputs = (torch.randn(2, 6),)
    model = check.sortify(mlp(), inputs)
    assert check.identity(model, mlp(), inputs, "eval")[0] > 1e-3


# -- tiny configurations


def test_a_tiny_configuration_is_small_in_every_part() -> None:
    config = tiny.tiny("clip", next(iter(tiny.strategies())))
    for part in (config.text_config, config.vision_config):
        assert (part.hidden_size, part.num_hidden_layers, part.num_attention_heads) == (64, 2, 4)
    assert config.text_config.vocab_size == tiny.VOCABULARY
    assert config.vision_config.image_size == 64


def test_special_tokens_stay_inside_the_vocabulary() -> None:
    config = tiny.tiny("gpt2", next(iter(tiny.strategies())))
    assert config.eos_token_id < config.vocab_size
    assert config.bos_token_id < config.vocab_size


# -- the runner


def test_every_name_gets_a_row_in_a_process_of_its_own() -> None:
    rows = list(sweep.run(["a", "b", "c"], well, LIMITS, jobs=2, **LIGHT))
    assert sorted(row["name"] for row in rows) == ["a", "b", "c"]
    assert len({row["pid"] for row in rows}) == 3


def test_time_memory_and_crashes_are_rows() -> None:
    rows = {r["name"]: r for r in sweep.run(["slow", "large", "crash", "raise", "fine"], badly, TIGHT, 2, **LIGHT)}
    errors = {name: row.get("error") for name, row in rows.items()}
    expected = {"slow": "TimeLimit", "large": "MemoryLimit", "crash": "Crashed", "raise": "Crashed", "fine": None}
    assert errors == expected
    assert "code 7" in rows["crash"]["message"]
    assert rows["fine"]["status"] == "pass"


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "zoo.jsonl"
    sweep.sweep(["a", "crash"], path, badly, LIMITS, 1, **LIGHT)
    with path.open("a") as file:
        file.write('{"name": "cut o')
    done = sweep.read(path)
    assert set(done) == {"a", "crash"}
    names = ["a", "crash", "b", "c"]
    assert sweep.left(names, done) == ["b", "c"]
    assert sweep.left(names, done, retry=["fail"]) == ["crash", "b", "c"]
    assert sweep.left(names, done, only="[ab]") == ["b"]
    sweep.sweep(["crash", "b"], path, well, LIMITS, 1, **LIGHT)
    assert {name: row["status"] for name, row in sweep.read(path).items()} == dict.fromkeys(["a", "crash", "b"], "pass")
    assert list(sweep.tidied(path, ["b", "c", "a"])) == ["b", "a"]
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["b", "a"]


def test_children_end_with_the_runner(tmp_path: Path) -> None:
    code = (
        "from coverage_fakes import badly\n"
        "from examples.coverage import sweep\n"
        "if __name__ == '__main__':\n"
        "    list(sweep.run(['slow'], badly, sweep.Limits(50), 1, ()))\n"
    )
    script = tmp_path / "runner.py"
    script.write_text(code)
    root = Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, (root, root / "tests")))
    runner = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": paths})
    try:
        children = until(lambda: workers(runner.pid))
        runner.kill()
        runner.wait(10)
        assert until(lambda: not any(child.is_running() for child in children))
    finally:
        runner.kill()


def workers(pid: int) -> list[psutil.Process]:
    """The checks of a runner: processes of its fork server that have lived for a moment."""
    servers = [p for p in psutil.Process(pid).children() if "forkserver" in " ".join(p.cmdline())]
    return [worker for server in servers for worker in server.children()]


def until(condition: Any, seconds: float = 30.0) -> Any:
    """The first true value of a condition; fails when none comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("nothing happened")


# -- the page

PASSED: dict[str, Any] = {
    "name": "timm/a",
    "status": "pass",
    "captured": "whole",
    "parameters": 1000,
    "axes": {"channels": 3},
    "blocks": 2,
    "share": 0.9,
    "flops_share": 1.0,
    "frozen": {"aten.x in m.layers.0 (/a/b/c.py:3): no rule": 0.1},
    "errors": {"permutation": 1e-12},
    "ratio": 0.5,
    "commit": "abc",
}
FAILED = {"status": "fail", "stage": "convert", "error": "KeyError", "message": "node_12"}
FOUND = {
    "timm/a": PASSED,
    "timm/b": {"name": "timm/b", **FAILED},
    "timm/c": {"name": "timm/c", **FAILED},
    "timm/d": {"name": "timm/d", "status": "not-built", "stage": "build", "error": "NotBuilt", "message": "no weights"},
}


def test_the_page_counts_and_groups() -> None:
    text = report.page(FOUND, "make zoo", 9)
    assert "Made by `make zoo`" in text
    assert "4 of the 9 models" in text
    assert "| timm | 4 | 3 | 1 (33.3%) | 1 (33.3%) | 1 | 0.9000 | 0.50 | 0.50 |" in text
    assert "| all |" not in text
    assert "| fail in convert: KeyError: node_12 | 2 | `timm/b`, `timm/c` |" in text
    assert "10.00% aten.x: no rule" in text
    assert "/a/b" not in text


def test_the_page_sums_up_all_heads_and_everything() -> None:
    parts = {"captured": "parts", "share": 1.0, "ratio": 1.5}
    more = [PASSED | {"name": "transformers/ctc/a"} | parts, PASSED | {"name": "transformers/base/b"}]
    text = report.page(FOUND | {str(row["name"]): row for row in more}, "make zoo", 9)
    assert "| transformers, all heads | 1 | 1 | 1 (100.0%) | 0 (0.0%) | 0 | 1.0000 | 1.50 | 1.50 |" in text
    assert "| all | 6 | 5 | 3 (60.0%) | 2 (40.0%) | 2 | 0.9000 | 0.50 | 1.50 |" in text


def test_developers_see_failures_and_lost_shares() -> None:
    text = report.developers(FOUND)
    assert "**2x** fail in convert: KeyError: node_12" in text
    assert "mean 10.0%: aten.x: no rule" in text


def test_a_page_names_no_folder_of_a_machine() -> None:
    stays = "timm/vit and github.com/a/b stay"
    assert report.without_folders(f"(at /some/env/lib-1/model.py:12); {stays}") == f"(at model.py:12); {stays}"
