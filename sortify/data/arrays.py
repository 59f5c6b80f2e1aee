"""Readers of arrays: scikit-learn's digits and `.npz` files.

Shapes: N samples, C channels, H height, W width, S tokens, K numbers or labels.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from sortify.data.samples import (
    ArraySet,
    Look,
    MaskedArraySet,
    Sets,
    Wanted,
    augmented,
    check_labels,
    picture_look,
)
from sortify.errors import DataError, first_line
from sortify.tasks.base import IGNORED
from sortify.tasks.segmentation import VOID

TEST_DIGITS = 360


def read_digits(wanted: Wanted, augment: str) -> Sets:
    """Return scikit-learn's 1797 handwritten digits, 1437 to train and 360 to test, always split alike."""
    from sklearn.datasets import load_digits  # slow to import, and nothing else needs it
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(
        range(len(digits.target)), test_size=TEST_DIGITS, stratify=digits.target, random_state=0
    )
    pictures = torch.from_numpy(digits.images).to(torch.float32).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    arrays = (pictures[train], labels[train], pictures[test], labels[test])
    fixed = wanted if wanted.shape is not None else replace(wanted, shape=(1, 8, 8))
    return _picture_sets(arrays, fixed, augment, "digits")


def read_npz(path: Path, wanted: Wanted, augment: str, task: str | None = None) -> Sets:
    """Return the samples of an `.npz` file with x_train, y_train, x_test, y_test.

    Bytes (uint8) are pictures, `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, standardised with the training
    set's statistics. Other integers are tokens `[N, S]`; without y arrays, or with y of the same shape, they
    are for language modelling. Floats are taken as they are.

    Targets: integers `[N]` are class numbers, floats `[N]` or `[N, K]` numbers for regression, zeros and ones `[N, K]`
    several labels, integers `[N, H, W]` masks of pictures. A named task goes before.

    Raises:
        DataError: the file cannot be read, an array is missing, or the arrays do not fit together or the model.
    """
    arrays = _arrays(path)
    x_train, x_test = arrays["x_train"], arrays["x_test"]
    if x_train.shape[1:] != x_test.shape[1:]:
        shapes = f"{list(x_train.shape)} and {list(x_test.shape)}"
        raise DataError(f"{path}: x_train and x_test must have samples of one shape, got {shapes}")
    if _is_tokens(x_train, wanted):
        return _token_sets(path, arrays, wanted, task)
    kind = _kind(arrays.get("y_train", x_train.new_zeros(0, dtype=torch.long)), x_train, task)
    targets = [_targets(path, arrays, part, wanted, kind) for part in ("train", "test")]
    if x_train.dtype == torch.uint8 or (x_train.dim() in (3, 4) and wanted.picture):
        inputs = [_channels_first(x, wanted) for x in (x_train, x_test)]
    else:
        inputs = [x_train, x_test]
    return _picture_sets((inputs[0], targets[0], inputs[1], targets[1]), wanted, augment, str(path), kind)


