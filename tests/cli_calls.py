"""The command line inside the test's process: a folder with a small model and its data, and calls in it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation
from typer.testing import CliRunner, Result

from sortify_cli.main import app

SETTINGS = """
data = "data.npz"

[convert]
input = "2x1x8x8"

[train]
steps = 6
batch-size = 16
levels = "2"
recalibrate = 2

[evaluate]
recalibrate = 2
"""


def small_net() -> nn.Module:
    """[B, 1, 8, 8] to [B, 3], of known classes: batch-norm, and a chain of two residual blocks."""
    torch.manual_seed(0)
    return nn.Sequential(
        Conv2dNormActivation(1, 8, 3),
        InvertedResidual(8, 8, 1, 2),
        InvertedResidual(8, 8, 1, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def pictures(count: int, seed: int) -> tuple[Any, Any]:
    """Float pictures whose brighter third tells the class."""
    chance = numpy.random.default_rng(seed)
    labels = chance.integers(0, 3, count)
    x = chance.random((count, 1, 8, 8), dtype=numpy.float32)
    x[numpy.arange(count), 0, 2 * labels] += 2
    return x, labels


def write_data(path: Path, **changed: Any) -> None:
    """Write an .npz file of pictures; arrays can be given in their place."""
    (x_train, y_train), (x_test, y_test) = pictures(48, 0), pictures(24, 1)
    numpy.savez(path, **{"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test, **changed})


def write_folder(folder: Path) -> Path:
    """Put model.pt, data.npz and sortify.toml into a folder."""
    torch.save(small_net(), folder / "model.pt")
    write_data(folder / "data.npz")
    (folder / "sortify.toml").write_text(SETTINGS)
    return folder


def call(folder: Path, *words: str | Path, env: dict[str, str | None] | None = None) -> Result:
    """Run `sortify WORDS` in a folder."""
    with contextlib.chdir(folder):
        return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160", **(env or {})})


def works(folder: Path, *words: str | Path) -> Result:
    """Run `sortify WORDS`, which must end well; whatever it printed is in the failure's text."""
    result = call(folder, *words)
    assert result.exit_code == 0, f"sortify {' '.join(map(str, words))}\n{result.output}{result.exception!r}"
    return result


def errors(result: Result) -> list[str]:
    """The lines on standard error."""
    return [line for line in result.stderr.splitlines() if line.strip()]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
