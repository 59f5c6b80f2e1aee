"""What the readers of data share: what the model wants, sets of samples, and how pictures are prepared.

Sets hand out whole batches (`__getitems__`), so that samples are cut, decoded and standardised together;
`joined` is the collate function that leaves such a batch alone.

Shapes: N samples, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from sortify.errors import DataError, TrainingError
from sortify.tasks.base import IGNORED
from sortify.tasks.inputs import MAIN_INPUTS, Vocabulary, example_logits

if TYPE_CHECKING:
    from sortify.models.sorted_model import SortedModel

CHUNK = 4096
"""Samples that are read together for statistics."""


@dataclass(frozen=True)
class Wanted:
    """What a model expects of its data; every part may be unknown.

    Attributes:
        shape: of one sample of the main input, without the batch dimension.
        floating: whether the main input holds floats (pictures, features) or integers (tokens).
        outputs: classes, vocabulary or numbers: the output's last size, of pictures `[B, C, H, W]` the second.
        rank: number of dimensions of the output: 2 for `[B, C]`, 3 for `[B, S, V]`, 4 for `[B, C, H, W]`.
        any_length: whether the model takes sequences of other lengths than its example's.
    """

    shape: tuple[int, ...] | None = None
    floating: bool | None = None
    outputs: int | None = None
    rank: int | None = None
    any_length: bool = False

    @classmethod
    def of(cls, model: SortedModel | None) -> Wanted:
        """Read a sorted model's example inputs and the shape of what it answers to them."""
        if model is None:
            return cls()
        args, kwargs = model.examples
        main = _main_input(args, kwargs)
        shape = None if main is None else tuple(main.shape[1:])
        floating = None if main is None else main.is_floating_point()
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        specs = zip(model.signature.specs, inputs, strict=True)
        any_length = any(each is main and spec.shape[1:] == (None,) for spec, each in specs)
        try:
            sizes = example_logits(model).shape
        except TrainingError:  # no logits: a task of one's own knows what to do with the output
            return cls(shape, floating, any_length=any_length)
        outputs = 1 if len(sizes) < 2 else sizes[1] if len(sizes) == 4 else sizes[-1]
        return cls(shape, floating, outputs, len(sizes), any_length)

    @property
    def picture(self) -> tuple[int, int, int] | None:
        """(C, H, W) where the model takes pictures."""
        if self.floating is False or self.shape is None or len(self.shape) != 3:
            return None
        return (self.shape[0], self.shape[1], self.shape[2])

    @property
    def length(self) -> int | None:
        """Sequence length where the model takes tokens."""
        return self.shape[0] if self.floating is False and self.shape is not None and len(self.shape) == 1 else None


