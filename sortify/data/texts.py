"""Text as token ids, and the reader of plain text files for language modelling.

Without a tokenizer text is read byte by byte: the id of a byte is its value (a vocabulary of 256). Of the values that
never occur in text, 0 pads and 255 masks. Two texts of one sample are joined by a line break.

Shapes: B samples, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from sortify.data.samples import Sets, Wanted, check_labels
from sortify.errors import DataError, first_line
from sortify.tasks.inputs import Vocabulary

DEFAULT_LENGTH = 128
TEST_SHARE = 0.1


class Tokenizer(Protocol):
    """Text to token ids."""

    name: str
    pad: int
    vocabulary: Vocabulary

    def text(self, text: str) -> Sequence[int]:
        """Return the ids of a long text, without marks of beginning or end."""
        ...

    def samples(self, texts: Sequence[Sequence[str]], length: int) -> list[list[int]]:
        """Return the ids of each sample's one or two texts, at most `length` of them."""
        ...


class Bytes:
    """One id per byte of UTF-8, in which 0 and 255 never occur: these pad and mask."""

    name = "bytes"
    pad = 0
    vocabulary = Vocabulary(256, 255, (0,))

    def text(self, text: str) -> Sequence[int]:
        """Return the bytes."""
        return list(text.encode())

    def samples(self, texts: Sequence[Sequence[str]], length: int) -> list[list[int]]:
        """Return the first bytes of each sample."""
        return [list("\n".join(parts).encode()[:length]) for parts in texts]


class Saved:
    """A tokenizer saved in a folder, as `transformers` reads it; nothing is downloaded."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer  # slow to import, and only needed here

        if not Path(folder).is_dir():
            raise DataError(f"{folder}: no such tokenizer folder")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder}: not a readable tokenizer ({first_line(error)})") from None
        self.name = f"tokenizer {folder}"
        self.pad = self._tokenizer.pad_token_id or 0
        special = tuple(self._tokenizer.all_special_ids)
        self.vocabulary = Vocabulary(len(self._tokenizer), self._tokenizer.mask_token_id, special)

    def text(self, text: str) -> Sequence[int]:
        """Return ids without special tokens."""
        ids: Sequence[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def samples(self, texts: Sequence[Sequence[str]], length: int) -> list[list[int]]:
        """Return ids with the tokenizer's special tokens."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        ids: list[list[int]] = self._tokenizer(*columns, truncation=True, max_length=length)["input_ids"]
        return ids


def make_tokenizer(folder: str | None) -> Tokenizer:
    """Return the tokenizer of a folder, or bytes."""
    return Bytes() if folder is None else Saved(folder)


@dataclass(frozen=True)
class BlockSet:
    """A long text in blocks that follow each other.

    Attributes:
        tokens: `[T]`, of any integer type.
        length: of a block.
    """

    tokens: Any
    length: int

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        blocks = [self.tokens[index * self.length : (index + 1) * self.length] for index in indices]
        return {"input_ids": torch.from_numpy(numpy.stack(blocks).astype(numpy.int64))}


def read_text(path: Path, wanted: Wanted, tokenizer: Tokenizer, length: int | None) -> Sets:
    """Return a text file for language modelling: blocks of `length` tokens, the last tenth to test.

    The length is the model's (its example inputs') unless given. Bytes are read from the file when asked for.

    Raises:
        DataError: the text is too short, or the model's vocabulary is too small for it.
    """
    length = length or wanted.length or DEFAULT_LENGTH
    tokens = _file_tokens(path, tokenizer)
    cut = len(tokens) - max(length, int(len(tokens) * TEST_SHARE))
    if cut < length:
        raise DataError(f"{path}: {len(tokens)} tokens are too few; expected at least two blocks of {length}")
    if wanted.rank == 3:
        check_labels(torch.tensor([int(tokens.max())]), wanted.outputs, f"{path} (token ids as targets)")
    train, test = BlockSet(tokens[:cut], length), BlockSet(tokens[cut:], length)
    sizes = f"{len(train)} training and {len(test)} test blocks of {length} ({tokenizer.name})"
    return Sets(train, test, "language-modelling", None, f"{path}: {sizes}", tokenizer.vocabulary)


def _file_tokens(path: Path, tokenizer: Tokenizer) -> Any:
    if not path.stat().st_size:
        raise DataError(f"{path}: the file is empty")
    if isinstance(tokenizer, Bytes):
        return numpy.memmap(path, dtype=numpy.uint8, mode="r")
    try:
        return numpy.asarray(tokenizer.text(path.read_text(encoding="utf-8")), dtype=numpy.int32)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
