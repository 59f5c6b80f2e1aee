"""One update in four loops (plain, sortify's, transformers', Lightning's): the same draws, losses and weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from training_models import make_model

from sortify import SortedModel, SortedUpdate, Subnet, TrainConfig, Trainer, TrainingError, make_objective, make_sampler
from sortify.data.batches import mix
from sortify.data.load import Data
from sortify.training.samplers import levels_for
from sortify.training.state import StateFolder

STEPS, COUNT, BATCH, RATE = 5, 2, 4, 0.05


class Pictures(Dataset[Any]):
    """Random pictures, each a function of its index."""

    def __init__(self, size: int = STEPS * COUNT * BATCH) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        chance = torch.Generator().manual_seed(mix("picture", index))
        return {"x": torch.randn(1, 8, 8, generator=chance), "labels": index % 10}


class Noted(SortedUpdate):
    """Notes what is drawn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drawn: list[Subnet] = []

    def begin(self) -> Subnet:
        self.drawn.append(super().begin())
        return self.drawn[-1]


def make_update(model: SortedModel, **options: Any) -> Noted:
    sampler = make_sampler("random", model.space, levels_for(model.space, ("width", "depth")), COUNT)
    return Noted(model, sampler, 3, **options)


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE)


Outcome = tuple[list[Subnet], list[float], dict[str, Tensor]]


def plain(tmp_path: Path) -> Outcome:
    model = make_model("mlp-still").train()
    update, optimizer = make_update(model), optimizer_of(model.parameters())
    batches = iter(DataLoader(Pictures(), BATCH))
    drawn, losses = list[Subnet](), list[float]()

    def loss() -> Tensor:
        batch = next(batches)
        return functional.cross_entropy(model(batch["x"]), batch["labels"])

    for _ in range(STEPS):
        optimizer.zero_grad()
        found = update(loss)
        optimizer.step()
        drawn += [each.subnet for each in found]
        losses += [float(each.loss) for each in found]
    return drawn, losses, model.state_dict()


def sortifys(tmp_path: Path) -> Outcome:
    model = make_model("mlp-still")
    loader = DataLoader(Pictures(), BATCH)
    config = TrainConfig(
        steps=STEPS,
        accumulate=COUNT,
        seed=3,
        dims=("width", "depth"),
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.0,
        lr=RATE,
        schedule="constant",
        warmup=0.0,
        clip=None,
        recalibrate=0,
        device="cpu",
    )
    trainer = Trainer(model, Data(loader, loader, "classification"), config, directory=tmp_path / "own", progress=False)
    trainer.run()
    draws = [draw for line in StateFolder(tmp_path / "own").history() for draw in line["draws"]]
    names = {str(member): member for member in model.space.grid(width=4, depth=4)}
    return [names[name] for name, _ in draws], [value for _, value in draws], model.state_dict()


def transformers(tmp_path: Path) -> Outcome:
    from transformers import Trainer as HuggingFace
    from transformers import TrainingArguments

    from sortify.training.callback_transformers import SortedCallback

    losses: list[float] = []

    def loss(outputs: Tensor, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        value = functional.cross_entropy(outputs, labels)
        losses.append(float(value.detach()))
        return value / COUNT if num_items_in_batch is not None else value

    class Ordered(HuggingFace):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    model = make_model("mlp-still")
    update = make_update(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=COUNT,
        max_steps=STEPS,
        max_grad_norm=0,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Ordered(
        model,
        arguments,
        train_dataset=Pictures(),
        compute_loss_func=loss,
        optimizers=(optimizer_of(model.parameters()), None),
        callbacks=[SortedCallback(update)],
    )
    trainer.train()
    return update.drawn, losses, model.state_dict()


def lightnings(tmp_path: Path) -> Outcome:
    lightning: Any = pytest.importorskip("pytorch_lightning")
    from sortify.training.callback_lightning import SortedCallback

    model, losses = make_model("mlp-still"), list[float]()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any) -> Tensor:
            value = functional.cross_entropy(self.model(batch["x"]), batch["labels"])
            losses.append(float(value.detach()))
            return value

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.parameters())

    update = make_update(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            accelerator="cpu",
            accumulate_grad_batches=COUNT,
            max_steps=STEPS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[SortedCallback(update)],
        ).fit(Module(), DataLoader(Pictures(), BATCH))
    return update.drawn, losses, model.state_dict()


@pytest.mark.parametrize("loop", [sortifys, transformers, lightnings], ids=lambda loop: loop.__name__)
def test_all_loops_draw_lose_and_learn_the_same(loop: Callable[[Path], Outcome], tmp_path: Path) -> None:
    wanted, found = plain(tmp_path), loop(tmp_path)
    assert found[0] == wanted[0]
    assert found[1] == pytest.approx(wanted[1], rel=1e-5)
    assert found[2].keys() == wanted[2].keys()
    for name, value in wanted[2].items():
        torch.testing.assert_close(found[2][name], value, rtol=1e-5, atol=1e-6)
    untouched = make_model("mlp-still").state_dict()
    assert any(not torch.equal(untouched[name], value) for name, value in found[2].items())


def test_begin_and_end_are_a_call_of_the_update() -> None:
    model, batches = make_model("mlp-still").train(), list(DataLoader(Pictures(), BATCH))
    found = []
    for one_by_one in (True, False):
        update, own = make_update(model), iter(batches)
        model.activate(width=0.5)

        def loss(own: Any = own) -> Tensor:
            batch = next(own)
            return functional.cross_entropy(model(batch["x"]), batch["labels"])

        if one_by_one:
            ends = []
            for _ in range(COUNT):
                update.begin()
                (loss() / COUNT).backward()
                ends.append(update.end())
            assert ends == [False, True]
        else:
            update(loss)
        assert update.step == 1
        assert model.active == model.space.subnet(width=0.5)
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


def test_an_epoch_that_runs_out_ends_the_step() -> None:
    update = make_update(make_model("mlp-still"))
    update.begin()
    assert update.end(last=True)
    assert update.step == 1
    assert not update.end(last=True)


def test_what_compares_sub_networks_is_refused_one_pass_at_a_time() -> None:
    model = make_model("mlp-still")
    for options in ({"objective": make_objective("chain", model.space, ())}, {"project": True}):
        with pytest.raises(TrainingError, match="needs the whole step"):
            make_update(model, **options).begin()


@pytest.mark.parametrize("loop", [transformers, lightnings], ids=lambda loop: loop.__name__)
def test_numbers_that_differ_are_refused(
    loop: Callable[[Path], Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = make_update

    def other(model: SortedModel, **options: Any) -> Noted:
        update = real(model, **options)
        monkeypatch.setattr(update, "_sampler", make_sampler("random", model.space, (), COUNT + 1))
        return update

    monkeypatch.setitem(globals(), "make_update", other)
    with pytest.raises(TrainingError, match=r"draws 3 sub-networks a step, but .* is 2"):
        loop(tmp_path)


def test_columns_must_not_be_removed(tmp_path: Path) -> None:
    from transformers import Trainer as HuggingFace
    from transformers import TrainingArguments

    from sortify.training.callback_transformers import SortedCallback

    model = make_model("mlp-still")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(TrainingError, match="remove_unused_columns=False"):
        HuggingFace(model, arguments, callbacks=[SortedCallback(make_update(model))])
