"""Training: the update, the learning rate, checkpoints, exact resume, and what stops it."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor
from training_models import make_model
from training_script import make_data, make_trainer

from sortify import load
from sortify.data.load import Data, load_data
from sortify.errors import DataError, TrainingError
from sortify.space.space import Subnet
from sortify.tasks.classes import Classification
from sortify.training.config import TrainConfig
from sortify.training.gradients import average_gradients
from sortify.training.parts import make_optimizer
from sortify.training.progress import Lines, make_show
from sortify.training.samplers import levels_for, make_sampler
from sortify.training.state import StateFolder
from sortify.training.train import Trainer
from sortify.training.update import SortedUpdate

SCRIPT = Path(__file__).with_name("training_script.py")


class Stopped(Exception):
    """Stands for a power cut."""


def weights(directory: Path) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in load(directory).state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stop_at(trainer: Trainer, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break a training off within optimiser step `step`, after its gradients are there."""
    real = SortedUpdate.__call__

    def broken(self: SortedUpdate, *args: Any, **kwargs: Any) -> Any:
        drawn = real(self, *args, **kwargs)
        if self.step > step:
            raise Stopped
        return drawn

    with monkeypatch.context() as patch:
        patch.setattr(SortedUpdate, "__call__", broken)
        with pytest.raises(Stopped):
            trainer.run()


# --- the update ------------------------------------------------------------------------------------------------------


def test_gradients_are_the_mean_over_the_draws() -> None:
    model = make_model("mlp")
    inputs, labels = torch.randn(5, 1, 8, 8), torch.arange(5)
    sampler = make_sampler("sandwich", model.space, levels_for(model.space, ("width", "depth")), 3)
    update = SortedUpdate(model, sampler, seed=4)

    def loss() -> Tensor:
        return torch.nn.functional.cross_entropy(model(inputs), labels)

    subnets = update.draw()
    drawn = update(loss)
    found = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad()
    for subnet in subnets:
        with model.using(subnet):
            (loss() / 3).backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(found[name], value.grad)
    assert [draw.subnet for draw in drawn] == subnets
    assert (update.step, model.active) == (1, model.space.full)
    assert update.draw() != subnets


def test_an_update_of_any_loop_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = make_model("mlp"), load_data("digits", batch_size=128)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    update = SortedUpdate(model, make_sampler("random", model.space, levels_for(model.space, ("width",)), 2))
    losses = []
    for _ in range(4):
        for x, y in data.train:
            drawn = update(lambda x=x, y=y: torch.nn.functional.cross_entropy(model(x), y))  # type: ignore[misc]
            optimizer.step()
            optimizer.zero_grad()
            losses += [float(draw.loss) for draw in drawn]
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])


def test_a_failing_loss_leaves_the_active_sub_network_as_it_was() -> None:
    model = make_model("mlp")
    half = model.activate(width=0.5)
    update = SortedUpdate(model, make_sampler("random", model.space, levels_for(model.space, ("depth",)), 2))

    def loss() -> Tensor:
        raise Stopped

    with pytest.raises(Stopped):
        update(loss)
    assert (model.active, update.step) == (half, 0)


def test_one_process_reduces_nothing() -> None:
    model = make_model("mlp")
    average_gradients(model.parameters(), Accelerator())
    assert all(parameter.grad is None for parameter in model.parameters())


