"""Several processes train and evaluate as one does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import assert_same_tensors
from training_models import make_model
from training_script import make_trainer

from sortify import TrainingError, load

SCRIPT = Path(__file__).with_name("training_script.py")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("localhost", 0))
        return int(held.getsockname()[1])


def launched(directory: Path, *options: str, broken: bool = False, machines: int = 1) -> dict[str, list[float]]:
    """Train in two processes on this machine's CPU; return the first one's losses by kind of model.

    Args:
        broken: the training is to end with an error.
        machines: 2 for a launcher of its own for each process, as on two machines.
    """
    place = ["--nnodes", str(machines), "--nproc-per-node", str(2 // machines), "--master-port", str(free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    started = []
    for rank in range(machines):
        launcher = ["-m", "torch.distributed.run", *place, "--node-rank", str(rank), "--master-addr", "localhost"]
        command = [sys.executable, *launcher, str(SCRIPT), str(directory), *options]
        started.append(subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True))
    said = [each.communicate(timeout=280) for each in started]
    assert all((each.returncode == 0) != broken for each in started), "".join(error[-3000:] for _, error in said)
    if broken:
        return {}
    losses: dict[str, list[float]] = json.loads(said[0][0].strip().splitlines()[-1])
    return losses


def close(one: list[float], other: list[float], tolerance: float) -> bool:
    """Whether two lists of losses have the same length and differ nowhere by more than the tolerance."""
    return len(one) == len(other) and all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_two_processes_lose_as_much_as_one(tmp_path: Path) -> None:
    """An odd batch and, for language modelling, rows with different numbers of targets: both are weighted exactly.

    So are hidden features.
    """
    samplers = {"mlp-still": "random", "lm-still": "sandwich:features"}
    for kind in samplers:
        make_model(kind, seed=1).save(tmp_path / "two" / kind)
    found = launched(tmp_path / "two", "--batch", "7", *(f"{kind}:{sampler}" for kind, sampler in samplers.items()))
    for kind, sampler in samplers.items():
        name, _, objective = sampler.partition(":")
        settings = {"sampler": name, "objective": objective or "task"}
        alone = make_trainer(kind, tmp_path / "one" / kind, batch=7, **settings)
        expected = list(alone.run().losses)
        assert close(found[kind], expected, 1e-5)
        assert not close(found[kind], [*expected[:-1], expected[-1] + 2e-5], 1e-5)
        weights = load(tmp_path / "two" / kind).state_dict()
        for name, value in alone.model.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_two_machines_lose_as_much_as_one(tmp_path: Path) -> None:
    """`torchrun --nnodes 2`, a launcher for each, the folder being one that both see."""
    make_model("mlp-still", seed=1).save(tmp_path / "two" / "mlp-still")
    found = launched(tmp_path / "two", "mlp-still:random", "--steps", "5", machines=2)
    alone = make_trainer("mlp-still", tmp_path / "one", sampler="random", steps=5)
    assert close(found["mlp-still"], list(alone.run().losses), 1e-5)
    lines = [
        (path / "training" / "history.jsonl").read_text() for path in (tmp_path / "two/mlp-still", tmp_path / "one")
    ]
    one, two = ([[name for name, _ in json.loads(line)["draws"]] for line in own.splitlines()] for own in lines)
    assert one == two


@pytest.mark.slow
def test_two_processes_that_shard_the_weights_lose_as_much_as_one(tmp_path: Path) -> None:
    """FSDP2: broken off and resumed, it comes to what one process comes to in one go."""
    for kind in ("bn-still", "lm-still"):
        make_model(kind, seed=1).save(tmp_path / "two" / kind)
    runs = ("bn-still:random", "lm-still:sandwich")
    launched(tmp_path / "two", *runs, "--shard", "--save", "5", "--break-at", "6", broken=True)
    assert (tmp_path / "two" / "lm-still" / "training" / "state.pt").exists()
    found = launched(tmp_path / "two", runs[1], "--shard", "--save", "5", "--resume")
    alone = make_trainer("lm-still", tmp_path / "one", sampler="sandwich")
    assert close(found["lm-still"], list(alone.run().losses)[5:], 1e-5)
    weights = load(tmp_path / "two" / "lm-still").state_dict()
    assert weights.keys() == alone.model.state_dict().keys()
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-3)
    start, trained = make_model("bn-still", seed=1).state_dict(), load(tmp_path / "two" / "bn-still").state_dict()
    assert trained.keys() == start.keys()
    assert any(not torch.equal(value, start[name]) for name, value in trained.items())


def test_sharding_needs_processes_and_whole_gradients_elsewhere() -> None:
    with pytest.raises(TrainingError, match="there is one process"):
        make_trainer("mlp", None, shard=True).run()
    for options in ({"ema": 0.9}, {"project": True}, {"accumulate": "adaptive"}, {"precision": "fp16"}):
        with pytest.raises(TrainingError, match="shard does not go together with"):
            make_trainer("mlp", None, shard=True, **options)
    with pytest.raises(TrainingError, match="offload is for sharded training"):
        make_trainer("mlp", None, offload=True)


def test_the_comparison_can_fail() -> None:
    assert not close([1.0], [1.0, 1.0], 1.0)
    assert not close([1.0, 2.0], [1.0, 2.1], 1e-5)


# --- evaluation ------------------------------------------------------------------------------------------------------

GRID = "width=4,depth=4"


def evaluation(directory: Path, processes: int) -> subprocess.Popen[str]:
    """`sortify evaluate` on the digits in one process or several."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port())]
    words = ["sortify_cli", "evaluate", str(directory), "--data", "digits", "--grid", GRID, "--device", "cpu"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]


