"""kill -9 while saving and extracting: `make kill`.

A process writes one output over and over, each time with another number in all weights; it is killed at a random
moment, and what is there is read: all of it is of one number, and not older than what was complete before the kill.
Three outputs take turns: a checkpoint (in one file of weights and in several by turns), a model in parts, and an
extracted file. In the end one undisturbed save must leave nothing but the output itself.

    python tests/long/kill_saves.py [--kills 100] [--seed 0]
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers stand beside the tests

import golden_checkpoints as golden
import torch
from safetensors.torch import load_file

from sortify import load, write

PROCESSES = multiprocessing.get_context("fork")  # what is imported is imported


class Output:
    """One kind of output in a folder of its own.

    Attributes:
        kind: whole, parts or extract.
        target: the file or folder that is written.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.target = kind, folder / kind / "model"
        model = self._load(golden.FOLDER / "v2" / ("parts" if kind == "parts" else "whole"))
        self._examples = model.example_tensors
        self._model: Any = model.extract(width=0.5) if kind == "extract" else model

    def _load(self, folder: Path) -> Any:
        return load(folder, golden.Router() if self.kind == "parts" else None, verify=True)

    def write(self, number: int) -> None:
        """Write the output with this number in all weights."""
        with torch.no_grad():
            for parameter in self._model.parameters():
                parameter.fill_(number)
        if self.kind == "extract":
            write(self._model, self._examples, self.target, "safetensors")
        else:
            self._model.save(self.target, max_shard_size="2KB" if number % 2 else "5GB")

    def read(self) -> int:
        """The number that the output holds.

        Raises:
            AssertionError: it holds several.
            Exception: it cannot be read.
        """
        names = dict(self._model.named_parameters())
        state = load_file(self.target) if self.kind == "extract" else self._load(self.target).state_dict()
        numbers = {float(value) for name in names for value in state[name].unique()}
        assert len(numbers) == 1, f"{self.kind}: of several outputs: {sorted(numbers)}"
        return int(numbers.pop())

    def left_over(self) -> list[str]:
        """Temporary places beside and in the output."""
        hidden = [path.name for path in self.target.parent.rglob(".*")]
        return [name for name in hidden if ".unfinished-" in name or name == ".pending"]


def go_on(output: Output, done: Any) -> None:
    while True:
        output.write(done.value + 1)
        done.value += 1


def kill_once(output: Output, number: int, seconds: float) -> int:
    """Write from this number on, kill after one output and so many seconds more; the number that is there."""
    done = PROCESSES.RawValue("q", number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a process with threads was forked: they are idle
        process = PROCESSES.Process(target=go_on, args=(output, done))
        process.start()
    while done.value == number:
        assert process.is_alive(), f"{output.kind}: the writer ended by itself"
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    process.join()
    found = output.read()
    assert found in (done.value, done.value + 1), f"{output.kind}: {found} is there after {done.value}"
    return found


def run(kills: int, seed: int, folder: Path) -> Counter[str]:
    """Kill so many times; how often each kind was killed, and how often something was left over."""
    draw, counts = random.Random(seed), Counter[str]()
    outputs = [Output(kind, folder) for kind in ("whole", "parts", "extract")]
    numbers = dict.fromkeys(outputs, 0)
    for kill in range(kills):
        output = outputs[kill % len(outputs)]
        numbers[output] = kill_once(output, numbers[output], draw.uniform(0, 0.3))
        counts.update([output.kind, *(["left over"] if output.left_over() else [])])
    for output in outputs[:kills]:
        output.write(-1)
        assert output.read() == -1
        assert output.left_over() == []
        assert [path.name for path in output.target.parent.iterdir()] == ["model"]
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        counts = run(options.kills, options.seed, Path(folder))
    told = ", ".join(f"{kind} {counts[kind]}" for kind in ("whole", "parts", "extract"))
    print(f"{options.kills} kills ({told}), {counts['left over']} of them left something over: every output is whole")
    return 0


if __name__ == "__main__":
    sys.exit(main())
