"""Each kind of task on numbers: losses equal those of the models' own code, scores those of a slow count by hand."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score, r2_score
from torch import Tensor
from torch.nn import functional
from training_models import make_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

from sortify.data.load import Data
from sortify.errors import DataError, TrainingError
from sortify.tasks.base import IGNORED, Task, aligned, mean_metrics
from sortify.tasks.classes import Classification, MultiLabel
from sortify.tasks.inputs import CallShape, Vocabulary, logits_of
from sortify.tasks.masked import MaskedLanguageModelling, chances
from sortify.tasks.own import OwnTask
from sortify.tasks.registry import task_for
from sortify.tasks.regression import Regression
from sortify.tasks.segmentation import AUXILIARY, Segmentation, resized


def chance(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def numbers(high: int, *size: int, seed: int = 0) -> Tensor:
    return torch.randint(high, size, generator=torch.Generator().manual_seed(seed))


def mean_loss(task: Task, output: Any, target: Any) -> Tensor:
    """The loss as training has it: the sum over the targets, divided by their number."""
    return task.loss(output, target) / task.count(target)


# --- masked language modelling ---------------------------------------------------------------------------------------

VOCABULARY = Vocabulary(100, 3, (0, 1, 2, 3))
MASKED_LM = MaskedLanguageModelling(CallShape(), 100, VOCABULARY)


def hidden(seed: int = 0, rows: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, what the model sees of them, and the targets."""
    tokens = numbers(96, rows, 200, seed=9) + 4
    inputs, target = MASKED_LM.split(tokens, seed)
    return tokens, inputs.args[0], target


def test_shares_of_hidden_tokens_are_those_of_bert() -> None:
    tokens, seen, target = hidden(rows=200)
    chosen = target != IGNORED
    assert torch.equal(target[chosen], tokens[chosen])
    assert torch.equal(seen[~chosen], tokens[~chosen])
    assert float(chosen.float().mean()) == pytest.approx(0.15, abs=0.006)
    masked, kept = (seen == 3)[chosen].float().mean(), (seen == tokens)[chosen].float().mean()
    assert float(masked) == pytest.approx(0.8 + 0.1 / 100, abs=0.02)
    assert float(kept) == pytest.approx(0.1 + 0.1 / 100, abs=0.02)
    random = seen[chosen & (seen != 3) & (seen != tokens)]
    assert len(random.unique()) > 90
    assert int(random.max()) < 100


def test_what_is_hidden_follows_from_the_seed_and_the_row_alone() -> None:
    tokens, seen, target = hidden(5)
    again, other = hidden(5), hidden(6)
    assert torch.equal(seen, again[1])
    assert not torch.equal(target, other[2])
    part, _ = MASKED_LM.split(tokens[10:20], 5)
    assert torch.equal(part.args[0], seen[10:20])  # whatever else is in the batch: as in another process
    assert torch.equal(chances(tokens[:1], 5), chances(tokens, 5)[:1])
    assert not torch.equal(chances(tokens, 5)[0], chances(tokens, 5)[1])


def test_special_tokens_and_padding_are_never_hidden_and_every_row_has_a_target() -> None:
    tokens = numbers(8, 300, 6)
    mask = torch.ones_like(tokens)
    mask[:, 3:] = 0
    inputs, target = MASKED_LM.split({"input_ids": tokens, "attention_mask": mask})
    chosen = target != IGNORED
    assert not chosen[:, 3:].any()
    assert not chosen[tokens < 4].any()
    assert torch.equal(chosen.any(1), (tokens[:, :3] >= 4).any(1))
    assert torch.equal(inputs.kwargs["attention_mask"], mask)


def test_labels_of_whole_texts_are_left_out_and_ready_masks_are_kept() -> None:
    tokens = numbers(90, 4, 20) + 4
    alone = MASKED_LM.split({"input_ids": tokens})[1]
    assert torch.equal(MASKED_LM.split({"input_ids": tokens, "labels": torch.arange(4)})[1], alone)
    assert torch.equal(MASKED_LM.split({"input_ids": tokens, "labels": tokens})[1], alone)
    ready = torch.where(torch.arange(20) == 4, tokens, IGNORED)
    seen = torch.where(torch.arange(20) == 4, 3, tokens)
    inputs, target = MASKED_LM.split({"input_ids": seen, "labels": ready})
    assert torch.equal(inputs.kwargs["input_ids"], seen)
    assert torch.equal(target, ready)


