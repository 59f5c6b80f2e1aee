"""Semantic segmentation: one class for each pixel.

Shapes: B samples, C classes, H height, W width (of the targets), h and w (of the model's output).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from sortify.errors import DataError
from sortify.tasks.base import IGNORED, Totals, check_classes, counted, cross_entropy, divergence
from sortify.tasks.inputs import CallShape, Inputs, Vocabulary, logits_of, split_batch

VOID = 255
"""Pixels of this class count for nothing either, in models with fewer classes: the border in most sets of pictures."""

AUXILIARY = 0.5
"""Weight of the loss of an auxiliary output `["aux"]` in training, as in torchvision's reference training."""

PIXELS = 2**24
"""Logits that are resized at once for measuring; several at a time would need memory in proportion."""


@dataclass(frozen=True)
class Segmentation:
    """One class per pixel: output `[B, C, h, w]`, targets `[B, H, W]`; cross entropy and mean IoU.

    Logits of another resolution are resized to the target's, bilinearly. Targets of -100 and 255 are ignored.

    Attributes:
        call: how the model is called.
        classes: C, where known.
    """

    name: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "mean_iou"
    expects: ClassVar[str] = "[batch, classes, height, width]"
    ranks: ClassVar[tuple[int, ...]] = (4,)

    call: CallShape = field(default_factory=CallShape)
    classes: int | None = None

    @classmethod
    def fitted(cls, call: CallShape, logits: Tensor, vocabulary: Vocabulary | None) -> Self:
        """Make the task for a model that answers its example inputs with these logits."""
        if logits.shape[1] < 2:
            shape = list(logits.shape)
            raise DataError(
                f"{cls.name} expects a channel for each class (two for object and background), got a model output of "
                f"shape {shape}; for one channel say --task package.module:function"
            )
        return cls(call, logits.shape[1])

    def split(self, batch: Any, seed: int = 0) -> tuple[Inputs, Tensor]:
        """Take `(inputs, masks)` or a dict with labels apart; masks may be `[B, 1, H, W]`."""
        given, target = split_batch(batch)
        if target is None:
            raise DataError("a batch has no masks; expected (inputs, masks [B, H, W]) or a dict with 'labels'")
        if target.dim() == 4 and target.shape[1] == 1:
            target = target[:, 0]
        if target.dim() != 3:
            raise DataError(f"{self.name} expects masks [batch, height, width], got shape {list(target.shape)}")
        check_classes(target.masked_fill(target == VOID, 0) if self._has_void else target, self.classes, self.name)
        return self.call.inputs(given), target

    @property
    def _has_void(self) -> bool:
        return self.classes is None or self.classes <= VOID

    def _truth(self, target: Tensor) -> Tensor:
        """Return targets as int64, -100 where they are ignored. They come as they are stored: bytes travel faster."""
        target = target.long()
        return target.masked_fill(target == VOID, IGNORED) if self._has_void else target

    def count(self, target: Tensor) -> Tensor:
        """Return the number of pixels that are not ignored."""
        return counted(self._truth(target))

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Compare `[B, C, h, w]` with `[B, H, W]`; an auxiliary output counts as well."""
        target = self._truth(target)
        loss = cross_entropy(resized(logits_of(output), target), target)
        auxiliary = output.get("aux") if isinstance(output, Mapping) else None
        if isinstance(auxiliary, Tensor):
            loss = loss + AUXILIARY * cross_entropy(resized(auxiliary, target), target)
        return loss

    def match(self, output: Any, teacher: Any, target: Tensor) -> Tensor:
        """Compare the probabilities of two outputs at every pixel that counts."""
        target = self._truth(target)
        pair = (resized(logits_of(each), target).movedim(1, -1).flatten(0, -2) for each in (output, teacher))
        return (divergence(*pair) * (target.flatten() != IGNORED)).sum()

    def totals(self, output: Any, target: Tensor) -> Totals:
        """Compare `[B, C, h, w]` with `[B, H, W]`, some pictures at a time."""
        slices = _slices(logits_of(output), self._truth(target))
        parts = [_totals(resized(logits, masks), masks) for logits, masks in slices]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Return loss, mean IoU over the classes that occur in the whole set (as truth or answer), pixel accuracy."""
        hits, said, truth = (totals.sums[name].double() for name in ("hits", "said", "truth"))
        union = said + truth - hits
        count, occurs = int(totals.count), union > 0
        iou = float((hits[occurs] / union[occurs]).mean())
        return {"loss": float(totals.loss) / count, "mean_iou": iou, "pixel_accuracy": float(hits.sum()) / count}


def resized(logits: Tensor, target: Tensor) -> Tensor:
    """Return logits `[B, C, H, W]` of the target's resolution, in float32 at least.

    Raises:
        DataError: these are no logits of pictures, or their number is another.
    """
    if logits.dim() != 4 or logits.shape[0] != target.shape[0]:
        shapes = f"model outputs of shape {list(logits.shape)} do not fit masks of shape {list(target.shape)}"
        raise DataError(f"{shapes}; expected [batch, classes, height, width] and [batch, height, width]")
    values = logits if logits.dtype == torch.float64 else logits.float()
    if values.shape[2:] == target.shape[1:]:
        return values
    return functional.interpolate(values, size=target.shape[1:], mode="bilinear", align_corners=False)


def _slices(logits: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a batch so that resized logits stay small."""
    per_picture = logits.shape[1] * target.shape[1:].numel()
    rows = max(1, PIXELS // max(1, per_picture))
    return zip(logits.split(rows), target.split(rows), strict=True)


def _totals(logits: Tensor, target: Tensor) -> Totals:
    classes, counts = logits.shape[1], target != IGNORED
    truth, said = target[counts], logits.argmax(1)[counts]
    sums = {"hits": truth[truth == said], "said": said, "truth": truth}
    numbers = {name: torch.bincount(values, minlength=classes) for name, values in sums.items()}
    return Totals(cross_entropy(logits, target), counts.sum(), numbers)
