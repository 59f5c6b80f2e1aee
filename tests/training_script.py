"""Small trainings as a program of its own, to be killed or run in several processes: see test_train, test_distributed.

    python training_script.py DIR KIND:SAMPLER[:OBJECTIVE] ... [--resume] [--steps N] [--save N] [--batch N] ...

Each training goes to DIR/KIND. The first process prints the losses of all, by kind, as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from training_models import make_model

from sortify import load
from sortify.data.batches import mix
from sortify.data.load import Data
from sortify.training.config import TrainConfig
from sortify.training.train import Trainer
from sortify.training.update import SortedUpdate


class Slow(torch.utils.data.Dataset[Any]):
    """Random samples of a kind, each a function of its index, handed out with a delay."""

    def __init__(self, kind: str, wait: float) -> None:
        self.kind, self.wait = kind, wait

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.wait)
        chance = torch.Generator().manual_seed(mix("sample", index))
        if self.kind == "lm":
            tokens = torch.randint(256, (16,), generator=chance)
            cut = int(torch.randint(3, 17, (1,), generator=chance))
            return {"input_ids": tokens, "labels": torch.where(torch.arange(16) < cut, tokens, -100)}
        return torch.randn(1, 8, 8, generator=chance), index % 10


def make_data(kind: str, batch: int, wait: float = 0.0) -> Data:
    loader = torch.utils.data.DataLoader(Slow(kind, wait), batch_size=batch, shuffle=True)
    return Data(loader, loader, "language-modelling" if kind == "lm" else "classification")


def make_trainer(kind: str, directory: Path | None, batch: int = 8, wait: float = 0.0, **config: Any) -> Trainer:
    """The training of a small model of a kind."""
    if directory is not None and not (directory / "sortify.json").exists():
        make_model(kind, seed=1).save(directory)
    model = make_model(kind, seed=1) if directory is None else load(directory)
    usual = {"steps": 12, "lr": 0.01, "save_minutes": None, "sampler": "sandwich", "device": "cpu", "log": "none"}
    data = make_data(kind.partition("-")[0], batch, wait)
    return Trainer(model, data, TrainConfig(**{**usual, **config}), directory=directory, progress=False)


def break_off(step: int) -> None:
    """End every training of this process with an error after an update."""
    real = SortedUpdate.__call__

    def broken(self: SortedUpdate, *args: Any, **kwargs: Any) -> Any:
        drawn = real(self, *args, **kwargs)
        if self.step > step:
            raise KeyboardInterrupt
        return drawn

    SortedUpdate.__call__ = broken  # type: ignore[method-assign]


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("runs", nargs="+", help="KIND:SAMPLER[:OBJECTIVE]; the model stands in DIR/KIND already")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--wait", type=float, default=0.0)
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--break-at", type=int, help="end the last training with an error after this step")
    given = parser.parse_args()
    losses = {}
    for kind, sampler, objective in (f"{run}:task".split(":")[:3] for run in given.runs):
        settings = {"steps": given.steps, "save_steps": given.save, "sampler": sampler, "shard": given.shard}
        settings["objective"] = objective
        trainer = make_trainer(kind, given.directory / kind, given.batch, given.wait, **settings)
        if given.break_at is not None and kind == given.runs[-1].partition(":")[0]:
            break_off(given.break_at)
        losses[kind] = trainer.run(resume=given.resume).losses
    if PartialState().is_main_process:
        print(json.dumps(losses))
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
