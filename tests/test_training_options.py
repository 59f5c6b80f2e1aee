"""Moving averages of the weights, blocks that are computed again, and what trackers are told."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from cli_calls import call, errors, works, write_folder
from test_train import same, stop_at, weights
from training_models import example, make_model
from training_script import make_trainer

from sortify import SortedModel, SortedUpdate, TrainConfig, Trained, TrainingError, load, make_sampler
from sortify.training.parts import make_average, take_average

# -- moving average


def test_an_average_follows_the_weights() -> None:
    model = make_model("bn")
    average = make_average(model, 0.75)
    assert average is not None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average.update_parameters(model)  # the first one is taken as it is
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.state_dict()["blocks.0.norm.running_mean"].fill_(7)
    average.update_parameters(model)
    take_average(model, average)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.25)
    assert float(model.state_dict()["blocks.0.norm.running_mean"][0]) == 7
    assert make_average(model, None) is None


def test_a_training_ends_with_its_average(tmp_path: Path) -> None:
    make_trainer("mlp", tmp_path / "plain").run()
    make_trainer("mlp", tmp_path / "mean", ema=0.9).run()
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "mean"))
    start = make_model("mlp", seed=1).state_dict()
    apart = {
        name: sum(float((value - start[key]).norm()) for key, value in load(tmp_path / name).state_dict().items())
        for name in ("plain", "mean")
    }
    assert apart["mean"] < apart["plain"]


def test_a_resumed_average_equals_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"ema": 0.8, "save_steps": 5}
    make_trainer("mlp", tmp_path / "whole", **settings).run()
    stop_at(make_trainer("mlp", tmp_path / "cut", **settings), 7, monkeypatch)
    make_trainer("mlp", tmp_path / "cut", **settings).run(resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


# -- blocks that are computed again


@pytest.mark.parametrize("kind", ["mlp-still", "lm"])
def test_gradients_are_those_of_kept_activations(kind: str) -> None:
    model, inputs = make_model(kind).train(), example(kind) if kind == "lm" else (torch.randn(256, 1, 8, 8),)
    kept, found = [], []
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
        value = output["logits"] if isinstance(output, dict) else output
        kept.append(0)
        value.square().mean().backward()
        found.append({name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None})
        model.zero_grad()
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])
    first = kept.index(0)
    assert sum(kept[first:]) < 0.6 * sum(kept[:first])


def test_small_sub_networks_land_their_gradients_too() -> None:
    model, inputs = make_model("mlp-still").train(), example("mlp")
    found = []
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable()
        update = SortedUpdate(model, make_sampler("random", model.space, (("width", (0.5,)), ("depth", (0.5,)))))
        update(lambda: model(*inputs).square().mean())
        found.append({name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None})
        model.zero_grad()
    model.gradient_checkpointing_disable()
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.freeze_norms(),
        lambda model: model.order("magnitude", blocks=True),
        lambda model: model.record_trained(Trained((("width", (0.5, 1.0)),))),
        lambda model: copy.deepcopy(model),
    ],
    ids=["freeze_norms", "order", "record_trained", "deepcopy"],
)
def test_blocks_are_computed_again_whatever_is_asked_for_afterwards(change: Callable[[SortedModel], Any]) -> None:
    model, kept = make_model("bn-still").train(), list[int]()
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable()
            changed = change(model)
            model = changed if isinstance(changed, SortedModel) else model
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            model(torch.randn(256, 1, 8, 8))
        kept.append(0)
    first = kept.index(0)
    assert sum(kept[first:]) < 0.6 * sum(kept[:first])


def test_a_training_with_recomputed_blocks_equals_one_without(tmp_path: Path) -> None:
    for name, again in (("plain", False), ("again", True)):
        make_trainer("lm", tmp_path / name, gradient_checkpointing=again).run()
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "again")
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)


# -- every size


def test_every_size_is_trained_recorded_and_extracted_and_the_levels_are_measured(tmp_path: Path) -> None:
    write_folder(tmp_path)
    works(tmp_path, "convert", "model.pt")
    words = (
        "--dims",
        "width,depth",
        "--levels",
        "width=0.25,0.5,1,depth=2",
        "--every",
        "width",
        "--log",
        "tensorboard",
    )
    said = works(tmp_path, "train", "--steps", "24", *words).stdout
    assert "trained: width 0.25, 0.5, 1; depth 0.5, 1; every size of width; 24 steps" in said
    assert "every size of width" in works(tmp_path, "inspect").stdout
    model = load(tmp_path / "sorted")
    assert model.space.trained is not None
    assert model.space.trained.every == ("width",)
    assert set(model.statistics) == set(model.space.landmarks())
    assert len(model.statistics) == 6
    history = (tmp_path / "sorted" / "training" / "history.jsonl").read_text()
    drawn = set(re.findall(r"width=([0-9.]+)", history))
    assert len(drawn) > 3
    (tmp_path / "sortify.toml").unlink()
    told = errors(works(tmp_path, "extract", "--width", "0.625"))
    assert len(told) == 1
    assert "the batch-norm statistics are not those of" in told[0]
    assert not errors(works(tmp_path, "extract", "--width", "0.625", "--data", "data.npz"))
    told = errors(works(tmp_path, "extract", "--width", "0.125", "--data", "data.npz"))
    assert "none of the sub-networks that were trained" in told[0]
    works(tmp_path, "evaluate", "--data", "data.npz")
    assert (tmp_path / "sorted" / "evaluation.csv").read_text().count("\n") == 7
    works(tmp_path, "report")


def test_losses_of_every_size_are_told_with_the_nearest_level(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings: dict[str, Any] = {"levels": {"width": (0.5, 1.0)}, "dims": ("width",), "every": ("width",)}
    make_trainer("mlp", tmp_path, steps=20, log="tensorboard", **settings).run()
    found = EventAccumulator(str(tmp_path / "training" / "logs")).Reload()
    assert {tag for tag in found.Tags()["scalars"] if "width" in tag} == {"loss/width=0.5", "loss/width=1"}


# -- norms


def test_a_training_with_frozen_norms_leaves_their_statistics_and_is_saved_with_them(tmp_path: Path) -> None:
    before = make_model("bn", seed=1).state_dict()
    make_trainer("bn", tmp_path, norms="frozen").run()
    model = load(tmp_path)
    kept = [name for name in before if "running_" in name or "batches_tracked" in name]
    assert len(kept) == 12
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert not torch.equal(after["stem.weight"], before["stem.weight"])
    assert model.norms_frozen
    assert not model.statistics
    assert all(model.is_calibrated(member) for member in model.space.landmarks())


def test_norms_stay_as_the_model_says_unless_the_training_does(tmp_path: Path) -> None:
    model = make_model("bn", seed=1)
    model.freeze_norms()
    model.save(tmp_path)
    make_trainer("bn", tmp_path, steps=2).run()
    assert load(tmp_path).norms_frozen
    make_trainer("bn", tmp_path, steps=2, norms="own").run()
    again = load(tmp_path)
    assert not again.norms_frozen
    assert set(again.statistics) == set(again.space.landmarks())


def test_a_resumed_training_with_frozen_norms_equals_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"norms": "frozen", "save_steps": 5}
    make_trainer("bn", tmp_path / "whole", **settings).run()
    stop_at(make_trainer("bn", tmp_path / "cut", **settings), 7, monkeypatch)
    with pytest.raises(TrainingError, match="changed: norms"):
        make_trainer("bn", tmp_path / "cut", save_steps=5).run(resume=True)
    make_trainer("bn", tmp_path / "cut", **settings).run(resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_the_command_line_freezes_norms(tmp_path: Path) -> None:
    write_folder(tmp_path)
    works(tmp_path, "convert", "model.pt")
    works(tmp_path, "train", "--steps", "2", "--norms", "frozen")
    assert load(tmp_path / "sorted").norms_frozen
    assert not errors(works(tmp_path, "extract", "--budget", "0.5"))
    wrong = call(tmp_path, "train", "--norms", "warm")
    assert wrong.exit_code == 1
    assert errors(wrong) == ["error: unknown norms 'warm'; there are own, frozen"]


# -- trackers


def test_tensorboard_is_told_losses_rates_and_levels(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = make_trainer("mlp", tmp_path, steps=25, log="tensorboard").run()
    found = EventAccumulator(str(tmp_path / "training" / "logs")).Reload()
    assert {"loss", "lr", "samples per second", "loss/width=1", "loss/depth=0.25"} <= set(found.Tags()["scalars"])
    events = found.Scalars("loss")
    assert [event.step for event in events] == [10, 20, 25]
    assert events[0].value == pytest.approx(sum(result.losses[:10]) / 10, rel=1e-4)


def test_another_tracker_is_told_the_settings_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    class Tracker(GeneralTracker):
        name, requires_logging_directory, tracker = "swanlab", False, None

        def __init__(self, run_name: str, **kwargs: Any) -> None:
            super().__init__()
            told["project"] = run_name

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            told["settings"] = values

        def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
            told["steps"] = [*told.get("steps", []), step]

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "swanlab", Tracker)
    trainer = make_trainer("mlp", tmp_path, steps=12, log="swanlab")
    trainer.run()
    assert told == {"project": "sortify", "settings": trainer.config.to_json(), "steps": [10, 12]}


def test_nothing_is_logged_without_a_directory_or_where_nobody_asks(tmp_path: Path) -> None:
    make_trainer("mlp", None, log="tensorboard").run()
    make_trainer("mlp", tmp_path, log="none").run()
    assert not (tmp_path / "training" / "logs").exists()


def test_a_tracker_that_is_not_installed_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"log 'aim' does not work .*; install its package, or log to 'none'"):
        make_trainer("mlp", tmp_path, log="aim").run()


@pytest.mark.parametrize(("name", "value", "said"), [("ema", 1.0, "ema must be"), ("log", "paper", "unknown log")])
def test_wrong_options_are_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        TrainConfig(**{name: value})