def test_the_masked_loss_is_that_of_bert_itself() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, initializer_range=1.0)  # else it says nearly the same to all
    model = BertForMaskedLM(config).eval()
    inputs, target = MASKED_LM.split({"input_ids": numbers(96, 4, 12) + 4})
    with torch.no_grad():
        own = model(**inputs.kwargs, labels=target)
        found = mean_loss(MASKED_LM, model(**inputs.kwargs), target)
    torch.testing.assert_close(found, own.loss)
    assert abs(float(mean_loss(MASKED_LM, own, target.roll(1, 1)) - own.loss)) > 1e-3


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (None, r"nothing says which token id hides a token; name a saved tokenizer \(--tokenizer DIR\)"),
        (Vocabulary(256), "the tokenizer has no mask token"),
        (Vocabulary(300, 299), "the mask token has id 299, but the model has only 256 outputs"),
    ],
)
def test_a_mask_token_must_be_known(vocabulary: Vocabulary | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_for(Data([], [], "masked-lm", vocabulary=vocabulary), make_model("lm"))  # type: ignore[arg-type]


def test_wrong_tokens_are_refused() -> None:
    with pytest.raises(DataError, match=r"token ids \[batch, positions\], got torch.float32 of shape \[2, 3\]"):
        MASKED_LM.split(torch.rand(2, 3))
    with pytest.raises(DataError, match=r"a target of shape \[1, 2\] holds 100; the model has 100 outputs \(0 to 99"):
        MASKED_LM.split(torch.tensor([[5, 100]]))


# --- segmentation ----------------------------------------------------------------------------------------------------


def slow_iou(said: Tensor, truth: Tensor, classes: int) -> float:
    """Mean IoU of known pixels `[N]` by looking at each class of the whole set at once."""
    shares = []
    for index in range(classes):
        one, other = said == index, truth == index
        if (one | other).any():
            shares.append(float((one & other).sum() / (one | other).sum()))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("size", [(8, 8), (13, 9)])
def test_mean_iou_and_pixel_accuracy_over_batches_are_those_of_the_whole_set(size: tuple[int, int]) -> None:
    task = Segmentation(classes=5)
    logits, truth = chance(7, 5, 8, 8), numbers(4, 7, *size)
    truth[:, 0] = 255
    _, target = task.split((logits, truth))
    assert task.count(target) == 7 * (size[0] - 1) * size[1]
    known = target != 255
    parts = [task.totals(logits[rows], target[rows]) for rows in (slice(0, 3), slice(3, 7))]
    metrics = mean_metrics(task, parts)
    said = functional.interpolate(logits, size=size, mode="bilinear").argmax(1)
    assert metrics["mean_iou"] == pytest.approx(slow_iou(said[known], target[known], 5), rel=1e-6)
    assert metrics["mean_iou"] != pytest.approx(slow_iou(said[:3][known[:3]], target[:3][known[:3]], 5), rel=1e-3)
    assert metrics["pixel_accuracy"] == pytest.approx(float((said == target)[known].float().mean()))
    assert metrics["loss"] == pytest.approx(float(mean_loss(task, logits, target)), rel=1e-6)


def test_measuring_a_few_pictures_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task, logits, target = Segmentation(classes=5), chance(6, 5, 4, 4), numbers(5, 6, 8, 8)
    whole = task.totals(logits, target)
    monkeypatch.setattr("sortify.tasks.segmentation.PIXELS", 2 * 5 * 64)
    parts = task.totals(logits, target)
    torch.testing.assert_close(parts.loss, whole.loss)
    assert all(torch.equal(parts.sums[name], value) for name, value in whole.sums.items())


def test_the_segmentation_loss_is_that_of_segformer_itself() -> None:
    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=5,
    )
    model, task = SegformerForSemanticSegmentation(config).eval(), Segmentation(classes=5)
    pictures, masks = chance(2, 3, 32, 32), numbers(5, 2, 32, 32)
    masks[:, :4] = 255
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(1000)  # fresh models answer nearly the same to everything
        own = model(pictures, labels=masks)
    _, target = task.split((pictures, masks))
    assert own.logits.shape[2:] == (8, 8)
    torch.testing.assert_close(mean_loss(task, own, target), own.loss)
    assert abs(float(mean_loss(task, own, target.roll(1, 2)) - own.loss)) > 1e-3


