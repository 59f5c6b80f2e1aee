"""Reader of pictures with masks, for segmentation: `train/images`, `train/masks`, and the same to test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sortify.data.images import SUFFIXES, TEST_FOLDERS, decoded, measured_look, stored_shape
from sortify.data.samples import Look, Sets, Wanted, augmented, moved_alike
from sortify.errors import DataError, first_line

MASK_MODES = ("L", "P", "1", "I", "I;16")
"""Kinds of pictures with one number per pixel: grey, palette, black and white, 16 and 32 bits."""


def has_masks(path: Path) -> bool:
    """Say whether a folder holds pictures with masks, not classes."""
    return all((path / "train" / name).is_dir() for name in ("images", "masks"))


def read_masks(path: Path, wanted: Wanted, augment: str) -> Sets:
    """Return the pictures of `path/train/images/*` with the masks of equal names in `path/train/masks/*`; test alike.

    Pictures are resized to the model's input (without a model, to the first one's size), masks to the same height and
    width, without mixing classes.

    Raises:
        DataError: a folder is missing or empty, or a picture has no mask.
    """
    test = next((path / name for name in TEST_FOLDERS if (path / name / "images").is_dir()), None)
    if test is None:
        raise DataError(f"{path}: expected folders test/images and test/masks (or val/) beside those of train")
    train, held = _pairs(path / "train"), _pairs(test)
    look = measured_look([picture for picture, _ in train], wanted.picture or stored_shape(train[0][0]))
    sizes = f"{len(train)} training and {len(held)} test pictures with masks"
    return Sets(MaskSet(train, augmented(look, augment)), MaskSet(held, look), "segmentation", None, f"{path}: {sizes}")


@dataclass(frozen=True)
class MaskSet:
    """Picture files with mask files, decoded and resized when asked for.

    Attributes:
        pairs: paths of pictures and of their masks.
        look: its shape (C, H, W) says how large and in which mode pictures are read.
    """

    pairs: Sequence[tuple[Path, Path]]
    look: Look

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pictures, masks = self.__getitems__([index])
        return pictures[0], masks[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        shape = self.look.shape or ()
        chosen = [self.pairs[index] for index in indices]
        stored = torch.stack([decoded(picture, shape) for picture, _ in chosen])
        return moved_alike(self.look, stored, torch.stack([decoded_mask(mask, shape[1:]) for _, mask in chosen]))


def decoded_mask(path: Path, size: tuple[int, ...]) -> Tensor:
    """Return a mask file as class numbers `[H, W]`, int64; palettes give the numbers, not the colours.

    Raises:
        DataError: the file is no readable picture, or has several numbers per pixel.
    """
    try:
        with Image.open(path) as opened:
            if opened.mode not in MASK_MODES:
                raise DataError(
                    f"{path}: a mask must be grey or have a palette (one number per pixel), got {opened.mode}"
                )
            array = numpy.array(opened.resize((size[1], size[0]), Image.Resampling.NEAREST))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable picture ({first_line(error)})") from None
    return torch.from_numpy(array.astype(numpy.int64))


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """List pictures with their masks, in a fixed order; endings may differ."""
    masks = {file.stem: file for file in sorted((folder / "masks").glob("*")) if file.suffix.lower() in SUFFIXES}
    pictures = sorted(file for file in (folder / "images").iterdir() if file.suffix.lower() in SUFFIXES)
    if not pictures:
        raise DataError(f"{folder / 'images'}: no pictures in it; expected *.png, .jpg and the like")
    for picture in pictures:
        if picture.stem not in masks:
            raise DataError(f"{picture}: has no mask; expected {folder / 'masks' / picture.stem}.png or the like")
    return [(picture, masks[picture.stem]) for picture in pictures]