# --- the configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rates(schedule: str) -> None:
    config = TrainConfig(lr=2.0, schedule=schedule, warmup=0.1)
    rates = [config.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(2 / 11)
    assert rates[10] == 2.0 == max(rates)
    assert sorted(rates[:11]) == rates[:11]
    assert sorted(rates[10:], reverse=True) == rates[10:]
    end = {"cosine": 1 + math.cos(math.pi * 89 / 90), "linear": 2 / 90, "constant": 2.0}
    assert rates[-1] == pytest.approx(end[schedule])


def test_norms_and_biases_do_not_decay() -> None:
    groups = make_optimizer(make_model("mlp"), TrainConfig(weight_decay=0.3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert {value.dim() for value in groups[0]["params"]} == {2}
    assert {value.dim() for value in groups[1]["params"]} == {1}
    assert isinstance(make_optimizer(make_model("mlp"), TrainConfig(optimizer="sgd")), torch.optim.SGD)
    with pytest.raises(TrainingError, match="no parameters to train"):
        make_optimizer(torch.nn.ReLU(), TrainConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "best"}, "unknown sampler 'best'; there are random, sandwich"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
        ({"schedule": "step"}, "unknown schedule 'step'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"lr": math.nan}, "lr must be above 0, got nan"),
        ({"epochs": 0}, "epochs must be above 0, got 0"),
        ({"clip": -1.0}, "clip must be above 0"),
        ({"warmup": 1.0}, "warmup must be 0 or more and below 1, got 1.0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    "config", [TrainConfig(), TrainConfig(dims=("width",), levels={"width": (0.5, 1.0)}, steps=3, clip=None)]
)
def test_a_configuration_survives_json(config: TrainConfig) -> None:
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(TrainingError, match="unknown training option 'colour'"):
        TrainConfig.from_json({"colour": 1})


def test_what_may_change_on_resume() -> None:
    assert TrainConfig().differs_from(TrainConfig(save_steps=5, device="cpu")) == []
    assert TrainConfig().differs_from(TrainConfig(lr=1.0, seed=3)) == ["lr", "seed"]


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "sandwich"])
def test_training_learns_and_repeats_itself(sampler: str) -> None:
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(results))
        model = make_model("mlp")
        data = load_data("digits", model=model)
        config = TrainConfig(epochs=3, lr=5e-3, sampler=sampler, seed=seed)
        results.append((Trainer(model, data, config).run(), model.state_dict()))
    assert results[0][0].losses == results[1][0].losses
    assert same(results[0][1], results[1][1])
    assert results[0][0].losses != results[2][0].losses
    losses = results[0][0].losses
    assert results[0][0].steps == len(losses) == 3 * 22
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_the_trained_levels_are_recorded_and_the_model_saved(tmp_path: Path) -> None:
    trainer = make_trainer("mlp", tmp_path, dims=("width",), levels=2)
    before = weights(tmp_path)
    result = trainer.run()
    saved = load(tmp_path)
    assert saved.space.trained is not None
    assert saved.space.trained.levels == result.levels == (("width", (0.5, 1.0)),)
    assert not same(before, weights(tmp_path))
    assert same(weights(tmp_path), trainer.model.state_dict())
    assert not trainer.model.training
    lines = StateFolder(tmp_path).history()
    assert [line["loss"] for line in lines] == list(result.losses)
    assert [line["step"] for line in lines] == list(range(12))
    assert len(lines[0]["draws"]) == 4


@pytest.mark.parametrize(
    ("shared", "accumulate", "epochs", "steps"),
    [(True, 4, 2, 10), (False, 4, 2, 3), (False, 1, 1, 5), (None, None, 1, 5)],
)
def test_epochs_count_mini_batches(shared: bool | None, accumulate: int | None, epochs: int, steps: int) -> None:
    trainer = make_trainer("mlp", None, steps=None, epochs=epochs, accumulate=accumulate, share_batch=shared)
    assert trainer.run().steps == steps


def test_each_draw_of_the_random_sampler_sees_its_own_mini_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = Classification.loss
    monkeypatch.setattr(
        Classification, "loss", lambda self, out, target: (seen.append(target), real(self, out, target))[1]
    )
    make_trainer("mlp", None, steps=1, sampler="random", accumulate=3).run()
    assert len({tuple(target.tolist()) for target in seen}) == 3
    seen.clear()
    make_trainer("mlp", None, steps=1, sampler="sandwich", accumulate=3).run()
    assert len({tuple(target.tolist()) for target in seen}) == 1


@pytest.mark.parametrize("kind", ["bn", "lm"])
def test_other_kinds_of_models_train(kind: str) -> None:
    losses = make_trainer(kind, None, steps=60, lr=0.02).run().losses
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_trains_float32_weights(precision: str) -> None:
    trainer = make_trainer("mlp-still", None, precision=precision)
    exact = make_trainer("mlp-still", None, precision="no").run().losses
    losses = trainer.run().losses
    assert losses != exact
    assert losses == pytest.approx(exact, rel=0.1)
    assert {value.dtype for value in trainer.model.parameters()} == {torch.float32}


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "lm"])
@pytest.mark.parametrize("sampler", ["random", "sandwich", "sandwich chain"])
@pytest.mark.parametrize("stop", [0, 4, 5, 11])
def test_a_resumed_training_equals_an_unbroken_one(
    kind: str, sampler: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, objective = sampler.partition(" ")
    settings: dict[str, Any] = {"sampler": name, "accumulate": 3, "save_steps": 5, "objective": objective or "task"}
    whole = make_trainer(kind, tmp_path / "whole", **settings).run()
    stop_at(make_trainer(kind, tmp_path / "cut", **settings), stop, monkeypatch)
    torch.manual_seed(99)
    rest = make_trainer(kind, tmp_path / "cut", **settings).run(resume=True)
    first = stop // 5 * 5
    assert rest.losses == whole.losses[first:]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert StateFolder(tmp_path / "whole").history() == StateFolder(tmp_path / "cut").history()


def test_the_comparison_of_weights_sees_the_last_bit(tmp_path: Path) -> None:
    one, other = weights_of(make_model("mlp")), weights_of(make_model("mlp"))
    assert same(one, other)
    name = next(iter(other))
    other[name].view(-1)[0] = torch.nextafter(other[name].view(-1)[0], torch.tensor(9.0))
    assert not same(one, other)
    assert not same(one, dict(list(one.items())[1:]))


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sampler": "random", "steps": 150, "save_steps": 2}
    make_trainer("mlp", tmp_path / "whole", **settings).run()
    cut = tmp_path / "mlp"
    make_model("mlp", seed=1).save(cut)
    command = [sys.executable, str(SCRIPT), str(tmp_path), "mlp:random", "--steps", "150", "--save", "2"]
    state = cut / "training" / "state.pt"
    kills = 0
    for saves, resume in ((4, []), (9, ["--resume"])):
        process = subprocess.Popen([*command, "--wait", "0.002", *resume])
        try:
            wait_for_saves(state, saves, process)
        finally:
            process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    assert state.exists()
    result = make_trainer("mlp", cut, **settings).run(resume=True)
    assert 0 < len(result.losses) < 150
    assert same(weights(tmp_path / "whole"), weights(cut))
    assert StateFolder(tmp_path / "whole").history() == StateFolder(cut).history()
    assert sorted(path.name for path in state.parent.iterdir()) == ["history.jsonl", "status.json"]


def wait_for_saves(state: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file has been replaced so many times."""
    seen, end = set(), time.monotonic() + 120
    while len(seen) < count:
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < end, "the training saves nothing"
        if state.exists():
            seen.add(state.stat().st_mtime_ns)
        time.sleep(0.0005)


def test_an_unfinished_training_is_not_overwritten_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(make_trainer("mlp", tmp_path, save_steps=3), 7, monkeypatch)
    before = (tmp_path / "training" / "state.pt").read_bytes()
    with pytest.raises(TrainingError, match="an unfinished training stands here; use --resume or --overwrite"):
        make_trainer("mlp", tmp_path).run()
    assert (tmp_path / "training" / "state.pt").read_bytes() == before
    assert len(make_trainer("mlp", tmp_path, save_steps=3).run(overwrite=True).losses) == 12


def test_a_finished_training_is_left_alone_by_resume_and_trained_on_without(tmp_path: Path) -> None:
    make_trainer("mlp", tmp_path, save_steps=3).run()
    before = weights(tmp_path)
    result = make_trainer("mlp", tmp_path, save_steps=3).run(resume=True)
    assert (result.steps, result.losses) == (12, ())
    assert same(before, weights(tmp_path))
    make_trainer("mlp", tmp_path, save_steps=3).run()
    assert not same(before, weights(tmp_path))


def test_resume_needs_the_settings_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(make_trainer("mlp", tmp_path, save_steps=3), 7, monkeypatch)
    with pytest.raises(TrainingError, match="changed: lr, batch size, batches"):
        make_trainer("mlp", tmp_path, batch=4, lr=0.5).run(resume=True)
    with pytest.raises(TrainingError, match="belongs to another model"):
        Trainer(
            make_model("mlp", width=16),
            make_data("mlp", 8),
            make_trainer("mlp", tmp_path, save_steps=3).config,
            directory=tmp_path,
        ).run(resume=True)


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no interrupted training to resume"):
        make_trainer("mlp", tmp_path).run(resume=True)
    with pytest.raises(TrainingError, match="name the directory"):
        make_trainer("mlp", None).run(resume=True)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"nothing like it"])
def test_a_damaged_checkpoint_is_refused(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(make_trainer("mlp", tmp_path, save_steps=3), 7, monkeypatch)
    state = tmp_path / "training" / "state.pt"
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(TrainingError, match=r"state\.pt: the checkpoint is damaged"):
        make_trainer("mlp", tmp_path, save_steps=3).run(resume=True)


def test_a_checkpoint_holds_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(make_trainer("mlp", tmp_path, save_steps=3), 7, monkeypatch)
    torch.save({"format": 1, "step": print}, tmp_path / "training" / "state.pt")
    with pytest.raises(TrainingError, match="the checkpoint is damaged"):
        StateFolder(tmp_path).load()


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(make_trainer("mlp", tmp_path, save_steps=3), 7, monkeypatch)
    state = tmp_path / "training" / "state.pt"
    before = state.read_bytes()

    def full(path: Path, data: Any) -> int:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(TrainingError, match=r"cannot be written \(\[Errno 28\] No space left on device\)"):
            make_trainer("mlp", tmp_path, save_steps=3).run(resume=True)
    assert state.read_bytes() == before
    assert make_trainer("mlp", tmp_path, save_steps=3).run(resume=True).steps == 12


def test_saving_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(StateFolder, "save", lambda self, state: saved.append(state.step))
    make_trainer("mlp", tmp_path, steps=3, save_minutes=1e-9).run()
    assert saved == [0, 1, 2, 3]
    saved.clear()
    make_trainer("mlp", tmp_path, steps=3, save_minutes=60.0).run()
    assert saved == [0]
    saved.clear()
    make_trainer("mlp", tmp_path, steps=3).run()
    assert saved == []


# --- what stops a training -------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    trainer = make_trainer("mlp", tmp_path, save_steps=2, lr=1e-3)
    real = trainer.task.loss
    calls: list[Subnet] = []

    class Poisoned(Classification):
        def loss(self, output: Any, target: Tensor) -> Tensor:
            calls.append(trainer.model.active)
            return real(output, target) * (math.nan if len(calls) == 4 * 5 + 2 else 1.0)

    trainer.task = Poisoned()
    with pytest.raises(TrainingError, match=r"step 5, sub-network width=0\.25 depth=0\.25: the loss is nan") as caught:
        trainer.run()
    assert str(caught.value).endswith("the last checkpoint stays")
    state = StateFolder(tmp_path).load()
    assert state.step == 4
    assert all(torch.isfinite(value).all() for value in state.model.values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    trainer = make_trainer("mlp", tmp_path, save_steps=2)
    with torch.no_grad():
        trainer.model.tensors["stem.weight"][0, 0] = math.inf
    with pytest.raises(TrainingError, match=r"step 0: the weights 'stem\.weight' are not finite any more"):
        trainer.run()


def test_levels_and_data_must_fit_the_model() -> None:
    with pytest.raises(TrainingError, match="no elastic 'length'"):
        make_trainer("mlp", None, dims=("length",))
    empty = Data([], [], "classification")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="gives no batch"):
        Trainer(make_model("mlp"), empty, TrainConfig()).run()
    endless = Data(iter([]), [], "classification")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="does not know its length; give the number of steps"):
        Trainer(make_model("mlp"), endless, TrainConfig()).run()


# --- progress --------------------------------------------------------------------------------------------------------


def test_nothing_is_shown_without_a_terminal_unless_asked(capfd: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer("mlp", None, steps=3)
    trainer.progress = None
    trainer.run()
    assert capfd.readouterr() == ("", "")
    trainer.progress = True
    trainer.run()
    out, err = capfd.readouterr()
    assert out == ""
    assert "step 3/3, loss" in err
    assert ", 0:00:00 left, " in err


def test_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    show = make_show(True, 100, 0, console)
    assert isinstance(show, Lines)
    for step in range(1, 31):
        now[0] += 1.0
        show.step(step, 0, 0.5, 10, "width=1")
    lines = console.export_text().splitlines()
    console.file.close()
    assert [line.split(",")[1] for line in lines] == [" step 10/100", " step 20/100", " step 30/100"]
    assert "loss 0.5000, 10 samples/s, 0:01:10 left, width=1" in lines[-1]


def test_a_terminal_gets_a_bar() -> None:
    with open("/dev/null", "w") as nowhere:
        console = Console(width=160, record=True, force_terminal=True, file=nowhere)
        with make_show(None, 10, 0, console) as show:
            show.step(10, 1, 0.25, 64, "width=0.5 depth=1")
        shown = console.export_text()
    assert "epoch 2" in shown
    assert "10/10" in shown
    assert "loss 0.2500" in shown
    assert "width=0.5 depth=1" in shown
