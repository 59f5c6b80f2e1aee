"""Reader of tables and of data sets that Hugging Face `datasets` saved: tokens, texts or pictures, labels or none.

Shapes: B samples, S positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sortify.data.images import PictureSet, measured_look
from sortify.data.samples import Sets, Wanted, augmented, check_labels
from sortify.data.tables import read_columns, table_files
from sortify.data.texts import DEFAULT_LENGTH, TEST_SHARE, Tokenizer
from sortify.errors import DataError, first_line
from sortify.tasks.base import IGNORED
from sortify.tasks.inputs import TARGET_NAMES

TEXT_TASKS = ("language-modelling", "masked-lm")
TEST_SPLITS = ("test", "validation", "valid", "dev")
PICTURE_COLUMNS = ("image", "img")
TOKEN_COLUMNS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class RowSet:
    """Rows of a saved data set, tokenised and padded when asked for.

    Attributes:
        rows: of the `datasets` package.
        columns: text columns, or token columns as stored.
        target: column of the labels, if there is one.
        names: of the classes where labels are stored as words.
        tokenizer: for text columns.
        length: of every sample.
    """

    rows: Any
    columns: tuple[str, ...]
    target: str | None
    names: tuple[str, ...]
    tokenizer: Tokenizer
    length: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        found = self.rows[indices]
        batch = self._tokens(found)
        if self.target is not None:
            labels = found[self.target]
            labels = [self.names.index(label) for label in labels] if self.names else labels
            batch["labels"] = _padded(labels, self.length, IGNORED) if _nested(labels) else torch.tensor(labels)
        return batch

    def _tokens(self, found: Mapping[str, Any]) -> dict[str, Tensor]:
        if "input_ids" in self.columns:
            pads = {name: self.tokenizer.pad if name == "input_ids" else 0 for name in self.columns}
            batch = {name: _padded(found[name], self.length, pad) for name, pad in pads.items()}
            ids = found["input_ids"]
        else:
            texts = list(zip(*(found[name] for name in self.columns), strict=True))
            ids = self.tokenizer.samples(texts, self.length)
            batch = {"input_ids": _padded(ids, self.length, self.tokenizer.pad)}
        batch.setdefault("attention_mask", _padded([[1] * len(row) for row in ids], self.length, 0))
        return batch


def _nested(labels: Sequence[Any]) -> bool:
    return bool(labels) and isinstance(labels[0], (list, tuple))


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    """Return `[B, length]` int64, longer rows cut."""
    padded = torch.full((len(rows), length), value, dtype=torch.long)
    for index, row in enumerate(rows):
        cut = list(row[:length])
        padded[index, : len(cut)] = torch.tensor(cut, dtype=torch.long)
    return padded


@dataclass(frozen=True)
class Reading:
    """How rows become samples.

    Attributes:
        wanted: what the model expects.
        tokenizer: for text columns.
        length: tokens of a sample; None takes the model's.
        augment: of training pictures.
        task: its name where the user gave one.
    """

    wanted: Wanted
    tokenizer: Tokenizer
    length: int | None = None
    augment: str = "none"
    task: str | None = None


def read_dataset(path: Path, reading: Reading) -> Sets:
    """Return a data set that `datasets` saved with `save_to_disk`, or a table of samples; see `data.tables`.

    Columns: pictures (image and a label), token ids (input_ids, optionally attention_mask, token_type_ids,
    labels), or one or two texts with or without a label. The split to test is `test` where it has labels, else
    `validation`; a set without splits is split 9 to 1, always alike. Labels that are floats are for regression.

    Raises:
        DataError: the folder cannot be read, or its columns or labels do not fit.
    """
    train, test = _splits(path)
    wanted, tokenizer = reading.wanted, reading.tokenizer
    target = next((name for name in TARGET_NAMES if name in train.column_names), None)
    if reading.task in TEXT_TASKS and target is not None and not _nested(train[:1][target]):
        target = None  # labels of whole texts say nothing of their tokens
    numbers = target is not None and (reading.task == "regression" or _has_numbers(path, (train, test), target, wanted))
    names, classes = ((), None) if numbers else _classes(path, train, test, target, wanted)
    picture = next((name for name in PICTURE_COLUMNS if name in train.column_names), None)
    described = f"{path}: {len(train)} training and {len(test)} test samples"
    if picture is not None:
        return _picture_rows(path, (train, test), (picture, target), wanted, reading.augment, described)
    columns = _input_columns(path, train, target)
    length = reading.length or wanted.length or DEFAULT_LENGTH
    sets = [RowSet(rows, columns, target, names, tokenizer, length) for rows in (train, test)]
    listed = target is not None and _nested(train[:1][target])
    labelled = "regression" if numbers else "token-classification" if listed else "classification"
    hint = "language-modelling" if target is None else labelled
    described += f" of {length} tokens ({tokenizer.name})"
    return Sets(sets[0], sets[1], hint, classes, described, tokenizer.vocabulary)


def _has_numbers(path: Path, splits: Sequence[Any], target: str, wanted: Wanted) -> bool:
    """Say whether labels are floats; check them against the model."""
    if not any(isinstance(label, float) for label in splits[0][:100][target]):
        return False
    for rows in splits:
        found = torch.tensor([math.nan if value is None else value for value in rows[target]], dtype=torch.float64)
        if not found.isfinite().all():
            raise DataError(f"{path}: column {target} holds numbers that are not finite; leave these samples out")
    if wanted.rank == 2 and wanted.outputs != 1:
        raise DataError(
            f"{path}: column {target} holds numbers (regression), but the model has {wanted.outputs} outputs; classes "
            "must be integers or words"
        )
    return True


def _splits(path: Path) -> tuple[Any, Any]:
    import datasets  # type: ignore[import-untyped]  # slow to import, and only needed here

    tables = table_files(path)
    try:
        if tables is None:
            saved = datasets.load_from_disk(str(path))
        else:
            parts = [datasets.Dataset.from_dict(read_columns(file)) for file in tables if file is not None]
            saved = parts[0] if len(parts) == 1 else dict(zip(("train", "test"), parts, strict=True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a readable saved data set ({first_line(error)})") from None
    if isinstance(saved, datasets.Dataset):
        if len(saved) < 2:
            raise DataError(f"{path}: {len(saved)} samples are too few to keep some for testing")
        split = saved.train_test_split(test_size=TEST_SHARE, seed=0)
        return split["train"], split["test"]
    tests = [saved[name] for name in TEST_SPLITS if name in saved]
    if "train" not in saved or not tests:
        raise DataError(f"{path}: expected splits train and test (or validation), found {', '.join(saved)}")
    return saved["train"], next((rows for rows in tests if _has_labels(rows)), tests[0])


def _has_labels(rows: Any) -> bool:
    """Say whether a split has labels worth comparing with: GLUE's test splits say -1 everywhere."""
    target = next((name for name in TARGET_NAMES if name in rows.column_names), None)
    if target is None or _nested(rows[:1][target]):
        return True
    return any(label != -1 for label in rows.unique(target))


