"""The sorted update in Lightning: one sub-network per batch, gradients accumulated over a step.

    from sortify.training.callback_lightning import SortedCallback

    update = SortedUpdate(model, make_sampler("random", model.space, levels, count=4))
    pl.Trainer(accumulate_grad_batches=4, callbacks=[SortedCallback(update)], ...).fit(module, loader)

`module` is a LightningModule that calls the sorted model. Needs the package `lightning` or `pytorch-lightning`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sortify.errors import TrainingError
from sortify.training.update import SortedUpdate

if TYPE_CHECKING or not find_spec("lightning"):
    import pytorch_lightning as lightning
else:
    from lightning import pytorch as lightning


class SortedCallback(lightning.Callback):
    """Draws a sub-network for every batch, and lands its gradients.

    `accumulate_grad_batches` has to be the number of draws of a step. Validation sees what was active before, as a rule
    the full network. The step is kept in Lightning's checkpoints.

    Args:
        update: of the sorted model; nothing that compares sub-networks (teachers, adaptive numbers).

    Raises:
        TrainingError: when the training begins: the numbers differ, or there are several devices.
    """

    def __init__(self, update: SortedUpdate) -> None:
        self._update = update

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        count, wanted = len(self._update.draw()), trainer.accumulate_grad_batches
        if count != wanted:
            raise TrainingError(
                f"the sampler draws {count} sub-networks a step, but accumulate_grad_batches is {wanted}: "
                "make them equal"
            )
        if trainer.world_size > 1:
            raise TrainingError(
                f"{trainer.world_size} devices: gradients of parameters that only some draws use would be lost; train "
                "with sortify.Trainer under torchrun"
            )

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._update.begin()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._update.end()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._update.end(last=True)  # where an epoch's batches ran out within a step, Lightning steps all the same

    def state_dict(self) -> dict[str, Any]:
        return self._update.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._update.load_state_dict(state_dict)
