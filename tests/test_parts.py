"""Models in parts: what can be captured is sorted, the original's code runs in between, and all of it is one model."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_calls import call, errors, works
from compare import assert_close_outputs, assert_same_tensors
from parts_models import (
    Branching,
    Caching,
    NothingInside,
    Peeks,
    Repeats,
    Router,
    Shares,
    Watching,
    detector,
    two_layers,
)
from torch import Tensor, nn

from sortify import ComposedModel, SortedUpdate, load, make_sampler, sortify
from sortify.capture.prepare import Example
from sortify.errors import BudgetError, CaptureError, CheckpointError, InputError, SortifyError
from sortify.models.composed import compare_whole
from sortify.training.samplers import levels_for

SINGLE = 1e-6


def rows(samples: int = 16, seed: int = 3) -> Tensor:
    return torch.randn(samples, 8, generator=torch.Generator().manual_seed(seed))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return build()


@functools.cache
def converted(build: Callable[[], nn.Module]) -> tuple[nn.Module, ComposedModel]:
    original = seeded(build).eval()
    model = sortify(original, (rows(),), source="tests")
    assert isinstance(model, ComposedModel)
    return original, model


def pair(build: Callable[[], nn.Module] = Router) -> tuple[nn.Module, ComposedModel]:
    """The original and the model in parts, both with tensors of their own."""
    return copy.deepcopy(converted(build))


# -- one model ----------------------------------------------------------------------------------------------------


def test_the_largest_parts_are_found_and_the_rest_is_told() -> None:
    original, model = pair()
    assert set(model.parts) == {"encoder", "experts.0", "experts.1"}
    assert set(model.left) == {"the code between the parts", "gate", "unused.0", "unused.1"}
    assert "cannot be captured by torch.export" in model.left["the code between the parts"]
    assert "parts_models.py" in model.left["the code between the parts"]
    assert "fixed inputs and outputs" in model.left["gate"]
    told = [frozen.why for frozen in model.frozen if frozen.where == "capture"]
    assert any(text.startswith("gate runs as it was: ") for text in told)
    assert {"encoder.hidden", "experts.1.inner"} <= set(model.axes)
    assert list(model.chains) == ["encoder.blocks"]
    carried = {name for axis in model.axes.values() for name in axis.parameters}
    assert carried <= set(dict(original.named_parameters()))
    assert {name.split()[1] for name in model.blueprint.programs} == set(model.parts)


def test_it_is_proven_part_by_part_and_as_a_whole() -> None:
    _, model = converted(Router)
    assert model.report is not None
    assert model.report.passed
    names = [row.name for row in model.report.rows]
    assert "encoder: permutation" in names
    assert names[-2:] == ["whole (eval)", "whole (train)"]
    again = model.verify()
    assert again.passed
    assert "experts.0: slice = extraction (full)" in [row.name for row in again.rows]


def test_the_comparison_of_the_whole_can_fail() -> None:
    original, model = pair()
    example = Example((rows(),), {})
    assert compare_whole(original, model, example, False).passed
    with torch.no_grad():
        model.parts["encoder"].tensors["out.weight"].mul_(1.01)
    assert not compare_whole(original, model, example, False).passed


@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_original_in_both_modes(training: bool) -> None:
    original, model = pair()
    for module in (original, model):
        module.train(training)
        torch.manual_seed(5)
    for samples in (16, 7):
        assert_close_outputs(model(rows(samples)), original(rows(samples)), SINGLE)
    assert_same_tensors(dict(model.state_dict()), dict(original.state_dict()))


def test_names_are_the_originals_and_weights_can_be_loaded() -> None:
    _, model = pair()
    other = seeded(lambda: nn.Sequential(nn.Identity(), Router()))[1].eval()
    assert sorted(model.state_dict()) == sorted(other.state_dict())
    model.load_state_dict(other.state_dict())
    assert_close_outputs(model(rows()), other(rows()), SINGLE)
    assert len(list(model.parameters())) == len(list(other.parameters()))


def test_sub_networks_reach_the_parts_and_come_back() -> None:
    _, model = pair()
    full = model(rows())
    with model.using(width=0.5, depth=0.5) as half:
        assert half.parts["encoder"].active.depths == (("blocks", 2),)
        assert dict(half.parts["experts.0"].active.sizes) == {"inner": 12}
        assert not torch.allclose(half(rows()), full)
    assert torch.equal(model(rows()), full)
    assert model.active == model.space.full
    model.activate(**{"experts.0.inner": 0.25})
    assert dict(model.parts["experts.0"].active.sizes) == {"inner": 6}
    assert dict(model.parts["experts.1"].active.sizes) == {"inner": 24}
    with pytest.raises(BudgetError):
        model.activate(model.parts["encoder"].space.full)


def test_costs_are_those_of_the_parts_and_all_parameters_count() -> None:
    original, model = pair()
    full, small = model.cost(), model.cost(model.space.smallest)
    assert full.params == sum(p.numel() for p in original.parameters())
    assert small.params == sum(p.numel() for p in model.extract(subnet=model.space.smallest).parameters())
    assert full.flops == sum(part.cost().flops for part in model.parts.values())
    assert small.flops < full.flops
    assert model.cost(model.space.at(0.5)).flops <= full.flops / 2


def test_a_part_that_runs_three_times_costs_three_times() -> None:
    _, model = converted(Repeats)
    assert model.cost().flops == 3 * model.parts["sizes"].cost().flops


def test_extraction_gives_the_sub_networks_outputs() -> None:
    _, model = pair()
    subnet = model.space.subnet(width=0.5, depth=0.5)
    small = model.extract(subnet=subnet)
    with model.using(subnet):
        assert_close_outputs(small(rows(9)), model(rows(9)), SINGLE)
    assert small.tensors["encoder.blocks.0.up.weight"].shape == (16, 8)
    assert set(small.state_dict()) <= set(model.state_dict())
    small.load_state_dict(copy.deepcopy(small.state_dict()))
    with pytest.raises(BudgetError, match="give a budget"):
        model.extract()


def test_sorted_training_moves_parts_and_rest() -> None:
    _, model = pair()
    before = copy.deepcopy(model.state_dict())
    model.train()
    update = SortedUpdate(model, make_sampler("sandwich", model.space, levels_for(model.space, ["width"], 2), count=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        update(lambda: model(rows()).square().mean())
        optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"encoder.blocks.0.up.weight", "scale", "seen"} <= moved


def test_batch_statistics_are_measured_for_the_active_sub_network() -> None:
    _, model = pair()
    batches = [(rows(16, seed), torch.zeros(16)) for seed in range(3)]
    full = model(rows())
    with model.using(width=0.5):
        before = model(rows())
        model.recalibrate(batches)
        after = model(rows())
        extracted = model.extract(subnet=model.active)
    assert not torch.allclose(before, after)
    assert_close_outputs(extracted.eval()(rows()), after, SINGLE)
    assert torch.equal(model(rows()), full)
    assert [set(own) for own in model.statistics.values()] == [
        {f"experts.{i}.1.running_{kind}" for i in range(2) for kind in ("mean", "var")}
    ]
    model.train()(rows())
    assert not model.statistics


# -- what is left alone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "part", "left", "text"),
    [
        (Shares, "second", "first", "is used outside of it too"),
        (Peeks, "second", "first", "does not give the original's outputs with it"),
        (Repeats, "sizes", "kinds", "called with inputs of different kinds"),
    ],
)
def test_parts_that_hang_on_their_surroundings_are_left_alone(
    build: type[Branching], part: str, left: str, text: str
) -> None:
    original, model = converted(build)
    assert set(model.parts) == {part}
    assert any(text in why for path, why in model.left.items() if path.startswith(left))
    assert_close_outputs(model(rows(5)), original(rows(5)), SINGLE)


def test_a_cache_that_was_declined_for_the_capture_is_declined_where_a_call_says_nothing(tmp_path: Path) -> None:
    original, model = converted(Caching)
    assert [f.why for f in model.frozen if f.why.startswith("use_cache")] == [
        "use_cache=False is taken where a call leaves it out"
    ]
    expected = original(rows(5), use_cache=False)
    model.save(tmp_path)
    for sorted_model in (model, model.extract(subnet=model.space.full), load(tmp_path, original)):
        for found in (sorted_model(rows(5)), sorted_model(rows(5), False), sorted_model(rows(5), use_cache=False)):
            assert_close_outputs(found[0], expected[0], SINGLE)
            assert found[1] is None
    with pytest.raises(InputError, match="'use_cache' was False when the model was converted, got True"):
        model(rows(5), use_cache=True)


def test_where_nothing_is_left_the_reason_of_the_whole_is_given() -> None:
    with pytest.raises(CaptureError, match=r"NothingInside cannot.*only: nothing in it is elastic") as error:
        sortify(NothingInside(), (rows(),))
    assert "\n" not in str(error.value)


def test_where_only_training_cannot_be_captured_evaluation_is_offered() -> None:
    with pytest.raises(CaptureError, match=r"Watching cannot .*; training=False captures it for evaluation$"):
        sortify(Watching(), (rows(),))
    with pytest.raises(CaptureError) as error:
        sortify(NothingInside(), (rows(),))
    assert "training=False" not in str(error.value)
    assert sortify(Watching(), (rows(),), training=False).axes


@pytest.mark.filterwarnings("ignore")
def test_scripted_parts_run_as_they_were() -> None:
    original = seeded(lambda: nn.Sequential(torch.jit.script(two_layers()), two_layers()))
    model = sortify(original, (rows(),))
    assert isinstance(model, ComposedModel)
    assert model.left["0"] == "it is a torch.jit module"
    assert set(model.parts) == {"1"}
    assert_close_outputs(model(rows()), original(rows()), SINGLE)


def test_patterns_are_refused() -> None:
    with pytest.raises(CaptureError, match="fix, free and opaque are for models that are captured whole"):
        sortify(Router(), (rows(),), fix="encoder.*")


def test_the_original_stays_as_it_was() -> None:
    original = seeded(Router)
    before, attributes = copy.deepcopy(original.state_dict()), set(vars(original.encoder))
    sortify(original, (rows(),))
    assert_same_tensors(dict(original.state_dict()), dict(before))
    assert set(vars(original.encoder)) == attributes
    assert type(original.encoder).__name__ == "Encoder"
    assert not original.encoder._forward_pre_hooks
    assert original.training


# -- detection ----------------------------------------------------------------------------------------------------


@functools.cache
def detection() -> tuple[nn.Module, ComposedModel]:
    original = seeded(detector).eval()
    images = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    model = sortify(original, (images,))
    assert isinstance(model, ComposedModel)
    return original, model


@pytest.mark.filterwarnings("ignore")
def test_a_detection_model_runs_in_both_modes_on_images_of_any_size() -> None:
    original, model = copy.deepcopy(detection())
    assert set(model.parts) == {"backbone", "rpn.head", "roi_heads.box_head"}
    assert "targets should not be none" in model.left["the whole in train mode"]
    images = [torch.rand(3, 80, 72), torch.rand(3, 64, 90), torch.rand(3, 70, 70)]
    assert_close_outputs(model(images), original(images), 1e-4)
    assert len(model(images)[0]["boxes"]) > 0
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([1])}] * 3
    losses = []
    for module in (original, model):
        torch.manual_seed(5)
        losses.append(module.train()(copy.deepcopy(images), copy.deepcopy(targets)))
    assert_close_outputs(losses[1], losses[0], 1e-5)
    with model.using(width=0.5):
        sum(model(images, targets).values()).backward()
    gradient = model.parts["backbone"].tensors["0.weight"].grad
    assert gradient is not None
    assert gradient[:6].abs().sum() > 0
    assert gradient[6:].abs().sum() == 0


@pytest.mark.filterwarnings("ignore")
def test_a_detection_model_is_cut_out_and_comes_back_from_a_folder(tmp_path: Path) -> None:
    _, model = copy.deepcopy(detection())
    images = [torch.rand(3, 80, 72)]
    model.save(tmp_path)
    again = load(tmp_path, detector())
    assert_close_outputs(again(images), model(images), 0.0)
    small = model.extract(0.5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert set(small(images)[0]) == {"boxes", "labels", "scores"}


# -- folders ------------------------------------------------------------------------------------------------------


def test_a_folder_with_the_original_gives_the_model_back(tmp_path: Path) -> None:
    _, model = pair()
    with model.using(width=0.5):
        model.recalibrate([rows()])
    model.save(tmp_path)
    again = load(tmp_path, Router())
    assert isinstance(again, ComposedModel)
    assert_same_tensors(dict(again.state_dict()), dict(model.state_dict()))
    for fraction in (0.5, 1.0):
        with model.using(width=fraction), again.using(width=fraction):
            assert torch.equal(again(rows()), model(rows()))
    assert again.axes == model.axes
    assert again.frozen == model.frozen
    assert again.source == "tests"
    assert set(again.statistics) == set(model.statistics)


def test_a_folder_without_the_original_is_refused_or_looked_at(tmp_path: Path) -> None:
    _, model = pair()
    model.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"converted in parts.*load\(path, module=original\)") as refusal:
        load(tmp_path)
    assert "\n" not in str(refusal.value)
    seen = load(tmp_path, runnable=False)
    assert seen.cost() == model.cost()
    assert list(seen.axes) == list(model.axes)
    with pytest.raises(SortifyError, match="without the original module"):
        seen(rows())


@pytest.mark.parametrize("other", [lambda: nn.Linear(8, 8), lambda: Shares(), lambda: nn.Sequential(Router())])
def test_another_original_is_refused(other: Callable[[], nn.Module], tmp_path: Path) -> None:
    pair()[1].save(tmp_path)
    with pytest.raises(CheckpointError, match=r"not the one that was converted|has other tensors"):
        load(tmp_path, other())


@pytest.mark.parametrize("file", ["rest.safetensors", "example.safetensors", "parts/1/sortify.json", "sortify.json"])
def test_damaged_folders_are_refused(file: str, tmp_path: Path) -> None:
    pair()[1].save(tmp_path)
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(data[:-3] + b"abc")
    with pytest.raises(CheckpointError) as refusal:
        load(tmp_path, Router())
    assert "\n" not in str(refusal.value)
    (tmp_path / file).unlink()
    with pytest.raises(CheckpointError):
        load(tmp_path, Router())


# -- the command line ---------------------------------------------------------------------------------------------

FACTORY = """
import sys
sys.path.insert(0, {tests!r})
from parts_models import Router
"""


def test_the_command_line_converts_and_shows_models_in_parts(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "routers.py").write_text(FACTORY.format(tests=str(Path(__file__).parent)))
    monkeypatch.syspath_prepend(str(tmp_path))
    done = works(tmp_path, "convert", "routers:Router", "--input", "16x8")
    assert "whole (eval)" in done.output
    shown = works(tmp_path, "inspect")
    assert "encoder.hidden" in shown.output
    facts = json.loads(works(tmp_path, "inspect", "--json").output)
    assert facts["chains"] == {"encoder.blocks": [f"encoder.blocks.{i}" for i in range(3)]}
    for words in (["verify"], ["extract", "--budget", "0.5"]):
        refused = call(tmp_path, *words)
        assert refused.exit_code == 1
        assert len(errors(refused)) == 1
        assert "converted in parts" in errors(refused)[0]