def test_outputs_of_torchvision_train_their_auxiliary_head_as_well() -> None:
    task, target = Segmentation(classes=3), numbers(3, 2, 4, 4)
    output = {"out": chance(2, 3, 4, 4), "aux": chance(2, 3, 4, 4, seed=1)}
    assert logits_of(output) is output["out"]
    out, aux = (functional.cross_entropy(output[name], target, reduction="sum") for name in ("out", "aux"))
    torch.testing.assert_close(task.loss(output, target), out + AUXILIARY * aux)
    torch.testing.assert_close(task.totals(output, target).loss, out)


def test_a_class_255_counts_where_the_model_has_it() -> None:
    target = torch.full((1, 2, 2), 255)
    assert Segmentation(classes=256).count(Segmentation(classes=256).split((target, target))[1]) == 4
    assert Segmentation(classes=255).count(Segmentation(classes=255).split((target, target))[1]) == 0


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            torch.full((1, 4, 4), 5),
            r"a target of shape \[1, 4, 4\] holds 5; the model has 5 outputs \(0 to 4; ",
        ),
        (torch.zeros(1, 4, 4), r"segmentation expects class numbers, got float32 of shape \[1, 4, 4\]"),
        (torch.zeros(4), r"expects masks \[batch, height, width\], got shape \[4\]"),
        (None, r"a batch has no masks; expected \(inputs, masks"),
    ],
)
def test_wrong_masks_are_refused(masks: Tensor | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Segmentation(classes=5).split(torch.rand(1, 3, 4, 4) if masks is None else (torch.rand(1, 3, 4, 4), masks))


def test_masks_of_other_pictures_are_refused() -> None:
    with pytest.raises(DataError, match=r"outputs of shape \[2, 3, 4, 4\] do not fit masks of shape \[1, 4, 4\]"):
        resized(chance(2, 3, 4, 4), numbers(3, 1, 4, 4))
    with pytest.raises(DataError, match=r"a channel for each class .* got a model output of shape \[2, 1, 4, 4\]"):
        Segmentation.fitted(CallShape(), chance(2, 1, 4, 4), None)


# --- regression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 3])
def test_regression_is_measured_as_scikit_learn_does(columns: int) -> None:
    task, output, target = Regression(), chance(50, columns), chance(50, columns, seed=1) * 3 + 100
    output = target + output * torch.arange(1.0, columns + 1)
    parts = [task.totals(output[rows], target[rows]) for rows in (slice(0, 20), slice(20, 50))]
    metrics = mean_metrics(task, parts)
    assert metrics["r2"] == pytest.approx(r2_score(target.double(), output.double()), rel=1e-9)
    assert metrics["loss"] == pytest.approx(float(functional.mse_loss(output, target)), rel=1e-6)
    assert metrics["rmse"] == pytest.approx(metrics["loss"] ** 0.5)
    assert metrics["mae"] == pytest.approx(float((output - target).abs().mean()), rel=1e-6)
    torch.testing.assert_close(mean_loss(task, output, target), functional.mse_loss(output, target))


def test_targets_that_are_all_the_same() -> None:
    task, same = Regression(), torch.full((5,), 0.1)
    assert mean_metrics(task, [task.totals(same, same)])["r2"] == 1
    assert mean_metrics(task, [task.totals(same + 1, same)])["r2"] == 0


def test_the_regression_loss_is_that_of_bert_itself() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1
    )
    model, target = BertForSequenceClassification(config).eval(), chance(4)
    with torch.no_grad():
        own = model(numbers(50, 4, 6), labels=target)
    torch.testing.assert_close(mean_loss(Regression(), own, target), own.loss)