def _classes(
    path: Path, train: Any, test: Any, target: str | None, wanted: Wanted
) -> tuple[tuple[str, ...], int | None]:
    """Return the classes' names where labels are words, and their number; check labels that are numbers."""
    if target is None or _nested(train[:1][target]):
        return (), None
    for rows, part in ((train, "train"), (test, "test")):
        found = rows.unique(target)
        kinds = {type(label) for label in found}
        if kinds == {str} and rows is train:
            names = tuple(sorted(found))
            check_labels(torch.tensor([len(names) - 1]), wanted.outputs, f"{path}, column {target}")
        elif kinds == {str}:
            unknown = sorted(set(found) - set(names))
            if unknown:
                raise DataError(f"{path}: label '{unknown[0]}' of the {part} split does not occur in training")
        elif kinds == {int}:
            names = ()
            check_labels(torch.tensor(found), wanted.outputs, f"{path}, column {target} of {part}")
        else:
            raise DataError(f"{path}: column {target} must hold integers or words, got {found[:1]}")
    return names, len(names) or int(max(train.unique(target))) + 1


def _input_columns(path: Path, rows: Any, target: str | None) -> tuple[str, ...]:
    if "input_ids" in rows.column_names:
        return tuple(name for name in TOKEN_COLUMNS if name in rows.column_names)
    texts = tuple(name for name in rows.column_names if name != target and isinstance(rows[0][name], str))
    if not texts or len(texts) > 2:
        found = ", ".join(rows.column_names)
        raise DataError(f"{path}: expected a column input_ids or image, or one or two columns of text, found {found}")
    return texts


@dataclass(frozen=True)
class Column:
    """One column of a saved data set, as a sequence."""

    rows: Any
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index][self.name]


def _picture_rows(
    path: Path, splits: tuple[Any, Any], columns: tuple[str, str | None], wanted: Wanted, augment: str, described: str
) -> Sets:
    picture, target = columns
    if target is None:
        raise DataError(f"{path}: pictures without a column of labels ({', '.join(TARGET_NAMES)})")
    first = splits[0][0][picture]
    shape = wanted.picture or (1 if first.mode in ("1", "L") else 3, first.height, first.width)
    names, classes = _classes(path, splits[0], splits[1], target, wanted)
    pictures = [Column(rows, picture) for rows in splits]
    labels = [torch.tensor([names.index(x) if names else x for x in rows[target]]) for rows in splits]
    look = measured_look(pictures[0], shape)  # type: ignore[arg-type]
    sets = [PictureSet(column, values, look) for column, values in zip(pictures, labels, strict=True)]  # type: ignore[arg-type]
    return Sets(replace(sets[0], look=augmented(look, augment)), sets[1], "classification", classes, described)