def _arrays(path: Path) -> dict[str, Tensor]:
    """Read an `.npz` file's arrays as tensors."""
    try:
        with path.open("rb") as file, numpy.load(file, allow_pickle=False) as stored:
            missing = [name for name in ("x_train", "x_test") if name not in stored.files]
            if missing:
                found = ", ".join(stored.files) or "nothing"
                raise DataError(f"{path}: array {missing[0]} is missing; expected x_train, x_test, y_*; found {found}")
            names = [name for name in ("x_train", "y_train", "x_test", "y_test") if name in stored.files]
            return {name: torch.from_numpy(_plain(path, name, stored[name])) for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file ({first_line(error)})") from None


def _plain(path: Path, name: str, array: Any) -> Any:
    """Return a numeric, non-empty array of a type that torch knows."""
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        raise DataError(f"{path}: {name} must be a numeric array, got {array.dtype} of shape {list(array.shape)}")
    if not array.size:
        raise DataError(f"{path}: {name} is empty")
    if array.dtype.kind == "u" and array.dtype != numpy.uint8:
        array = array.astype(numpy.int64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _is_tokens(x_train: Tensor, wanted: Wanted) -> bool:
    """Say whether an array holds token ids: integers other than bytes, or any integers where the model takes them."""
    if x_train.is_floating_point():
        return False
    return wanted.floating is False if wanted.floating is not None else x_train.dtype != torch.uint8


def _kind(targets: Tensor, inputs: Tensor, task: str | None) -> str:
    """Say what targets are for: the named task if it goes with arrays, else by type and shape."""
    if task in TARGETS:
        return task
    if targets.is_floating_point():
        return "regression"
    if inputs.dim() > 2 and targets.dim() >= inputs.dim() - 1 and targets.dim() in (3, 4):
        return "segmentation"
    return "multi-label" if targets.dim() == 2 and targets.shape[1] > 1 else "classification"


def _targets(path: Path, arrays: dict[str, Tensor], part: str, wanted: Wanted, kind: str) -> Tensor:
    """Return and check the targets of one part."""
    name, inputs = f"y_{part}", arrays[f"x_{part}"]
    if name not in arrays:
        raise DataError(f"{path}: array {name} is missing; found {', '.join(arrays)}")
    targets = arrays[name]
    if len(targets) != len(inputs):
        raise DataError(f"{path}: x_{part} has {len(inputs)} samples but {name} has {len(targets)}")
    if targets.dim() == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    return TARGETS[kind](targets, wanted, f"{path}, {name}")


def _labels(labels: Tensor, wanted: Wanted, where: str) -> Tensor:
    """One class number per sample."""
    if labels.dim() != 1 or labels.is_floating_point():
        raise DataError(f"{where}: must hold one integer label per sample, got {_described(labels)}")
    check_labels(labels, wanted.outputs, where)
    return labels.long()


def _numbers(targets: Tensor, wanted: Wanted, where: str) -> Tensor:
    """Numbers for regression."""
    values = targets.float()
    bad = int((~values.isfinite()).sum())
    if bad:
        raise DataError(f"{where}: {bad} of {values.numel()} targets are not finite; leave these samples out")
    own = 1 if values.dim() == 1 else values.shape[1]
    if wanted.rank in (1, 2) and values.dim() in (1, 2) and own != wanted.outputs:
        raise DataError(
            f"{where}: targets for regression ({_described(targets)}) have {own} numbers per sample, but the model has "
            f"{wanted.outputs} outputs; class numbers must be stored as integers"
        )
    return values


def _several(targets: Tensor, wanted: Wanted, where: str) -> Tensor:
    """Zeros and ones, one for each label."""
    if not ((targets == 0) | (targets == 1)).all():
        raise DataError(f"{where}: several labels per sample must be 0 or 1 each, got others in {_described(targets)}")
    own = 1 if targets.dim() == 1 else targets.shape[1]
    if wanted.outputs is not None and (targets.dim() > 2 or own != wanted.outputs):
        raise DataError(f"{where}: {own} labels per sample, but the model has {wanted.outputs} outputs")
    return targets.float()


def _masks(masks: Tensor, wanted: Wanted, where: str) -> Tensor:
    """One class number per pixel, 255 and -100 for none; bytes stay bytes."""
    masks = masks[:, 0] if masks.dim() == 4 and masks.shape[1] == 1 else masks
    if masks.dim() != 3 or masks.is_floating_point():
        raise DataError(f"{where}: masks must hold integers [N, H, W], got {_described(masks)}")
    known = masks[(masks != VOID) & (masks != IGNORED)]
    if known.numel():
        check_labels(known, wanted.outputs if wanted.rank == 4 else None, where)
    return masks


TARGETS = {"classification": _labels, "regression": _numbers, "multi-label": _several, "segmentation": _masks}
"""How the targets of each task are checked."""


def _described(array: Tensor) -> str:
    return f"{str(array.dtype).removeprefix('torch.')} of shape {list(array.shape)}"


def _channels_first(x: Tensor, wanted: Wanted) -> Tensor:
    """Return `[N, C, H, W]` for pictures in any of the three layouts; other shapes stay."""
    if x.dim() == 3:
        return x.unsqueeze(1)
    if x.dim() != 4:
        return x
    channels = (wanted.picture[0],) if wanted.picture else (1, 3, 4)
    last = x.shape[3] in channels and x.shape[1] not in channels
    grey = wanted.picture is not None and x.shape[3] == 1 and x.shape[1] not in (1, *channels)
    return x.permute(0, 3, 1, 2) if last or grey else x


def _picture_sets(
    arrays: tuple[Tensor, Tensor, Tensor, Tensor], wanted: Wanted, augment: str, name: str, kind: str = "classification"
) -> Sets:
    x_train, y_train, x_test, y_test = arrays
    classes = check_labels(y_train, wanted.outputs, name) if kind == "classification" else None
    standard = x_train.dtype == torch.uint8 or name == "digits"
    look = picture_look(x_train, wanted) if standard else Look(shape=wanted.shape)
    look(x_train[:1])
    shape = look.shape or tuple(x_train.shape[1:])
    made = MaskedArraySet if kind == "segmentation" else ArraySet
    train = made(x_train, y_train, augmented(replace(look, shape=shape), augment))
    sizes = f"{len(x_train)} training and {len(x_test)} test samples"
    return Sets(train, made(x_test, y_test, look), kind, classes, f"{name}: {sizes}")


def _token_sets(path: Path, arrays: dict[str, Tensor], wanted: Wanted, task: str | None) -> Sets:
    """Return token ids with targets, or with themselves as targets."""
    sets, own = [], arrays.get("y_train")
    modelling = task not in TARGETS and (own is None or own.shape == arrays["x_train"].shape)
    kind = "language-modelling" if modelling else _kind(arrays.get("y_train", torch.empty(0)), arrays["x_train"], task)
    for part in ("train", "test"):
        tokens = arrays[f"x_{part}"]
        if tokens.dim() != 2 or int(tokens.min()) < 0:
            raise DataError(f"{path}: x_{part} must hold token ids [N, S] from 0, got shape {list(tokens.shape)}")
        if wanted.length not in (None, tokens.shape[1]) and not wanted.any_length:
            raise DataError(
                f"{path}: x_{part} has {tokens.shape[1]} tokens per sample; the model takes {wanted.length}"
            )
        if modelling and wanted.rank == 3:
            check_labels(tokens.flatten(), wanted.outputs, f"{path}, x_{part} (as targets)")
        target = arrays.get(f"y_{part}") if modelling else _targets(path, arrays, part, wanted, kind)
        sets.append(ArraySet(tokens, target.long() if modelling and target is not None else target, Tensor.long))
    classes = int(arrays["y_train"].max()) + 1 if kind == "classification" else None
    sizes = f"{len(sets[0])} training and {len(sets[1])} test samples of {arrays['x_train'].shape[1]} tokens"
    return Sets(sets[0], sets[1], kind, classes, f"{path}: {sizes}")