def _main_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    named = [kwargs[name] for name in MAIN_INPUTS if name in kwargs]
    tensors = [value for value in (*args, *named, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
    return tensors[0] if tensors else None


class Samples(Protocol):
    """A set that hands out whole batches."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def __getitems__(self, indices: list[int]) -> Any: ...


@dataclass(frozen=True)
class Sets:
    """Training and test samples with what is known about them; see `sortify.data.load.Data`."""

    train: Samples
    test: Samples
    hint: str | None
    classes: int | None
    description: str
    vocabulary: Vocabulary | None = None


def joined(batch: Any) -> Any:
    """Collate function for sets that join their samples themselves."""
    return batch


@dataclass(frozen=True)
class Look:
    """How stored pictures or features become the model's input.

    Attributes:
        mean, std: per channel, of the stored values; None of both leaves them as they are.
        shape: of one prepared sample; None keeps the stored one.
        shift: largest random shift in pixels (zero-padded after standardising).
        flip: whether half of the pictures are mirrored left to right.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    shape: tuple[int, ...] | None = None
    shift: int = 0
    flip: bool = False

    def __call__(self, stored: Tensor) -> Tensor:
        """Prepare a batch: `[N, C, H, W]` of any type, or `[N, ...]` features, to float32 of the wanted shape."""
        values = stored.to(torch.float32)
        if self.mean is not None and self.std is not None:
            sizes = (1, -1) + (1,) * (values.dim() - 2)
            values = (values - torch.tensor(self.mean).view(sizes)) / torch.tensor(self.std).view(sizes)
        if self.shape is not None and values.shape[1:] != self.shape:
            values = fitted(values, self.shape)
        if self.flip:
            values = torch.where(torch.rand(len(values), 1, 1, 1) < 0.5, values.flip(-1), values)
        return shifted(values, self.shift) if self.shift else values


def fitted(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bring a batch to a sample shape: resize and repeat grey channels, or reshape where the sizes agree.

    Raises:
        DataError: there is no such way.
    """
    if values.dim() == 4 and len(shape) == 3 and values.shape[1] in (1, shape[0]):
        if values.shape[2:] != shape[1:]:
            values = functional.interpolate(values, shape[1:], mode="bilinear", antialias=True)
        return values.expand(-1, shape[0], -1, -1) if values.shape[1] != shape[0] else values
    if math.prod(values.shape[1:]) == math.prod(shape):
        return values.reshape(len(values), *shape)
    raise DataError(f"samples of shape {list(values.shape[1:])} do not fit the model's input {list(shape)}")


def shifted(values: Tensor, most: int) -> Tensor:
    """Shift each picture of `[N, C, H, W]` by up to `most` pixels in both directions, zeros moving in."""
    count, _, height, width = values.shape
    padded = functional.pad(values, (most,) * 4)
    down, right = torch.randint(2 * most + 1, (2, count, 1))
    rows = (down + torch.arange(height)).view(count, 1, height, 1)
    columns = (right + torch.arange(width)).view(count, 1, 1, width)
    samples = torch.arange(count).view(-1, 1, 1, 1)
    channels = torch.arange(values.shape[1]).view(1, -1, 1, 1)
    return padded[samples, channels, rows, columns]


@dataclass(frozen=True)
class ArraySet:
    """Samples in memory as they were stored, prepared batch by batch.

    Attributes:
        inputs: `[N, ...]`.
        targets: `[N]` or `[N, S]`; None where the inputs are their own targets.
        prepare: from stored inputs to the model's.
    """

    inputs: Tensor
    targets: Tensor | None
    prepare: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        batch = self.__getitems__([index])
        return batch[0] if self.targets is None else (batch[0][0], batch[1][0])

    def __getitems__(self, indices: list[int]) -> Any:
        inputs = self.prepare(self.inputs[indices])
        return inputs if self.targets is None else (inputs, self.targets[indices])


@dataclass(frozen=True)
class MaskedArraySet:
    """Pictures with masks in memory; in training both are moved alike.

    Attributes:
        inputs: `[N, C, H, W]`.
        targets: `[N, H, W]`.
        look: from stored pictures to the model's input.
    """

    inputs: Tensor
    targets: Tensor
    look: Look

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pictures, masks = self.__getitems__([index])
        return pictures[0], masks[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return moved_alike(self.look, self.inputs[indices], self.targets[indices])


def moved_alike(look: Look, pictures: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Prepare pictures `[N, C, H, W]`, and shift and flip their masks `[N, H, W]` as them; what moves in is ignored.

    Raises:
        DataError: masks that are to be moved have another resolution than the prepared pictures.
    """
    if not look.shift and not look.flip:
        return look(pictures), masks
    state = torch.get_rng_state()
    prepared = look(pictures)
    if prepared.shape[2:] != masks.shape[1:]:
        sizes = f"{list(prepared.shape[2:])} and {list(masks.shape[1:])}"
        raise DataError(f"to move pictures and masks alike they must be of one size, got {sizes}; use --augment none")
    torch.set_rng_state(state)
    same = Look(shift=look.shift, flip=look.flip)
    above = 1 - IGNORED  # nothing is 0 but what moves in
    moved = same(masks.unsqueeze(1).long() + above).squeeze(1).long()
    return prepared, torch.where(moved == 0, IGNORED, moved - above)


def statistics(parts: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel over parts `[n, C, ...]` of a set; 1 where nothing varies."""
    sums: list[Tensor] = []
    count = 0
    for part in parts:
        values = part.to(torch.float64).transpose(0, 1).flatten(1)
        sums.append(torch.stack([values.sum(1), values.square().sum(1)]))
        count += values.shape[1]
    mean, square = torch.stack(sums).sum(0) / count
    std = (square - mean.square()).clamp_min(0).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 1e-6, std, 1.0).tolist())


def check_labels(labels: Tensor, outputs: int | None, where: str) -> int:
    """Return the number of classes that labels speak of.

    Raises:
        DataError: a label is negative, or the model has no output for it.
    """
    if not len(labels):
        raise DataError(f"{where}: there are no samples")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise DataError(f"{where}: labels must not be negative, got {low}")
    if outputs is not None and high >= outputs:
        raise DataError(f"{where}: labels go up to {high}, but the model has {outputs} outputs (0 to {outputs - 1})")
    return high + 1


def picture_look(train: Tensor, wanted: Wanted) -> Look:
    """Return the standardising look of stored training pictures `[N, C, H, W]`, checked against the model's input."""
    mean, std = statistics(train.split(CHUNK))
    look = Look(mean, std, wanted.shape)
    look(train[:1])
    return look


def augmented(look: Look, augment: str) -> Look:
    """Return a look for training: "none", "shift" (up to an eighth of the height), or "shift-flip".

    Raises:
        DataError: the kind is unknown, or the samples are not pictures.
    """
    if augment == "none":
        return look
    if augment not in ("shift", "shift-flip"):
        raise DataError(f"unknown augmentation '{augment}'; there are none, shift, shift-flip")
    if look.shape is None or len(look.shape) != 3:
        raise DataError(f"augmentation '{augment}' is for pictures; these samples have shape {look.shape}")
    return Look(look.mean, look.std, look.shape, max(1, look.shape[1] // 8), augment == "shift-flip")
