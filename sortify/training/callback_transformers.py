"""The sorted update in `transformers.Trainer`: one sub-network per micro-batch, gradients accumulated over a step.

from sortify.training.callback_transformers import SortedCallback

update = SortedUpdate(model, make_sampler("random", model.space, levels, count=4))
Trainer(model, TrainingArguments(gradient_accumulation_steps=4, ...), callbacks=[SortedCallback(update)], ...).train()
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import ParallelMode

from sortify.errors import TrainingError
from sortify.training.update import SortedUpdate


class SortedCallback(TrainerCallback):
    """Draws a sub-network for every micro-batch, and lands its gradients.

    `gradient_accumulation_steps` has to be the number of draws of a step. Evaluation sees what was active before the
    training, as a rule the full network. A resumed run goes on with the draws of its step.

    Args:
        update: of the model that is trained; nothing that compares sub-networks (teachers, adaptive numbers).

    Raises:
        TrainingError: unused columns are to be removed; or, when the training begins, the numbers differ, or the model
            is wrapped for several devices, where gradients of unused parameters would be lost: use `sortify.Trainer`.
    """

    def __init__(self, update: SortedUpdate) -> None:
        self._update = update

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.remove_unused_columns:
            raise TrainingError(
                "TrainingArguments(remove_unused_columns=False) is needed: which columns are used stands in what the "
                "model was captured with, not in its forward"
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._update.step = state.global_step
        count, wanted = len(self._update.draw()), args.gradient_accumulation_steps
        if count != wanted:
            raise TrainingError(
                f"the sampler draws {count} sub-networks a step, but gradient_accumulation_steps is {wanted}: "
                "make them equal"
            )
        if args.parallel_mode != ParallelMode.NOT_PARALLEL:
            raise TrainingError(
                f"several devices ({args.parallel_mode.value}): gradients of parameters that only some draws use would "
                "be lost; train with sortify.Trainer under torchrun"
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._update.begin()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._update.end()
        self._update.begin()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._update.end(last=True)
