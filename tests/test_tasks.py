"""Tasks: inputs, targets, losses and scores."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from training_models import make_model

from sortify.data.load import Data
from sortify.errors import DataError, TrainingError
from sortify.tasks.base import IGNORED, Totals, mean_metrics
from sortify.tasks.classes import Classification, LanguageModelling, TokenClassification
from sortify.tasks.inputs import CallShape, logits_of, split_batch
from sortify.tasks.registry import TASKS, task_for

TOKENS = torch.arange(12).view(2, 6)
LOGITS = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(0))


CASES = {
    "classification": (LOGITS[:, 0], TOKENS[:, 1]),
    "multi-label": (LOGITS[:, 0], (TOKENS % 2)[:, :1].expand(2, 20)),
    "regression": (LOGITS[:, 0], LOGITS[:, 1]),
    "segmentation": (LOGITS.view(2, 12, 2, 5), TOKENS.view(2, 2, 3)),
    **dict.fromkeys(("token-classification", "masked-lm", "language-modelling"), (LOGITS, TOKENS)),
}


@pytest.mark.parametrize("name", TASKS)
def test_parts_of_a_batch_add_up(name: str) -> None:
    task = TASKS[name]()
    logits, target = CASES[name]
    whole = task.totals(logits, target)
    halves = task.totals(logits[:1], target[:1]) + task.totals(logits[1:], target[1:])
    torch.testing.assert_close(whole.loss, halves.loss, rtol=1e-6, atol=0)
    assert whole.count == halves.count
    for key, value in whole.sums.items():
        torch.testing.assert_close(value, halves.sums[key], rtol=1e-12, atol=0)
    assert whole.count == task.count(target)
    torch.testing.assert_close(task.loss(logits, target), whole.loss, rtol=1e-6, atol=0, check_dtype=False)
    assert set(task.metrics(whole)) >= {"loss", task.metric}
    assert task.name == name


def test_classification_is_cross_entropy_and_accuracy() -> None:
    logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])
    metrics = mean_metrics(Classification(), [Classification().totals(logits, target)])
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["loss"] == pytest.approx(float(functional.cross_entropy(logits, target)))


def test_language_modelling_compares_each_position_with_the_next_token() -> None:
    task = LanguageModelling()
    right = functional.one_hot(TOKENS.roll(-1, 1), 20).float() * 50
    late = functional.one_hot(TOKENS, 20).float() * 50
    metrics = mean_metrics(task, [task.totals(right, TOKENS)])
    assert metrics["token_accuracy"] == 1
    assert metrics["perplexity"] == pytest.approx(1)
    assert mean_metrics(task, [task.totals(late, TOKENS)])["token_accuracy"] == 0
    even = mean_metrics(task, [task.totals(torch.zeros(2, 6, 20), TOKENS)])
    assert even["perplexity"] == pytest.approx(20)
    assert even["loss"] == pytest.approx(math.log(20))


def test_ignored_targets_count_for_nothing() -> None:
    task, target = TokenClassification(), TOKENS.clone()
    target[:, 2:] = IGNORED
    part = task.totals(LOGITS, target)
    assert part.count == 4
    torch.testing.assert_close(part.loss, task.totals(LOGITS[:, :2], TOKENS[:, :2]).loss)


def test_padding_is_no_target_of_language_modelling() -> None:
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    inputs, target = LanguageModelling().split({"input_ids": TOKENS, "attention_mask": mask})
    assert set(inputs.kwargs) == {"input_ids", "attention_mask"}
    assert LanguageModelling().count(target) == 5 + 2


@pytest.mark.parametrize(
    ("batch", "has_target"),
    [
        ((TOKENS, TOKENS[:, 0]), True),
        ([TOKENS, TOKENS[:, 0]], True),
        ({"input_ids": TOKENS, "labels": TOKENS[:, 0]}, True),
        ({"x": TOKENS, "label": TOKENS[:, 0]}, True),
        (({"input_ids": TOKENS}, TOKENS[:, 0]), True),
        (TOKENS, False),
        ((TOKENS,), False),
    ],
)
def test_batches_are_taken_apart(batch: Any, has_target: bool) -> None:
    given, target = split_batch(batch)
    tokens = next(iter(given.values())) if isinstance(given, dict) else given
    assert torch.equal(tokens, TOKENS)
    assert (target is not None) == has_target


IDS, MASK = ("input_ids",), ("input_ids", "attention_mask")
ONES = torch.ones_like(TOKENS)


@pytest.mark.parametrize(
    ("call", "given", "args", "names"),
    [
        (CallShape(), TOKENS, 1, ()),
        (CallShape(), {"input_ids": TOKENS, "x": TOKENS}, 0, ("input_ids", "x")),
        (CallShape(("x",), 1), TOKENS, 1, ()),
        (CallShape(("x",), 1), {"extra": TOKENS[:1], "input_ids": TOKENS}, 1, ()),
        (CallShape(("x",), 1), {"extra": TOKENS[:1], "x": TOKENS}, 1, ()),
        (CallShape(("x", "y"), 2), (TOKENS, TOKENS), 2, ()),
        (CallShape(MASK, 2), {"attention_mask": ONES, "input_ids": TOKENS}, 2, ()),
        (CallShape(IDS), TOKENS, 0, IDS),
        (CallShape(IDS), {"input_ids": TOKENS, "attention_mask": ONES}, 0, IDS),
        (CallShape(MASK), TOKENS, 0, MASK),
        (CallShape(MASK, 1), {"input_ids": TOKENS}, 1, ("attention_mask",)),
        (CallShape(("input_ids", "token_type_ids")), {"input_ids": TOKENS}, 0, ("input_ids", "token_type_ids")),
        (CallShape((*IDS, "return_dict"), 0, (("return_dict", True),)), TOKENS, 0, (*IDS, "return_dict")),
    ],
)
def test_data_is_fitted_to_the_call(call: CallShape, given: Any, args: int, names: tuple[str, ...]) -> None:
    inputs = call.inputs(given)
    assert len(inputs.args) == args
    assert tuple(inputs.kwargs) == names
    main = inputs.args[0] if args else inputs.kwargs[names[0]]
    assert torch.equal(main, TOKENS)
    everything = {**dict(zip(inputs.names, inputs.args, strict=False)), **inputs.kwargs}
    assert torch.equal(everything.get("attention_mask", ONES), ONES)
    assert not everything.get("token_type_ids", torch.zeros(1)).any()
    assert everything.get("return_dict", True) is True


def test_a_call_as_one_value() -> None:
    assert CallShape(("x",), 1).inputs(TOKENS).to_model() is TOKENS
    assert CallShape(("x", "y"), 2).inputs((TOKENS, ONES)).to_model() == (TOKENS, ONES)
    assert set(CallShape(MASK, 1).inputs(TOKENS).to_model()) == set(MASK)


def test_inputs_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match="captured with an input 'bbox'; the data has only input_ids"):
        CallShape(("input_ids", "bbox")).inputs({"input_ids": TOKENS})
    with pytest.raises(DataError, match="the data gives 2 inputs; the model was captured with x"):
        CallShape(("x",), 1).inputs((TOKENS, TOKENS))


class Output(dict[str, Tensor]):
    """A dict with attributes, like those of transformers."""

    logits = LOGITS


@pytest.mark.parametrize(
    "output",
    [LOGITS, SimpleNamespace(logits=LOGITS, aux_logits=None), {"logits": LOGITS}, (LOGITS, None), ((LOGITS,),)],
)
def test_logits_are_found(output: Any) -> None:
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize("output", [None, {"loss": LOGITS}, (), SimpleNamespace(), "text"])
def test_an_output_without_logits_is_refused(output: Any) -> None:
    with pytest.raises(TrainingError, match="expected a tensor, a tuple, or an output with 'logits'"):
        logits_of(output)


@pytest.mark.parametrize(
    ("kind", "hint", "expected"),
    [
        ("mlp", "classification", Classification),
        ("mlp", None, Classification),
        ("text", None, Classification),
        ("lm", "language-modelling", LanguageModelling),
        ("lm", None, LanguageModelling),
        ("lm", "token-classification", TokenClassification),
    ],
)
def test_the_task_follows_from_data_and_output(kind: str, hint: str | None, expected: type) -> None:
    model = make_model(kind)
    task = task_for(Data([], [], hint), model)  # type: ignore[arg-type]
    assert type(task) is expected
    assert not model.training


@pytest.mark.parametrize(
    ("kind", "hint", "message"),
    [
        ("mlp", "language-modelling", r"expects a model output \[batch, positions, vocabulary\], got shape \[2, 10\]"),
        ("lm", "classification", r"expects a model output \[batch, classes\], got shape"),
        ("mlp", "poetry", "no task 'poetry'"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(kind: str, hint: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_for(Data([], [], hint), make_model(kind))  # type: ignore[arg-type]


def test_bad_batches_are_refused() -> None:
    with pytest.raises(DataError, match="a batch has no labels"):
        Classification().split(TOKENS)
    with pytest.raises(DataError, match="a batch has 3 parts"):
        split_batch((TOKENS, TOKENS, TOKENS))
    with pytest.raises(DataError, match="holds nothing but 'labels'"):
        split_batch({"labels": TOKENS})
    with pytest.raises(DataError, match=r"shape \[2, 20\] do not fit targets of shape \[3\]"):
        Classification().loss(LOGITS[:, 0], torch.zeros(3))
    with pytest.raises(DataError, match="no targets to measure"):
        mean_metrics(Classification(), [Totals(torch.zeros(()), torch.zeros(()))])
    with pytest.raises(DataError, match="no targets to measure"):
        mean_metrics(Classification(), [])
