"""Several processes train as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_models import make_model
from training_script import make_trainer

from sortify import load

SCRIPT = Path(__file__).with_name("training_script.py")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("localhost", 0))
        return int(held.getsockname()[1])


def launched(directory: Path, *options: str) -> dict[str, list[float]]:
    """Train in two processes on this machine's CPU; return the first one's losses by kind of model."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [sys.executable, *launcher, str(SCRIPT), str(directory), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses: dict[str, list[float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return losses


def close(one: list[float], other: list[float], tolerance: float) -> bool:
    """Whether two lists of losses have the same length and differ nowhere by more than the tolerance."""
    return len(one) == len(other) and all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_two_processes_lose_as_much_as_one(tmp_path: Path) -> None:
    """An odd batch and, for language modelling, rows with different numbers of targets: both are weighted exactly."""
    samplers = {"mlp-still": "random", "lm-still": "sandwich"}
    for kind in samplers:
        make_model(kind, seed=1).save(tmp_path / "two" / kind)
    found = launched(tmp_path / "two", "--batch", "7", *(f"{kind}:{sampler}" for kind, sampler in samplers.items()))
    for kind, sampler in samplers.items():
        alone = make_trainer(kind, tmp_path / "one" / kind, batch=7, sampler=sampler)
        expected = list(alone.run().losses)
        assert close(found[kind], expected, 1e-5)
        assert not close(found[kind], [*expected[:-1], expected[-1] + 2e-5], 1e-5)
        weights = load(tmp_path / "two" / kind).state_dict()
        for name, value in alone.model.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-3)


def test_the_comparison_can_fail() -> None:
    assert not close([1.0], [1.0, 1.0], 1.0)
    assert not close([1.0, 2.0], [1.0, 2.1], 1e-5)
