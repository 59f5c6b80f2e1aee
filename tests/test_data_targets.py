"""Readers of targets that are no single classes: numbers, several labels, masks; and tables of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from test_task_training import picture_folder, segments
from training_models import make_model
from transformers import BertTokenizer

from sortify.data.load import Data, load_data
from sortify.data.masks import decoded_mask, read_masks
from sortify.data.samples import Wanted
from sortify.data.tables import read_columns
from sortify.errors import DataError
from sortify.tasks.registry import task_for

RNG = numpy.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (20, 8, 8), dtype=numpy.uint8)
FLOATS = RNG.normal(size=(20, 64)).astype(numpy.float32)


def save(path: Path, x: Any, y: Any, **changes: Any) -> str:
    """Write an .npz file whose test part is the first eight samples."""
    numpy.savez(path / "a.npz", **{"x_train": x, "y_train": y, "x_test": x[:8], "y_test": y[:8], **changes})
    return str(path / "a.npz")


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "hint", "kind"),
    [
        (PICTURES, RNG.normal(size=20), "regression", torch.float32),
        (PICTURES, RNG.normal(size=(20, 1)), "regression", torch.float32),
        (FLOATS, RNG.normal(size=(20, 3)), "regression", torch.float32),
        (RNG.integers(0, 256, (20, 16)), RNG.normal(size=20), "regression", torch.float32),
        (FLOATS, RNG.integers(0, 2, (20, 3)), "multi-label", torch.float32),
        (RNG.integers(0, 256, (20, 16)), RNG.integers(0, 2, (20, 3)), "multi-label", torch.float32),
        (PICTURES, RNG.integers(0, 3, (20, 4, 4)), "segmentation", torch.int64),
        (PICTURES, RNG.integers(0, 3, (20, 1, 8, 8), dtype=numpy.uint8), "segmentation", torch.uint8),
        (PICTURES, RNG.integers(0, 3, (20, 1)), "classification", torch.int64),
    ],
)
def test_targets_tell_the_task(tmp_path: Path, x: Any, y: Any, hint: str, kind: torch.dtype) -> None:
    data = load_data(save(tmp_path, x, y), batch_size=5)
    inputs, target = next(iter(data.test))
    assert (data.hint, target.dtype, len(inputs)) == (hint, kind, 8)
    squeezed = y[:8, 0] if y.ndim in (2, 4) and y.shape[1] == 1 else y[:8]
    torch.testing.assert_close(target, torch.from_numpy(squeezed), check_dtype=False)


def test_a_named_task_goes_before(tmp_path: Path) -> None:
    data = load_data(
        save(tmp_path, FLOATS, RNG.integers(0, 9, 20)), task="regression", model=make_model("mlp", classes=1)
    )
    assert data.hint == "regression"
    assert next(iter(data.test))[1].dtype == torch.float32
    tokens = RNG.integers(1, 200, (20, 16))
    labelled = save(tmp_path, tokens, tokens)
    assert load_data(labelled).hint == "language-modelling"
    assert load_data(labelled, task="token-classification").hint == "token-classification"


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (numpy.full(20, numpy.nan), "y_train: 20 of 20 targets are not finite; leave these samples out"),
        (
            RNG.normal(size=(20, 3)),
            r"y_train: targets for regression \(float64 of shape \[20, 3\]\) have 3 numbers per",
        ),
        (RNG.integers(0, 3, (20, 10)), r"must be 0 or 1 each, got others in int64 of shape \[20, 10\]"),
        (RNG.integers(0, 2, (20, 3)), "y_train: 3 labels per sample, but the model has 10 outputs"),
        (numpy.full((20, 4, 4), -3), "y_train: labels must not be negative, got -3"),
    ],
)
def test_wrong_targets_are_refused(tmp_path: Path, y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_data(save(tmp_path, PICTURES, y), model=make_model("mlp"))
    assert "\n" not in str(caught.value)


def test_masks_must_fit_the_model(tmp_path: Path) -> None:
    model = segments()
    path = save(tmp_path, PICTURES, numpy.full((20, 8, 8), 255))
    assert task_for(load_data(path, model=model), model).name == "segmentation"
    with pytest.raises(DataError, match="labels go up to 3, but the model has 3 outputs"):
        load_data(save(tmp_path, PICTURES, numpy.full((20, 8, 8), 3)), model=model)
    with pytest.raises(DataError, match=r"masks must hold integers \[N, H, W\], got float32"):
        load_data(save(tmp_path, PICTURES, PICTURES.astype(numpy.float32)), task="segmentation")


@pytest.mark.parametrize("kind", ["shift", "shift-flip"])
def test_masks_move_with_their_pictures(tmp_path: Path, kind: str) -> None:
    pictures = RNG.integers(0, 250, (20, 8, 8)).astype(numpy.float32)
    data = load_data(save(tmp_path, pictures[:, None], pictures.astype(numpy.uint8)), batch_size=20, augment=kind)
    moved, masks = next(iter(data.train))
    known = masks != -100
    assert torch.equal(moved[:, 0][known], masks[known].float())
    assert not moved[:, 0][~known].any()
    stored = {picture.tobytes() for picture in pictures}
    assert sum(picture[0].numpy().tobytes() in stored for picture in moved) < 20
    still, fixed = next(iter(data.test))
    assert torch.equal(still[:, 0], fixed.float())


def test_masks_of_another_size_cannot_be_moved(tmp_path: Path) -> None:
    data = load_data(save(tmp_path, PICTURES, RNG.integers(0, 3, (20, 4, 4))), augment="shift")
    with pytest.raises(DataError, match=r"must be of one size, got \[8, 8\] and \[4, 4\]; use --augment none"):
        next(iter(data.train))


# --- folders of pictures with masks ----------------------------------------------------------------------------------


def test_a_folder_of_pictures_with_masks(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "a")
    data = load_data(str(folder), model=segments(), batch_size=4)
    pictures, masks = next(iter(data.train))
    assert (pictures.shape, masks.shape, masks.dtype) == ((4, 1, 8, 8), (4, 8, 8), torch.int64)
    assert masks.unique().tolist() == [0, 1, 2]
    for shade in (0, 1):  # the brighter the picture, the higher its class
        assert pictures[:, 0][masks == shade].mean() < pictures[:, 0][masks == shade + 1].mean()
    assert (data.hint, len(data.test.dataset)) == ("segmentation", 16)  # type: ignore[arg-type]
    assert read_masks(folder, Wanted(), "none").train[0][1].shape == (16, 16)


def test_masks_keep_their_numbers(tmp_path: Path) -> None:
    numbers = RNG.integers(0, 60000, (5, 4)).astype(numpy.uint16)
    Image.fromarray(numbers).save(tmp_path / "a.png")
    assert decoded_mask(tmp_path / "a.png", (5, 4)).tolist() == numbers.tolist()
    assert set(decoded_mask(tmp_path / "a.png", (9, 11)).flatten().tolist()) <= set(numbers.flatten().tolist())
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: a mask must be grey or have a palette .*, got RGB"):
        decoded_mask(tmp_path / "b.png", (4, 4))
    (tmp_path / "c.png").write_text("no picture")
    with pytest.raises(DataError, match=r"c\.png: not a readable picture"):
        decoded_mask(tmp_path / "c.png", (4, 4))


def test_wrong_folders_of_masks_are_refused(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "a")
    (folder / "train" / "masks" / "3.png").unlink()
    with pytest.raises(DataError, match=r"images.3\.jpg: has no mask; expected .*masks.3\.png or the like"):
        load_data(str(folder))
    (folder / "val").rename(folder / "other")
    with pytest.raises(DataError, match="expected folders test/images and test/masks"):
        load_data(str(folder))
    for part in ("train", "test"):
        for name in ("images", "masks"):
            (tmp_path / "b" / part / name).mkdir(parents=True)
    with pytest.raises(DataError, match="images: no pictures in it"):
        load_data(str(tmp_path / "b"))


# --- tables ----------------------------------------------------------------------------------------------------------

CSV = 'id,text,label\n1,"good, very\ngood",yes\n2,bad,no\n' * 1
ROWS = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}] * 10


def test_one_table_is_split_and_words_become_classes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + '"good, very\ngood",yes\nbad,no\n' * 10)
    data = load_data(str(tmp_path / "a.csv"), batch_size=4, sequence_length=16)
    assert (data.hint, data.classes, len(data.test.dataset)) == ("classification", 2, 2)  # type: ignore[arg-type]
    batch = next(iter(data.train))
    texts = {
        bytes(row[row > 0].tolist()).decode(): int(y)
        for row, y in zip(batch["input_ids"], batch["labels"], strict=True)
    }
    assert texts == {"good, very\ngood": 1, "bad": 0}


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_a_folder_of_tables(tmp_path: Path, ending: str) -> None:
    for name in ("train", "dev"):
        lines = [json.dumps(row) for row in ROWS]
        if ending != ".jsonl":
            comma = "," if ending == ".csv" else "\t"
            lines = [comma.join(ROWS[0]), *(comma.join(map(str, row.values())) for row in ROWS)]
        (tmp_path / f"{name}{ending}").write_text(
            "\n".join(lines) + "\n", encoding="utf-8-sig" if ending == ".csv" else None
        )
    data = load_data(str(tmp_path), batch_size=4, model=make_model("text", classes=2))
    assert (data.hint, data.classes, len(data.test.dataset)) == ("classification", 2, 20)  # type: ignore[arg-type]
    assert next(iter(data.test))["labels"].tolist() == [1, 0] * 10


def test_numbers_of_a_table_are_for_regression_and_a_masked_lm_leaves_labels_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "good,1.5\nbad,-2\n" * 10)
    data = load_data(str(tmp_path / "a.csv"), batch_size=4, model=make_model("text", classes=1))
    assert data.hint == "regression"
    assert set(next(iter(data.train))["labels"].tolist()) <= {1.5, -2.0}
    data = load_data(str(tmp_path / "a.csv"), batch_size=4, task="masked-lm")
    assert "labels" not in next(iter(data.train))
    assert data.vocabulary is not None
    assert (data.vocabulary.mask, data.vocabulary.special) == (255, (0,))
    with pytest.raises(DataError, match=r"column label holds numbers \(regression\), but the model has 10 outputs"):
        load_data(str(tmp_path / "a.csv"), model=make_model("text"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "there are no rows"),
        ("a.csv", "text,label\na,1\nb\n", "row 2 has other columns than the head; expected text, label"),
        ("a.csv", "text,label\na,1,2\n", "row 1 has other columns than the head; expected text, label"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "not a readable table"),
        ("a.jsonl", '{"text": "a"}\n{"word": "a"}\n', "row 2 has other columns"),
        ("a.jsonl", "{", "not a readable table"),
        ("a.csv", "number,label\n1,1\n2,0\n", "one or two columns of text"),
        ("a.csv", "text,label\na,1\n", "1 samples are too few to keep some for testing"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_data(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_folder_needs_a_table_to_test_on(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(CSV)
    with pytest.raises(DataError, match=r"expected test\.csv \(or validation\) beside train\.csv"):
        load_data(str(tmp_path))
    assert read_columns(tmp_path / "train.csv")["id"] == [1, 2]
    (tmp_path / "train.csv").write_bytes(b"text,label\n\xff,1\n")
    with pytest.raises(DataError, match="not a readable table"):
        read_columns(tmp_path / "train.csv")


# --- vocabularies ----------------------------------------------------------------------------------------------------


def save_words(folder: Path) -> None:
    """Save a tokenizer of two words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(str(folder))


