"""Sorted training: all nested sub-networks of a model at once, in one process or many, resumable at any step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from sortify.data.batches import Place, Share, Stream, mix, seed_all
from sortify.data.load import Data
from sortify.errors import DataError, TrainingError
from sortify.space.space import Subnet, Trained
from sortify.tasks.base import Task
from sortify.tasks.registry import task_for
from sortify.training.accumulation import make_accumulation
from sortify.training.config import TrainConfig
from sortify.training.log import Log
from sortify.training.objectives import make_objective
from sortify.training.parts import StepBatches, make_average, make_optimizer, recalibration_inputs, take_average
from sortify.training.progress import make_show
from sortify.training.samplers import SAMPLERS, levels_for, make_sampler
from sortify.training.sampling import Levels
from sortify.training.sharding import load_optimizer_state, load_whole_state, optimizer_state, sharded_copy, whole_state
from sortify.training.state import State, StateFolder
from sortify.training.update import Drawn, SortedUpdate

if TYPE_CHECKING:
    from sortify.models.sorted_model import SortedModel

PRECISION_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Result:
    """What a training came to.

    Attributes:
        steps: optimiser steps made in all.
        seconds: of this run, without what came before a resume.
        losses: mean loss of each optimiser step of this run.
        levels: the groups and fractions that were trained.
    """

    steps: int
    seconds: float
    losses: tuple[float, ...]
    levels: Levels


class Trainer:
    """Trains a sorted model's sub-networks on data.

    Every process of a run (`torchrun`, `accelerate launch`) makes the same trainer; each batch is split
    between them, all draw the same sub-networks, and gradients are averaged once per optimiser step. Batches,
    sub-networks and dropout are functions of the seed and the step, so a resumed run equals an unbroken one.

    Args:
        model: trained in place; moved to the device.
        data: see `sortify.load_data`.
        config: how to train.
        task: loss and targets; chosen by data and model if not given.
        directory: where checkpoints (directory/training/) and at the end the model go; None keeps nothing.
        progress: True for a bar (lines where there is no terminal), None for a bar on a terminal only, False for none.

    Raises:
        TrainingError: the configuration does not fit the model.
        AxesError: a pattern of levels or of what to untie matches nothing.
        DataError: the data does not fit the model.
    """

    def __init__(
        self,
        model: SortedModel,
        data: Data,
        config: TrainConfig | None = None,
        *,
        task: Task | None = None,
        directory: str | Path | None = None,
        progress: bool | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.config = config or TrainConfig()
        self.levels = levels_for(model.space, self._dims(), self.config.levels)
        settings = self.config.untied, self.config.multiple, self.config.every
        self.trained = Trained(self.levels, *settings)
        self.space = model.space.using(dict(self.levels), *settings)
        self.task = task or task_for(data, model)
        self.directory = None if directory is None else Path(directory)
        self.progress = progress

    def _dims(self) -> tuple[str, ...]:
        return self.model.space.groups if self.config.dims is None else self.config.dims

    def run(self, *, resume: bool = False, overwrite: bool = False) -> Result:
        """Train to the end, record what was trained, and save.

        Args:
            resume: go on where an interrupted training stopped; one that is finished is left alone.
            overwrite: start anew although an interrupted training stands in the directory.

        Raises:
            TrainingError: an interrupted training stands in the way, there is none to resume, it had other
                settings, or the loss is not finite any more.
            DataError: the data does not fit the model.
        """
        return _Run(self).run(resume=resume, overwrite=overwrite)


class _Run:
    """One run of a trainer: everything that changes while it trains."""

    def __init__(self, trainer: Trainer) -> None:
        self._config = config = trainer.config
        self._whole, self._task, self._levels = trainer.model, trainer.task, trainer.levels
        self._trained_levels = trainer.trained
        self._data, self._directory, self._progress = trainer.data, trainer.directory, trainer.progress
        self._accelerator = Accelerator(cpu=config.device == "cpu" or not torch.accelerator.is_available())
        self._share = Share(self._accelerator.process_index, self._accelerator.num_processes)
        self._device = self._accelerator.device if config.device == "auto" else torch.device(config.device)
        precision = self._accelerator.mixed_precision if config.precision == "auto" else config.precision
        self._cast_to = PRECISION_TYPES.get(str(precision))
        if config.norms is not None:
            self._whole.freeze_norms(config.norms == "frozen")
        self._model = self._placed()
        self._objective = make_objective(config.objective, trainer.space, self._levels)
        shared = SAMPLERS[config.sampler].shares_batch or self._objective.shares_batch
        self._shared = shared if config.share_batch is None else config.share_batch
        self._space = trainer.space
        self._batches: StepBatches | None = None
        self._optimizer = make_optimizer(self._model, config)
        self._average = make_average(self._model, config.ema)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._cast_to is torch.float16)
        self._folder = None if self._directory is None else StateFolder(self._directory)
        self._last_save = time.monotonic()
        self._losses: list[float] = []

    def _placed(self) -> SortedModel:
        """What is trained: the model itself on the device, or a copy that is sharded over the processes."""
        if self._config.shard:
            return sharded_copy(self._whole, self._device, self._config.offload)
        return self._whole.to(self._device)

    def run(self, *, resume: bool, overwrite: bool) -> Result:
        """See `Trainer.run`."""
        if self._folder is None and resume:
            raise TrainingError("to resume a training, name the directory that it was started in")
        if self._folder is not None and resume and self._folder.finished is not None:
            return Result(int(self._folder.finished["steps"]), 0.0, (), self._levels)
        self._total = self._steps()
        self._update = self._make_update()
        place = Place()
        if self._folder is not None:
            place = self._resumed() if resume else self._started(overwrite)
        self._stream = Stream(self._data.train, self._config.seed, self._share, place)
        self._check_share()
        if not resume:
            self._first_checkpoint()
        return self._trained()

    def _make_update(self) -> SortedUpdate:
        """What draws, runs and accumulates."""
        config, usual = self._config, SAMPLERS[self._config.sampler].usual_count
        accumulation = make_accumulation(config.accumulate, usual, self._total)
        return SortedUpdate(
            self._model,
            make_sampler(config.sampler, self._space, self._levels, accumulation.count(0), self._total),
            config.seed,
            self._accelerator,
            objective=self._objective,
            weight=config.teacher,
            features=config.features,
            match=self._match,
            share_batch=self._shared,
            accumulation=None if config.accumulate is None or isinstance(config.accumulate, int) else accumulation,
            project=config.project,
        )

    def _started(self, overwrite: bool) -> Place:
        """Prepare the directory for a new training."""
        folder = self._folder
        assert folder is not None
        if folder.unfinished and not overwrite:
            raise TrainingError(f"{folder.path}: an unfinished training stands here; use --resume or --overwrite")
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            folder.clear()
        return Place()

    def _resumed(self) -> Place:
        """Load the checkpoint; return where the data goes on."""
        folder = self._folder
        assert folder is not None
        state = folder.load()
        changed = self._config.differs_from(state.config)
        changed += [name for name, value in self._facts().items() if state.data.get(name) != value]
        if changed:
            raise TrainingError(
                f"{folder.path}: resume needs the settings it began with; changed: {', '.join(changed)}"
            )
        try:
            load_whole_state(self._model, state.model)
            load_optimizer_state(self._optimizer, state.optimizer)
            self._update.load_state_dict({"step": state.step, **state.drawing})
            if self._average is not None:
                self._average.load_state_dict(dict(state.average))
        except (RuntimeError, ValueError, KeyError) as error:
            raise TrainingError(f"{folder.path}: the checkpoint belongs to another model") from error
        self._scaler.load_state_dict(dict(state.scaler))
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            folder.tidy(state.step)
        return state.place

    def _facts(self) -> dict[str, Any]:
        """What must be alike when a training is resumed, beside the configuration."""
        loader = self._data.train
        batches = len(loader) if hasattr(loader, "__len__") else None
        size = getattr(loader, "batch_size", None)
        return {"data": self._data.description, "task": self._task.name, "batch size": size, "batches": batches}

    def _check_share(self) -> None:
        """Refuse batches that leave a process without samples."""
        size = getattr(self._data.train, "batch_size", None)
        if size is not None and size < self._share.world:
            raise TrainingError(f"a batch of {size} samples cannot be split over {self._share.world} processes")

    def _steps(self) -> int:
        """Return the optimiser steps of the whole training."""
        if self._config.steps is not None:
            return self._config.steps
        per_epoch = Stream(self._data.train, self._config.seed, self._share).per_epoch
        if per_epoch is None:
            raise TrainingError("the training data does not know its length; give the number of steps")
        if not per_epoch:
            raise DataError("the training data gives no batch: there are fewer samples than the batch size")
        per_step = 1 if self._shared else self._batches_per_step()
        return math.ceil(self._config.epochs * per_epoch / per_step)

    def _batches_per_step(self) -> float:
        """The mean number of batches of a step, where each sub-network sees one of its own."""
        match self._config.accumulate:
            case None:
                return SAMPLERS[self._config.sampler].usual_count
            case int(count):
                return count
            case tuple(counts):
                return sum(counts) / len(counts)
        raise TrainingError("how many batches an adaptive step takes is not known before: give the number of steps")

    def _trained(self) -> Result:
        """Make all steps and finish."""
        started = time.monotonic()
        self._model.train()
        if self._config.gradient_checkpointing:
            self._model.gradient_checkpointing_enable()
        if self._config.compile:
            self._model.compile()
        show = make_show(self._progress if self._accelerator.is_main_process else False, self._total, self._update.step)
        folder = None if self._folder is None else self._folder.path
        log = Log(self._config.log, self._accelerator, folder, self._levels, self._config.to_json())
        try:
            with show:
                while self._update.step < self._total:
                    epoch = self._stream.place.epoch
                    drawn, loss, samples = self._step()
                    made, rate = self._update.step, self._optimizer.param_groups[0]["lr"]
                    show.step(made, epoch, loss, samples, str(drawn[-1].subnet))
                    log.add(made, loss, drawn, rate, samples, last=made == self._total)
                    self._keep(drawn, loss, epoch)
        finally:
            log.close()
            if self._folder is not None and self._folder.path.exists() and self._accelerator.is_main_process:
                self._folder.flush()
        self._finish()
        return Result(self._update.step, time.monotonic() - started, tuple(self._losses), self._levels)

    def _step(self) -> tuple[list[Drawn], float, int]:
        """Make one optimiser step; return its draws (losses averaged over processes), mean loss, and samples seen."""
        step = self._update.step
        self._batches = batches = StepBatches(self._stream, self._task, self._device, self._accelerator, self._shared)
        seeded = mix(self._config.seed, "step", step, self._share.rank)

        def loss() -> Tensor:
            inputs, target, count = batches.take()
            seed_all(mix(seeded, batches.taken))
            with torch.autocast(self._device.type, self._cast_to, enabled=self._cast_to is not None):
                output = self._model(*inputs.args, **inputs.kwargs)
            # The sum over all processes, divided by all targets: as one process with the whole batch would have it.
            return self._task.loss(output, target) * self._share.world / count

        self._optimizer.zero_grad(set_to_none=True)
        drawn = self._update(loss, lambda value: self._scaler.scale(value).backward())
        losses = [float(draw.loss) for draw in drawn]
        self._check_finite(step, drawn)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.rate(step, self._total)
        self._scaler.unscale_(self._optimizer)
        if self._config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self._model)
        return drawn, sum(losses) / len(losses), batches.samples * self._share.world

    def _match(self, output: Any, teacher: Any) -> Tensor:
        """How far an output is from its teacher's on the batch of now, in the units of the loss."""
        assert self._batches is not None
        _, target, count = self._batches.current
        return self._task.match(output, teacher, target) * self._share.world / count

    def _check_finite(self, step: int, drawn: list[Drawn]) -> None:
        """Stop before a loss that is not finite, or a distance from a teacher, reaches the weights."""
        for draw in drawn:
            value = sum(float(each) for each in (draw.loss, draw.apart, draw.features) if each is not None)
            if not math.isfinite(value):
                kept = "" if self._folder is None or not self._folder.unfinished else "; the last checkpoint stays"
                where, advice = f"step {step}, sub-network {draw.subnet}", "try a lower learning rate"
                raise TrainingError(
                    f"{where}: the loss is {value}; {advice}, or look for such numbers in the data{kept}"
                )

    def _keep(self, drawn: list[Drawn], loss: float, epoch: int) -> None:
        """Remember the step, and save when it is time."""
        self._losses.append(loss)
        if self._folder is None:
            return
        step = self._update.step
        if self._accelerator.is_main_process:
            draws = [[str(draw.subnet), float(draw.loss)] for draw in drawn]
            rate, share = self._optimizer.param_groups[0]["lr"], self._share_of([draw.subnet for draw in drawn])
            line = {"step": step - 1, "epoch": epoch, "loss": loss, "lr": rate, "flops": share, "draws": draws}
            self._folder.record(line)
        if self._due(step):
            self._save()

    def _share_of(self, subnets: list[Subnet]) -> float:
        """The mean share of the full network's FLOPs that these sub-networks cost."""
        flops = self._whole.costs([*subnets, self._space.full]).flops
        return float(flops[:-1].mean() / max(1, flops[-1]))

    def _due(self, step: int) -> bool:
        """Whether to save now; the first process has the clock."""
        config, minutes = self._config, (time.monotonic() - self._last_save) / 60
        if config.save_steps is not None and step % config.save_steps == 0:
            return True
        late = config.save_minutes is not None and minutes >= config.save_minutes
        if config.shard and config.save_minutes is not None:
            late = bool(broadcast(torch.tensor(late, device=self._device)))
        return late

    def _first_checkpoint(self) -> None:
        """Make the training resumable from its first step on, unless no checkpoints are wanted."""
        wanted = self._config.save_steps is not None or self._config.save_minutes is not None
        if wanted and self._folder is not None:
            self._save()

    def _save(self) -> None:
        """Write a checkpoint: the first process does, and all have to be here where the model is sharded."""
        assert self._folder is not None
        if not self._config.shard and not self._accelerator.is_main_process:
            return
        if self._config.shard:
            model, optimizer = whole_state(self._model), optimizer_state(self._optimizer)
        else:
            model, optimizer = self._model.state_dict(), self._optimizer.state_dict()
        self._last_save = time.monotonic()
        if not self._accelerator.is_main_process:
            return
        for name, _ in self._model.named_parameters():
            if not torch.isfinite(model[name]).all():
                raise TrainingError(f"step {self._update.step}: the weights '{name}' are not finite any more")
        self._folder.save(
            State(
                step=self._update.step,
                place=self._stream.place,
                config=self._config,
                data=self._facts(),
                model=model,
                optimizer=optimizer,
                scaler=self._scaler.state_dict(),
                drawing=self._update.state_dict(),
                average={} if self._average is None else self._average.state_dict(),
            )
        )

    def _recalibrate(self) -> None:
        """Collect every trained sub-network's batch-norm statistics, so that it can be extracted without data."""
        batches = self._config.recalibrate
        if not batches or not self._whole.has_batch_statistics or not self._accelerator.is_main_process:
            return
        for subnet in self._whole.space.landmarks():
            with self._whole.using(subnet):
                self._whole.recalibrate(
                    recalibration_inputs(self._data.train, self._task, batches, self._device), batches
                )

    def _finish(self) -> None:
        """Record what was trained and save the model."""
        if self._config.gradient_checkpointing:
            self._model.gradient_checkpointing_disable()
        if self._config.shard:
            self._whole.load_state_dict(whole_state(self._model))
            self._whole.to(self._device)
        self._whole.activate()
        self._whole.eval()
        if self._average is not None:
            take_average(self._whole, self._average)
        self._whole.record_trained(self._trained_levels)
        self._recalibrate()
        if self._directory is not None and self._folder is not None and self._accelerator.is_main_process:
            self._whole.save(self._directory)
            facts = {"steps": self._update.step, **self._facts(), "config": self._config.to_json()}
            self._folder.finish({"finished": True, **facts})
        self._accelerator.wait_for_everyone()
