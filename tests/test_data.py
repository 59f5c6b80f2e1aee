"""Readers of data: what comes out, in which order, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from training_models import make_model

from sortify import sortify
from sortify.data.arrays import read_digits, read_npz
from sortify.data.images import read_folder
from sortify.data.load import Data, load_data
from sortify.data.samples import Look, Wanted, fitted, shifted, statistics
from sortify.data.saved import Reading, read_dataset
from sortify.data.texts import Bytes, read_text
from sortify.errors import DataError
from sortify.tasks.base import IGNORED
from sortify.tasks.registry import task_for

RNG = numpy.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (20, 6, 5, 3), dtype=numpy.uint8)
LABELS = numpy.arange(20) % 4


def save_npz(path: Path, **changes: Any) -> Path:
    arrays = {"x_train": PICTURES, "y_train": LABELS, "x_test": PICTURES[:8], **changes}
    arrays.setdefault("y_test", LABELS[: 0 if arrays["x_test"] is None else len(arrays["x_test"])])
    numpy.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def save_folder(path: Path, classes: tuple[str, ...] = ("cat", "dog"), test: str = "test", count: int = 3) -> Path:
    for part in ("train", test):
        for index, name in enumerate(classes):
            (path / part / name).mkdir(parents=True)
            for number in range(count):
                colour = (200 * index, 10 * number, 50)
                Image.new("RGB", (7 + number, 9), colour).save(path / part / name / f"{number}.png")
    return path


# --- digits and arrays -----------------------------------------------------------------------------------------------


def test_digits_are_standardised_and_always_split_alike() -> None:
    data = load_data("digits", batch_size=32, seed=3)
    inputs, labels = next(iter(data.train))
    assert (inputs.shape, inputs.dtype, labels.dtype) == ((32, 1, 8, 8), torch.float32, torch.int64)
    assert (data.hint, data.classes, len(data.train)) == ("classification", 10, 1437 // 32)
    every = torch.cat([batch for batch, _ in DataLoader(data.train.dataset, 1437, collate_fn=lambda x: x)])
    assert abs(float(every.mean())) < 1e-5
    assert abs(float(every.std()) - 1) < 1e-3
    other = load_data("digits", batch_size=32, seed=9)
    assert torch.equal(next(iter(data.test))[0], next(iter(other.test))[0])
    assert not torch.equal(inputs, next(iter(other.train))[0])
    assert sum(len(y) for _, y in data.test) == 360
    assert torch.bincount(torch.cat([y for _, y in data.test])).min() >= 34


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 12, 10), (3, 16, 16), (64,), (4, 16)])
def test_pictures_get_the_shape_that_the_model_wants(shape: tuple[int, ...]) -> None:
    inputs, _ = read_digits(Wanted(shape, True), "none").train.__getitems__([0, 5])
    assert inputs.shape == (2, *shape)
    if len(shape) == 3:
        assert torch.equal(inputs[:, 0], inputs[:, -1])


@pytest.mark.parametrize("shape", [(2, 8, 8), (65,), (1, 8, 8, 2)])
def test_a_shape_that_cannot_be_reached_is_refused(shape: tuple[int, ...]) -> None:
    if shape[0] == 2:
        sets = read_digits(Wanted(shape, True), "none")
        assert sets.train.__getitems__([0])[0].shape == (1, *shape)
        return
    with pytest.raises(DataError, match="do not fit the model's input"):
        read_digits(Wanted(shape, True), "none")


@pytest.mark.parametrize("layout", ["nhwc", "nchw", "grey"])
def test_npz_pictures_of_every_layout_come_out_alike(tmp_path: Path, layout: str) -> None:
    stored = {"nhwc": PICTURES, "nchw": PICTURES.transpose(0, 3, 1, 2), "grey": PICTURES[..., 0]}[layout]
    data = load_data(str(save_npz(tmp_path / "a.npz", x_train=stored, x_test=stored[:8])), batch_size=5)
    inputs, labels = next(iter(data.test))
    scaled = torch.from_numpy(PICTURES[..., :1] if layout == "grey" else PICTURES).double().permute(0, 3, 1, 2)
    mean, std = scaled.mean((0, 2, 3), keepdim=True), scaled.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(inputs, ((scaled - mean) / std)[:8].float())
    assert labels.tolist() == LABELS[:8].tolist()
    assert (data.classes, data.hint) == (4, "classification")


def test_the_models_channels_settle_an_unclear_layout(tmp_path: Path) -> None:
    stored = RNG.integers(0, 256, (20, 3, 5, 3), dtype=numpy.uint8)
    path = save_npz(tmp_path / "a.npz", x_train=stored, x_test=stored)
    assert read_npz(path, Wanted((3, 5, 3), True), "none").train.__getitems__([0])[0].shape == (1, 3, 5, 3)
    wide = RNG.integers(0, 256, (20, 5, 6, 1), dtype=numpy.uint8)
    path = save_npz(tmp_path / "b.npz", x_train=wide, x_test=wide)
    assert read_npz(path, Wanted((3, 5, 6), True), "none").train.__getitems__([0])[0].shape == (1, 3, 5, 6)


def test_npz_bytes_stay_bytes_in_memory_and_floats_stay_as_they_are(tmp_path: Path) -> None:
    sets = read_npz(save_npz(tmp_path / "a.npz"), Wanted(), "none")
    assert sets.train.inputs.dtype == torch.uint8  # type: ignore[attr-defined]
    floats = RNG.normal(size=(20, 7)).astype(numpy.float32)
    sets = read_npz(save_npz(tmp_path / "b.npz", x_train=floats, x_test=floats), Wanted((7,), True), "none")
    assert torch.equal(sets.test.__getitems__([3])[0], torch.from_numpy(floats[3:4]))


def test_npz_tokens_stay_integers(tmp_path: Path) -> None:
    tokens = RNG.integers(0, 50, (20, 9))
    path = str(save_npz(tmp_path / "a.npz", x_train=tokens, x_test=tokens))
    data = load_data(path, batch_size=4)
    inputs, labels = next(iter(data.train))
    assert (inputs.shape, inputs.dtype, labels.shape, data.hint) == ((4, 9), torch.int64, (4,), "classification")
    path = str(save_npz(tmp_path / "b.npz", x_train=tokens, x_test=tokens, y_train=None, y_test=None))
    data = load_data(path, batch_size=4)
    assert (next(iter(data.train)).shape, data.hint) == ((4, 9), "language-modelling")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": None}, "array x_train is missing; expected x_train, x_test"),
        ({"y_test": None}, "array y_test is missing; found"),
        ({"y_train": LABELS[:9]}, "x_train has 20 samples but y_train has 9"),
        ({"y_train": LABELS + 7}, r"labels go up to 10, but the model has 10 outputs \(0 to 9\)"),
        ({"y_train": LABELS - 1}, "labels must not be negative, got -1"),
        ({"y_train": LABELS / 2}, "1 numbers per sample, but the model has 10 outputs; class numbers"),
        ({"y_train": numpy.array(["a"] * 20)}, "y_train must be a numeric array"),
        ({"x_train": PICTURES[:0]}, "x_train is empty"),
        ({"x_test": PICTURES[:, :4]}, "must have samples of one shape"),
        ({"x_train": PICTURES[..., 0:2], "x_test": PICTURES[..., 0:2]}, "do not fit the model's input"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save_npz(tmp_path / "a.npz", **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_data(str(path), model=make_model("mlp"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 cut"])
def test_a_damaged_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz file"):
        load_data(str(path))
    whole = save_npz(tmp_path / "b.npz").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz file"):
        load_data(str(path))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "a.npz", x_train=numpy.array([{}], dtype=object), x_test=PICTURES)
    with pytest.raises(DataError, match="not a readable"):
        load_data(str(tmp_path / "a.npz"))


# --- looks -----------------------------------------------------------------------------------------------------------


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    values = torch.rand(10, 3, 4, 5, dtype=torch.float64)
    mean, std = statistics(values.split(3))
    torch.testing.assert_close(torch.tensor(mean), values.mean((0, 2, 3)).float(), check_dtype=False)
    torch.testing.assert_close(torch.tensor(std), values.std((0, 2, 3), correction=0).float(), check_dtype=False)
    assert statistics([torch.ones(2, 1, 3)]) == ((1.0,), (1.0,))


def test_shifting_moves_pictures_and_brings_in_zeros() -> None:
    picture = torch.arange(1.0, 10).view(1, 1, 3, 3).repeat(400, 1, 1, 1)
    moved = shifted(picture, 1)
    padded = torch.nn.functional.pad(picture[:1], (1, 1, 1, 1))
    possible = {tuple(padded[0, 0, r : r + 3, c : c + 3].flatten().tolist()) for r in range(3) for c in range(3)}
    assert {tuple(one.flatten().tolist()) for one in moved} == possible


def test_augmentation_is_for_training_pictures_only(tmp_path: Path) -> None:
    sets = read_npz(save_npz(tmp_path / "a.npz"), Wanted((3, 6, 5), True), "shift-flip")
    same = [0] * 16
    assert len({batch.numpy().tobytes() for batch in sets.train.__getitems__(same)[0]}) > 4
    assert len({batch.numpy().tobytes() for batch in sets.test.__getitems__(same)[0]}) == 1
    with pytest.raises(DataError, match="unknown augmentation 'blur'"):
        load_data("digits", augment="blur")
    with pytest.raises(DataError, match="is for pictures"):
        read_digits(Wanted((64,), True), "shift")


def test_fitting_repeats_and_resizes() -> None:
    grey = torch.rand(2, 1, 4, 4)
    assert torch.equal(fitted(grey, (3, 4, 4)), grey.expand(2, 3, 4, 4))
    assert fitted(grey, (3, 8, 8)).shape == (2, 3, 8, 8)
    assert Look()(torch.ones(2, 3, dtype=torch.uint8)).dtype == torch.float32


# --- folders of pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_folder_of_pictures(tmp_path: Path, test: str) -> None:
    data = load_data(str(save_folder(tmp_path, test=test)), batch_size=2, model=make_model("mlp", classes=2))
    inputs, labels = next(iter(data.test))
    assert (inputs.shape, labels.tolist(), data.classes) == ((6, 1, 8, 8), [0, 0, 0, 1, 1, 1], 2)
    every = torch.cat([x for x, _ in DataLoader(data.train.dataset, 6, collate_fn=lambda x: x)])
    assert abs(float(every.mean())) < 1e-4


def test_without_a_model_pictures_get_the_size_of_the_first(tmp_path: Path) -> None:
    sets = read_folder(save_folder(tmp_path), Wanted(), "none")
    assert sets.train[1][0].shape == (3, 9, 7)
    red = sets.test.__getitems__([0, 3])[0][:, 0]
    assert red[0].max() < red[1].min()


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected folders train/CLASS and test/CLASS"):
        load_data(str(tmp_path))
    folder = save_folder(tmp_path / "a")
    (folder / "test" / "cow").mkdir()
    with pytest.raises(DataError, match="class 'cow' is not among the training classes"):
        load_data(str(folder))
    (tmp_path / "b" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "b" / "test" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="no pictures in it"):
        load_data(str(tmp_path / "b"))
    many = save_folder(tmp_path / "c", tuple("abcdefghijkl"), count=1)
    with pytest.raises(DataError, match="labels go up to 11, but the model has 10 outputs"):
        load_data(str(many), model=make_model("mlp"))


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    folder = save_folder(tmp_path)
    (folder / "test" / "dog" / "1.png").write_bytes(b"no picture")
    data = load_data(str(folder))
    with pytest.raises(DataError, match=r"dog.1\.png: not a readable picture"):
        list(data.test)


# --- text ------------------------------------------------------------------------------------------------------------


def test_a_text_file_is_cut_into_blocks_of_bytes(tmp_path: Path) -> None:
    text = "".join(chr(97 + i % 26) for i in range(1000))
    (tmp_path / "a.txt").write_text(text)
    data = load_data(str(tmp_path / "a.txt"), batch_size=4, sequence_length=10)
    assert (data.hint, len(data.train.dataset), len(data.test.dataset)) == ("language-modelling", 90, 10)  # type: ignore[arg-type]
    tokens = next(iter(data.test))["input_ids"]
    assert tokens.dtype == torch.int64
    assert bytes(tokens.flatten().tolist()).decode() == text[900:]
    starts = {int(block[0]) for batch in data.train for block in batch["input_ids"]}
    assert starts <= set(range(97, 123))


def test_a_text_gets_the_models_length_and_must_fit_its_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(200, 256)) * 10)
    data = load_data(str(tmp_path / "a.txt"), model=make_model("lm"))
    assert next(iter(data.test))["input_ids"].shape[1] == 16
    with pytest.raises(DataError, match="labels go up to 255, but the model has 100 outputs"):
        read_text(tmp_path / "a.txt", Wanted((16,), False, 100, 3), Bytes(), None)
    (tmp_path / "b.txt").write_text("short")
    with pytest.raises(DataError, match="5 tokens are too few; expected at least two blocks of 128"):
        load_data(str(tmp_path / "b.txt"))
    (tmp_path / "c.txt").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        load_data(str(tmp_path / "c.txt"))


def saved(path: Path, **splits: dict[str, list[Any]]) -> str:
    parts = {name: datasets.Dataset.from_dict(columns) for name, columns in splits.items()}
    datasets.DatasetDict(parts).save_to_disk(str(path))
    return str(path)


TEXTS = {"sentence": ["good", "bad!", "so so"] * 4, "label": [1, 0, 2] * 4}


def test_a_saved_data_set_of_texts(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", train=TEXTS, validation={"sentence": ["fine"], "label": [1]})
    data = load_data(path, batch_size=3, sequence_length=6)
    batch = next(iter(data.test))
    assert batch["input_ids"].tolist() == [[*b"fine", 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [1]
    assert (data.hint, data.classes) == ("classification", 3)
    assert next(iter(data.train))["input_ids"].shape == (3, 6)


def test_pairs_of_texts_are_joined_and_labels_may_be_words(tmp_path: Path) -> None:
    pairs = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": ["no", "yes"]}
    data = load_data(saved(tmp_path / "a", train=pairs, test=pairs), batch_size=2, sequence_length=8)
    batch = next(iter(data.test))
    assert batch["input_ids"].tolist() == [[*b"a\nc", 0, 0, 0, 0, 0], [*b"b\nd", 0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [0, 1]


def test_a_test_split_without_labels_gives_way_to_validation(tmp_path: Path) -> None:
    hidden = {"sentence": ["?"], "label": [-1]}
    path = saved(tmp_path / "a", train=TEXTS, test=hidden, validation=TEXTS)
    assert len(load_data(path).test.dataset) == 12  # type: ignore[arg-type]


def test_a_saved_data_set_of_tokens(tmp_path: Path) -> None:
    tokens = {"input_ids": [[1, 2, 3], [4]], "labels": [[1, 2, 3], [4]]}
    sets = read_dataset(Path(saved(tmp_path / "a", train=tokens, test=tokens)), Reading(Wanted(), Bytes(), 2))
    assert sets.hint == "token-classification"
    batch = sets.test.__getitems__([0, 1])
    assert batch["input_ids"].tolist() == [[1, 2], [4, 0]]
    assert batch["labels"].tolist() == [[1, 2], [4, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    plain = {"input_ids": [[1, 2, 3], [4, 5, 6]]}
    sets = read_dataset(Path(saved(tmp_path / "b", train=plain, test=plain)), Reading(Wanted(), Bytes(), 3))
    assert sets.hint == "language-modelling"


def test_a_saved_data_set_without_splits_is_split_alike_each_time(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": [str(i) for i in range(40)]}).save_to_disk(str(tmp_path / "a"))
    first, second = (load_data(str(tmp_path / "a"), sequence_length=4) for _ in range(2))
    assert first.hint == "language-modelling"
    assert len(first.test.dataset) == 4  # type: ignore[arg-type]
    assert torch.equal(next(iter(first.test))["input_ids"], next(iter(second.test))["input_ids"])


def test_a_saved_data_set_of_pictures(tmp_path: Path) -> None:
    columns = {"image": [Image.fromarray(p) for p in PICTURES], "label": LABELS.tolist()}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    part = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(str(tmp_path / "a"))
    data = load_data(str(tmp_path / "a"), batch_size=4)
    inputs, labels = next(iter(data.test))
    assert (inputs.shape, labels.tolist(), data.classes) == ((20, 3, 6, 5), LABELS.tolist(), 4)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": TEXTS}, "expected splits train and test"),
        ({"train": {"x": [1]}, "test": {"x": [1]}}, "expected a column input_ids or image"),
        ({"train": TEXTS, "test": {"sentence": ["a"], "label": [99]}}, "labels go up to 99, but the model has 10"),
        ({"train": {"t": ["a"], "label": [0.5]}, "test": {"t": ["a"], "label": [0.5]}}, "but the model has 10 outputs"),
        ({"train": {"t": ["a"], "label": ["x"]}, "test": {"t": ["a"], "label": ["y"]}}, "label 'y' of the test split"),
    ],
)
def test_wrong_saved_data_sets_are_refused(tmp_path: Path, splits: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(saved(tmp_path / "a", **splits), model=make_model("text"))


def test_a_damaged_saved_data_set_is_refused(tmp_path: Path) -> None:
    path = Path(saved(tmp_path / "a", train=TEXTS, test=TEXTS))
    (path / "train" / "state.json").unlink()
    with pytest.raises(DataError, match="not a readable saved data set"):
        load_data(str(path))


def test_a_tokenizer_folder_is_used(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "good": 2, "so": 3, "bad": 4}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(str(tmp_path / "words"))
    path = saved(tmp_path / "a", train=TEXTS, test=TEXTS)
    data = load_data(path, sequence_length=3, tokenizer=str(tmp_path / "words"))
    assert next(iter(data.test))["input_ids"][:3].tolist() == [[2, 0, 0], [4, 1, 0], [3, 3, 0]]
    (tmp_path / "a.txt").write_text("so good " * 50)
    data = load_data(str(tmp_path / "a.txt"), sequence_length=4, tokenizer=str(tmp_path / "words"))
    assert next(iter(data.test))["input_ids"][0].tolist() == [3, 2, 3, 2]
    with pytest.raises(DataError, match="no such tokenizer folder"):
        load_data(path, tokenizer=str(tmp_path / "none"))


# --- functions -------------------------------------------------------------------------------------------------------


def test_a_function_returns_loaders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_test_data.py").write_text(
        "import torch\n"
        "from sortify import Data\n"
        "x = [(torch.zeros(2, 3), torch.tensor([0, 1]))]\n"
        "def loaders(batch_size):\n    return x * batch_size, x\n"
        "def whole():\n    return Data(x, x, 'classification', 2, 'mine')\n"
        "def wrong():\n    return 5\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        data = load_data("my_test_data:loaders", batch_size=7)
        assert (len(data.train), data.hint, data.description) == (7, None, "my_test_data:loaders")
        assert load_data("my_test_data:whole").description == "mine"
        with pytest.raises(DataError, match="returned int; expected"):
            load_data("my_test_data:wrong")
        with pytest.raises(DataError, match="module 'my_test_data' has no function 'other'"):
            load_data("my_test_data:other")
    finally:
        sys.modules.pop("my_test_data", None)
    with pytest.raises(DataError, match="no module named 'no_such_module'"):
        load_data("no_such_module:loaders")


@pytest.mark.parametrize("text", ["nowhere", "nowhere.npz", "", ":f"])
def test_missing_data_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="expected"):
        load_data(text)


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(DataError, match=r"unknown kind of data '\.xyz'"):
        load_data(str(tmp_path / "a.xyz"))
    with pytest.raises(DataError, match="batch size must be 1 or more, got 0"):
        load_data("digits", batch_size=0)


class AnyLength(torch.nn.Module):
    """[B, S] tokens of 256 to [B, S, 256], for any S."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(256, 8), torch.nn.Linear(8, 256)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.embedding(input_ids))
        return out


