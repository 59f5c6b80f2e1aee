"""Data by one line of text: `digits`, a file, a folder, or `package.module:function`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from sortify.data.arrays import read_digits, read_npz
from sortify.data.batches import Loader
from sortify.data.images import read_folder
from sortify.data.masks import has_masks, read_masks
from sortify.data.samples import Samples, Sets, Wanted, joined
from sortify.data.saved import Reading, read_dataset
from sortify.data.tables import ENDINGS, table_files
from sortify.data.texts import make_tokenizer, read_text
from sortify.errors import DataError
from sortify.tasks.inputs import Vocabulary
from sortify.tasks.own_functions import called_with, imported

if TYPE_CHECKING:
    from sortify.models.sorted_model import SortedModel

FORMS = (
    "digits, FILE.npz, .csv, .tsv, .jsonl or .txt, a folder of pictures, a saved data set, or package.module:function"
)
SAVED_MARKS = ("dataset_dict.json", "dataset_info.json", "state.json")


@dataclass(frozen=True)
class Data:
    """What a model is trained and tested on.

    Attributes:
        train: shuffled batches, `(inputs, targets)` or a dict with labels.
        test: batches in a fixed order.
        hint: name of the task, a key of `TASKS`; None leaves it to the model's output and the targets.
        classes: number of classes where samples have one of them.
        description: one line for people.
        vocabulary: of tokens, for masked language modelling.
    """

    train: Loader
    test: Loader
    hint: str | None = None
    classes: int | None = None
    description: str = "data of your own"
    vocabulary: Vocabulary | None = None


@dataclass(frozen=True)
class Options:
    """How to read data; see `load_data`."""

    batch_size: int
    seed: int
    tokenizer: str | None
    sequence_length: int | None
    augment: str
    workers: int
    test_batch_size: int
    task: str | None = None


def load_data(
    text: str,
    *,
    batch_size: int = 64,
    seed: int = 0,
    model: SortedModel | None = None,
    tokenizer: str | None = None,
    sequence_length: int | None = None,
    augment: str = "none",
    workers: int = 0,
    test_batch_size: int = 256,
    task: str | None = None,
) -> Data:
    """Load data.

    Args:
        text: `digits` (scikit-learn's handwritten digits), an `.npz` file (x_train, y_train, x_test, y_test),
            a `.txt` file (language modelling), a `.csv`, `.tsv` or `.jsonl` table of texts and labels, a folder
            train/CLASS and test/CLASS of pictures (or train/images and train/masks), a folder that `datasets`
            saved, or `package.module:function`, which returns (train, test) loaders or a `Data`; it is given
            `batch_size` and `seed` if it takes them.
        batch_size: samples of a training batch, over all processes.
        seed: of the training order.
        model: the sorted model that the data must fit: pictures are resized to its input and grey ones repeated
            to its channels, sequences get its length, labels are checked against its outputs.
        tokenizer: folder of a saved tokenizer; without one text is read as bytes.
        sequence_length: tokens of a sample, if not the model's.
        augment: "none", "shift" or "shift-flip", for training pictures.
        workers: processes that read samples.
        test_batch_size: samples of a test batch.
        task: name of the task, where the data leaves it open; see `sortify.task_for`.

    Raises:
        DataError: the data is missing, unreadable, or does not fit the model.
    """
    if batch_size < 1 or test_batch_size < 1:
        raise DataError(f"the batch size must be 1 or more, got {min(batch_size, test_batch_size)}")
    named = None if task is None or ":" in task else task
    options = Options(batch_size, seed, tokenizer, sequence_length, augment, workers, test_batch_size, named)
    if ":" in text and not Path(text).exists():
        return _from_function(text, options)
    sets = _read(text, Wanted.of(model), options)
    if not len(sets.train) or not len(sets.test):
        raise DataError(f"{text}: {len(sets.train)} training and {len(sets.test)} test samples; expected some of both")
    return _loaded(sets, options)


def _read(text: str, wanted: Wanted, options: Options) -> Sets:
    """Choose the reader."""
    path = Path(text)
    if text == "digits":
        return read_digits(wanted, options.augment)
    if not path.exists():
        raise DataError(f"{text}: no such data; expected {FORMS}")
    saved = path.is_dir() and any((path / mark).exists() for mark in SAVED_MARKS)
    if saved or path.suffix in ENDINGS or table_files(path) is not None:
        tokenizer, length = make_tokenizer(options.tokenizer), options.sequence_length
        return read_dataset(path, Reading(wanted, tokenizer, length, options.augment, options.task))
    if path.is_dir():
        return (read_masks if has_masks(path) else read_folder)(path, wanted, options.augment)
    if path.suffix == ".npz":
        return read_npz(path, wanted, options.augment, options.task)
    if path.suffix == ".txt":
        return read_text(path, wanted, make_tokenizer(options.tokenizer), options.sequence_length)
    raise DataError(f"{text}: unknown kind of data '{path.suffix}'; expected {FORMS}")


def _loaded(sets: Sets, options: Options) -> Data:
    """Put loaders around sets."""
    train = DataLoader[Any](
        _as_dataset(sets.train),
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=len(sets.train) >= options.batch_size,
        collate_fn=joined,
        num_workers=options.workers,
        generator=torch.Generator().manual_seed(options.seed),
    )
    test = DataLoader[Any](
        _as_dataset(sets.test),
        batch_size=options.test_batch_size,
        collate_fn=joined,
        num_workers=options.workers,
    )
    vocabulary = sets.vocabulary
    if vocabulary is None and options.tokenizer is not None:
        vocabulary = make_tokenizer(options.tokenizer).vocabulary
    return Data(train, test, options.task or sets.hint, sets.classes, sets.description, vocabulary)


def _as_dataset(samples: Samples) -> Any:
    """Any sequence of samples serves a DataLoader; only its type says otherwise."""
    return samples


def _from_function(text: str, options: Options) -> Data:
    """Call `package.module:function` and take what it returns."""
    function = imported(text, FORMS)
    if not callable(function):
        raise DataError(f"{text} is a {type(function).__name__}, not a function that returns loaders")
    found = called_with(function, batch_size=options.batch_size, seed=options.seed)
    if isinstance(found, (tuple, list)) and len(found) == 2 and all(hasattr(part, "__iter__") for part in found):
        found = Data(found[0], found[1], description=text)
    if not isinstance(found, Data):
        kind = type(found).__name__
        raise DataError(f"{text} returned {kind}; expected (train, test) loaders or sortify's Data")
    vocabulary = found.vocabulary
    if options.tokenizer is not None and vocabulary is None:
        vocabulary = make_tokenizer(options.tokenizer).vocabulary
    return replace(found, hint=options.task or found.hint, vocabulary=vocabulary)