def test_one_column_goes_with_none_but_nothing_is_stretched() -> None:
    assert aligned(chance(4, 1), chance(4)).shape == (4,)
    assert aligned(chance(4), chance(4, 1)).shape == (4, 1)
    torch.testing.assert_close(Regression().loss(chance(4, 1), chance(4)), torch.tensor(0.0))
    for shapes in (((4, 2), (4,)), ((4, 1), (2, 2)), ((4,), (5,)), ((4, 4), (1, 4))):
        with pytest.raises(DataError, match="expected one target for each output"):
            Regression().loss(chance(*shapes[0]), chance(*shapes[1]))


# --- several labels --------------------------------------------------------------------------------------------------


def test_several_labels_are_measured_as_scikit_learn_does() -> None:
    task, logits, target = MultiLabel(), chance(40, 6), numbers(2, 40, 6)
    metrics = mean_metrics(task, [task.totals(logits[:9], target[:9]), task.totals(logits[9:], target[9:])])
    said = (logits > 0).long()
    assert metrics["f1"] == pytest.approx(f1_score(target, said, average="micro"))
    assert metrics["accuracy"] == pytest.approx(float((said == target).float().mean()))
    own = functional.binary_cross_entropy_with_logits(logits, target.float())
    torch.testing.assert_close(mean_loss(task, logits, target), own)
    assert metrics["loss"] == pytest.approx(float(own), rel=1e-6)
    target[0] = IGNORED
    torch.testing.assert_close(task.loss(logits, target), task.loss(logits[1:], target[1:]))
    with pytest.raises(DataError, match=r"must be 0 or 1 for each label, got others in \[1\]"):
        task.split((logits[:1], torch.tensor([2])))


@pytest.mark.parametrize(
    ("task", "target"),
    [
        (Classification(), numbers(6, 8)),
        (MultiLabel(), numbers(2, 8, 6)),
        (Regression(), chance(8, 6)),
        (Segmentation(), numbers(6, 8, 5, 5)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_outputs_match_themselves_and_no_other(task: Task, target: Tensor) -> None:
    shape = (8, 6, 3, 3) if task.name == "segmentation" else (8, 6)
    output, teacher = chance(*shape, seed=3), chance(*shape, seed=4)
    assert abs(float(task.match(output, output, target))) < 1e-4
    assert float(task.match(output, teacher, target)) > 0.1


# --- choosing --------------------------------------------------------------------------------------------------------


@dataclass
class Fixed:
    """A test loader of one batch."""

    batch: Any

    def __iter__(self) -> Any:
        return iter([self.batch])


X = torch.zeros(4, 1, 8, 8)


@pytest.mark.parametrize(
    ("target", "expected"),
    [(numbers(10, 4), "classification"), (numbers(2, 4, 10), "multi-label"), (chance(4, 10), "regression")],
)
def test_the_task_follows_from_the_targets(target: Tensor, expected: str) -> None:
    data = Data([], Fixed((X, target)))  # type: ignore[arg-type]
    assert task_for(data, make_model("mlp")).name == expected
    assert task_for(data, make_model("mlp"), "regression").name == "regression"


def test_targets_that_fit_no_task_are_refused_and_iterators_are_not_used_up() -> None:
    data = Data([], Fixed((X, numbers(2, 4, 3, 3, 3))))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"fits a model output of shape \[2, 10\] and targets int64 \[4, 3, 3, 3\]"):
        task_for(data, make_model("mlp"))
    once = iter([(X, chance(4, 10))])
    assert task_for(Data([], once), make_model("mlp")).name == "classification"  # type: ignore[arg-type]
    assert len(list(once)) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("segmentation", r"segmentation expects a model output \[batch, classes, height, width\], got shape \[2, 10\]"),
        ("poetry", "no task 'poetry' for a model output .* there are classification, language-modelling, masked-lm, "),
    ],
)
def test_a_named_task_must_fit_and_exist(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_for(Data([], []), make_model("mlp"), name)  # type: ignore[arg-type]


def test_a_single_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"two classes or more, got a model output of shape \[2, 1\]; one number per"):
        task_for(Data([], [], "classification"), make_model("mlp", classes=1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.tensor([0, 10]),
            r"a target of shape \[2\] holds 10; the model has 10 outputs \(0 to 9; -100 is ig",
        ),
        (torch.tensor([-1, 1]), r"a target of shape \[2\] holds -1"),
        (
            torch.tensor([0.0, 1.0]),
            r"classification expects class numbers, got float32 of shape \[2\]",
        ),
    ],
)
def test_labels_that_the_model_cannot_give_are_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Classification(classes=10).split((X[:2], labels))
    assert "\n" not in str(caught.value)
    Classification(classes=10).split((X[:2], torch.tensor([IGNORED, 9])))