def test_tokens_may_have_another_length_than_the_example_where_that_is_open(tmp_path: Path) -> None:
    tokens = numpy.arange(40).reshape(4, 10) % 256
    path = str(save_npz(tmp_path / "a.npz", x_train=tokens, y_train=None, x_test=tokens, y_test=None))
    model = sortify(AnyLength(), (torch.randint(256, (2, 6)),))
    data = load_data(path, model=model, batch_size=2)
    assert task_for(data, model).split(next(iter(data.test)))[0].args[0].shape == (4, 10)
    with pytest.raises(DataError, match="x_train has 10 tokens per sample; the model takes 16"):
        load_data(path, model=make_model("lm"))


@pytest.mark.parametrize("move", [{"device": "meta"}, {"dtype": torch.bfloat16}, {"dtype": torch.float64}], ids=str)
@pytest.mark.parametrize("kind", ["mlp", "lm"])
def test_data_is_fitted_to_a_model_wherever_it_is(kind: str, move: dict[str, Any]) -> None:
    model = make_model(kind)
    expected = Wanted.of(model), type(task_for(Data([], []), model))  # type: ignore[arg-type]
    model.to(**move)
    assert (Wanted.of(model), type(task_for(Data([], []), model))) == expected  # type: ignore[arg-type]
    assert all(tensor.device.type == "cpu" for tensor in model.example_tensors)


def test_what_a_model_wants_is_read_from_its_examples() -> None:
    assert Wanted.of(make_model("mlp")) == Wanted((1, 8, 8), True, 10, 2)
    assert Wanted.of(make_model("lm")) == Wanted((16,), False, 256, 3)
    assert Wanted.of(None) == Wanted()
    assert replace(Wanted((3, 4, 5), True)).picture == (3, 4, 5)
