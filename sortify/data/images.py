"""Reader of picture folders: one folder per class, pictures decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sortify.data.samples import Look, Sets, Wanted, augmented, check_labels, statistics
from sortify.errors import DataError, first_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
TEST_FOLDERS = ("test", "val", "valid", "validation")
MEASURED_PICTURES = 1000
"""Pictures of a set that mean and standard deviation are estimated on."""


def read_folder(path: Path, wanted: Wanted, augment: str) -> Sets:
    """Return the pictures of `path/train/CLASS/*` and `path/test/CLASS/*` (or val), one class per folder.

    Raises:
        DataError: a folder is missing or empty, a class is not among the training classes, or a picture is unreadable.
    """
    test = next((path / name for name in TEST_FOLDERS if (path / name).is_dir()), None)
    if not (path / "train").is_dir() or test is None:
        raise DataError(f"{path}: expected folders train/CLASS and test/CLASS (or val/CLASS) with pictures")
    classes = sorted(folder.name for folder in (path / "train").iterdir() if folder.is_dir())
    files, labels = _listed(path / "train", classes)
    test_files, test_labels = _listed(test, classes)
    check_labels(labels, wanted.outputs, f"{path}/train")
    shape = wanted.picture or stored_shape(files[0])
    look = measured_look(files, shape)
    train = PictureSet(files, labels, augmented(look, augment))
    return Sets(train, PictureSet(test_files, test_labels, look), "classification", len(classes), f"pictures of {path}")


@dataclass(frozen=True)
class PictureSet:
    """Picture files, decoded and resized when asked for.

    Attributes:
        pictures: paths, or anything whose items are opened PIL images.
        labels: `[N]`.
        look: its shape (C, H, W) says how large and in which mode they are read.
    """

    pictures: Sequence[Any]
    labels: Tensor
    look: Look

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pictures, labels = self.__getitems__([index])
        return pictures[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        shape = self.look.shape or ()
        stored = torch.stack([decoded(self.pictures[index], shape) for index in indices])
        return self.look(stored), self.labels[indices]


def decoded(picture: Any, shape: tuple[int, ...]) -> Tensor:
    """Return a picture (a path, or an opened PIL image) as uint8 `[C, H, W]` of the given shape.

    Raises:
        DataError: the file is no readable picture; the message names it.
    """
    channels, height, width = shape
    try:
        with Image.open(picture) if isinstance(picture, Path) else picture as opened:
            mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
            resized = opened.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
    except KeyError:
        raise DataError(f"the model takes {channels} channels; pictures give 1, 3 or 4") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{picture}: not a readable picture ({first_line(error)})") from None
    return torch.from_numpy(numpy.array(resized)).view(height, width, channels).permute(2, 0, 1)


def _listed(folder: Path, classes: Sequence[str]) -> tuple[list[Path], Tensor]:
    """List a folder's pictures class by class, in a fixed order."""
    files: list[Path] = []
    labels: list[int] = []
    for inner in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if inner.name not in classes:
            raise DataError(f"{inner}: class '{inner.name}' is not among the training classes")
        found = sorted(file for file in inner.iterdir() if file.suffix.lower() in SUFFIXES)
        files += found
        labels += [classes.index(inner.name)] * len(found)
    if not files:
        raise DataError(f"{folder}: no pictures in it; expected CLASS/*.png, .jpg and the like")
    return files, torch.tensor(labels)


def stored_shape(file: Path) -> tuple[int, int, int]:
    """Return the shape of a picture, as a model for all."""
    try:
        with Image.open(file) as opened:
            return (1 if opened.mode in ("1", "L") else 3, opened.height, opened.width)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{file}: not a readable picture ({first_line(error)})") from None


def measured_look(pictures: Sequence[Any], shape: tuple[int, ...]) -> Look:
    """Estimate mean and standard deviation on evenly spaced pictures."""
    chosen = range(0, len(pictures), -(-len(pictures) // MEASURED_PICTURES))
    mean, std = statistics(decoded(pictures[index], shape).unsqueeze(0) for index in chosen)
    return Look(mean, std, shape)