def evaluated(directory: Path, processes: int) -> tuple[str, dict[str, Any], str]:
    """Evaluate to the end; return what was printed, evaluation.json and evaluation.csv."""
    running = evaluation(directory, processes)
    said, complaints = running.communicate(timeout=280)
    assert running.returncode == 0, complaints[-3000:]
    stored = json.loads((directory / "evaluation.json").read_text())
    return said, stored, (directory / "evaluation.csv").read_text()


def rows_in(directory: Path) -> dict[str, Any]:
    """The rows that stand in a file now, by sub-network."""
    path = directory / "evaluation.json"
    stored = json.loads(path.read_text()) if path.exists() else {"rows": []}
    return {json.dumps(row["subnet"]["fractions"]): row for row in stored["rows"]}


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does_and_keep_what_was_measured(tmp_path: Path) -> None:
    model = make_model("bn", seed=1)
    for name in ("one", "two"):
        model.save(tmp_path / name)
    said, stored, table = evaluated(tmp_path / "one", 1)
    running = evaluation(tmp_path / "two", 2)
    while running.poll() is None and len(rows_in(tmp_path / "two")) < 2:
        time.sleep(0.01)
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    kept = rows_in(tmp_path / "two")
    alone = rows_in(tmp_path / "one")
    assert len(kept) >= 2
    assert all(row["metrics"] == alone[name]["metrics"] for name, row in kept.items())
    poisoned = json.loads((tmp_path / "two" / "evaluation.json").read_text())
    poisoned["rows"][0]["metrics"]["loss"] = 123.0  # shows whether this row is measured again
    (tmp_path / "two" / "evaluation.json").write_text(json.dumps(poisoned))
    found_said, found, found_table = evaluated(tmp_path / "two", 2)
    assert (found == stored, found_table == table) == (False, False)
    (wrong,) = (row for row in found["rows"] if row["metrics"]["loss"] == 123.0)
    wrong["metrics"]["loss"] = alone[json.dumps(wrong["subnet"]["fractions"])]["metrics"]["loss"]
    assert found == stored
    assert len(found_table.splitlines()) == len(table.splitlines()) == len(stored["rows"]) + 1 == 17
    assert found_said.count("saved:") == said.count("saved:") == 1
    one, two = (load(tmp_path / name).statistics for name in ("one", "two"))
    assert len(one) == 16
    assert len(two) >= 16 - len(kept)  # both processes' of the run that came to its end
    for subnet, own in two.items():
        assert_same_tensors(dict(own), dict(one[subnet]))
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