def test_a_tokenizer_tells_its_mask_token(tmp_path: Path) -> None:
    save_words(tmp_path / "words")
    (tmp_path / "a.txt").write_text(" ".join(RNG.choice(["good", "bad"], 2000)))
    given = {"tokenizer": str(tmp_path / "words"), "task": "masked-lm"}
    data = load_data(str(tmp_path / "a.txt"), sequence_length=16, **given)  # type: ignore[arg-type]
    assert data.vocabulary is not None
    assert (data.vocabulary.size, data.vocabulary.mask) == (7, 4)
    assert set(data.vocabulary.special) == {0, 1, 2, 3, 4}
    model = make_model("lm")
    inputs, target = task_for(data, model).split(next(iter(data.train)))
    hidden = target != -100
    assert set(target[hidden].tolist()) == {5, 6}
    assert int((inputs.kwargs["input_ids"] == 4).sum()) > 0.6 * int(hidden.sum())


def test_own_loaders_get_the_tokenizers_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_token_data.py").write_text(
        "import torch\ndef loaders():\n    x = [torch.ones(2, 16).long()]\n    return x, x\n"
    )
    monkeypatch.chdir(tmp_path)
    BertTokenizer(vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}).save_pretrained(
        "words"
    )
    data = load_data("my_token_data:loaders", task="masked-lm", tokenizer="words")
    assert isinstance(data, Data)
    assert data.vocabulary is not None
    assert (data.hint, data.vocabulary.mask) == ("masked-lm", 4)
    with pytest.raises(DataError, match="nothing says which token id hides a token"):
        task_for(load_data("my_token_data:loaders", task="masked-lm"), make_model("lm"))