# --- tasks of one's own ----------------------------------------------------------------------------------------------

OWN = """
import torch
from sortify import OwnTask

def criterion(output, target):
    return (output - target.float()).abs()

def closeness(output, target):
    return -(output - target.float()).square().mean()

def task(model):
    return OwnTask(criterion, {"closeness": closeness}, name=f"own of {type(model).__name__}")

ready = OwnTask(criterion)
number = 5

def wrong():
    return 7

class Old:
    name, metric = "old", "score"
    count = loss = totals = metrics = split = lambda self, batch: batch
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "my_own_task.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield lambda name: task_for(Data([], []), make_model("mlp"), f"my_own_task:{name}")  # type: ignore[arg-type]
    sys.modules.pop("my_own_task", None)


def test_a_task_of_ones_own_by_name(own: Any) -> None:
    output, target = chance(6, 10), chance(6, 10, seed=2)
    for name, called in (("task", "own of SortedModel"), ("ready", "my_own_task:ready"), ("criterion", None)):
        task = own(name)
        assert task.name == (called or "my_own_task:criterion")
        inputs, found = task.split((X, target))
        assert found is target
        assert torch.equal(inputs.args[0], X)
        metrics = mean_metrics(task, [task.totals(output[:2], target[:2]), task.totals(output[2:], target[2:])])
        assert metrics["loss"] == pytest.approx(float((output - target).abs().mean()), rel=1e-6)
        if name == "task":
            assert metrics["closeness"] == pytest.approx(-float(functional.mse_loss(output, target)), rel=1e-6)
        else:
            assert metrics[task.metric] == -metrics["loss"]


def test_without_targets_the_inputs_are_the_target() -> None:
    task = OwnTask(lambda output, target: (output - target).square().mean())
    inputs, target = task.split(X)
    assert target is X is inputs.args[0]
    assert task.count(target) == 4
    torch.testing.assert_close(task.loss(X + 1, target), torch.tensor(4.0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "my_own_task:number is a int; expected a task, or a function that returns one"),
        ("wrong", "my_own_task:wrong gave int, which lacks name, metric, split, count, loss, totals, metrics"),
        ("Old", r"my_own_task:Old: its split must take \(batch, seed\)"),
        ("nothing", "module 'my_own_task' has no function 'nothing'"),
    ],
)
def test_what_is_no_task_is_refused(own: Any, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        own(name)


def test_wrong_results_of_own_functions_are_refused() -> None:
    task = OwnTask(lambda output, target: output, {"words": lambda output, target: "good"}, name="mine")
    with pytest.raises(DataError, match=r"task mine: the loss of 4 samples is shape \[3\]; expected one number, or"):
        task.loss(chance(3), chance(4))
    with pytest.raises(DataError, match="task mine: words of 4 samples is str"):
        task.totals(chance(4), chance(4))
    with pytest.raises(TrainingError, match=r"needs OwnTask\(matching=...\)"):
        task.match(chance(4), chance(4), chance(4))
    assert float(OwnTask(task.criterion, matching=lambda a, b: (a - b).abs()).match(chance(4), chance(4), X)) == 0
