"""Threads and asyncio tasks that run sub-networks of one model at once: each gets its own, bit for bit."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from parts_models import Router
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint
from training_models import example, make_model

from sortify import ComposedModel, SortedModel, SortedUpdate, Subnet, load, make_sampler, sortify
from sortify.errors import BudgetError, InputError
from sortify.models import scope, switching
from sortify.models.scores import Scores, fingerprint
from sortify.training.samplers import levels_for

KINDS = ("mlp", "bn", "lm", "parts")
FRACTIONS = ((1.0, 1.0), (0.5, 1.0), (0.25, 0.5), (0.75, 0.25))
SECONDS = 60
"""A thread that waits for longer has lost the others."""


@functools.cache
def _parts() -> ComposedModel:
    torch.manual_seed(7)
    model = sortify(Router().eval(), (torch.randn(16, 8),))
    assert isinstance(model, ComposedModel)
    return model


def made(kind: str) -> tuple[SortedModel, Any]:
    """A model in eval mode, its sub-networks calibrated where they have statistics, and inputs."""
    if kind == "parts":
        model, inputs = copy.deepcopy(_parts()), (torch.randn(16, 8),)
    else:
        model, inputs = make_model(kind).eval(), example(kind)
    if kind in ("bn", "parts"):
        for subnet in subnets_of(model):
            with model.using(subnet):
                model.recalibrate([(torch.randn_like(inputs[0]) + 3,)])
    return model, inputs


def subnets_of(model: SortedModel) -> list[Subnet]:
    return [model.space.subnet(width=width, depth=depth) for width, depth in FRACTIONS]


def call(model: nn.Module, inputs: Any, **more: Any) -> Tensor:
    """The output as one tensor."""
    with torch.no_grad():
        found = model(**inputs, **more) if isinstance(inputs, dict) else model(*inputs, **more)
    output: Tensor = found["logits"] if isinstance(found, dict) else found
    return output


@pytest.fixture(autouse=True)
def _hurried() -> Iterator[None]:
    """Let threads interrupt each other all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(work: Sequence[Callable[[threading.Barrier], Any]]) -> list[Any]:
    """What functions return that run in threads of their own, and may wait for each other."""
    barrier = threading.Barrier(len(work), timeout=SECONDS)

    def run(each: Callable[[threading.Barrier], Any]) -> Any:
        try:
            return each(barrier)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result() for future in [pool.submit(run, each) for each in work]]


def in_thread(work: Callable[[], Any]) -> Any:
    """What a function returns in another thread."""
    return at_once([lambda _: work()])[0]


Way = Callable[[SortedModel, Any, Subnet, Callable[[], object]], Tensor]


def by_block(model: SortedModel, inputs: Any, subnet: Subnet, wait: Callable[[], object]) -> Tensor:
    with model.using(subnet):
        wait()
        found = call(model, inputs)
        wait()
        assert model.active == subnet
    return found


def by_argument(model: SortedModel, inputs: Any, subnet: Subnet, wait: Callable[[], object]) -> Tensor:
    wait()
    return call(model, inputs, subnet=subnet)


def strangers(model: SortedModel, inputs: Any, way: Way, calls: int = 12) -> int:
    """How many of the answers of threads at sub-networks of their own are not those of one thread alone."""
    chosen = subnets_of(model)
    expected = {subnet: by_block(model, inputs, subnet, lambda: None) for subnet in chosen}
    assert not any(torch.equal(expected[a], expected[b]) for a, b in itertools.combinations(chosen, 2))

    def work(subnet: Subnet, barrier: threading.Barrier) -> int:
        answers = [way(model, inputs, subnet, barrier.wait) for _ in range(calls)]
        return sum(not torch.equal(answer, expected[subnet]) for answer in answers)

    return sum(at_once([functools.partial(work, subnet) for subnet in chosen]))


# -- the law ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [by_block, by_argument], ids=["using", "subnet="])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_get_the_outputs_of_their_own_sub_networks(kind: str, way: Way) -> None:
    model, inputs = made(kind)
    assert strangers(model, inputs, way) == 0
    assert model.active == model.space.full


class Shared:
    """In the place of a context variable: one value for all."""

    def __init__(self) -> None:
        self.value: Any = None

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> None:
        self.value = value


@pytest.mark.parametrize("kind", KINDS)
def test_the_law_fails_where_threads_share_what_blocks_set(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = made(kind)
    monkeypatch.setattr(scope, "_OPEN", Shared())
    with pytest.raises((AssertionError, threading.BrokenBarrierError)):
        assert strangers(model, inputs, by_block) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_coroutines_that_wait_inside_their_blocks_keep_their_sub_networks(kind: str) -> None:
    model, inputs = made(kind)
    chosen = subnets_of(model)
    expected = [by_block(model, inputs, subnet, lambda: None) for subnet in chosen]

    async def serve(subnet: Subnet) -> Tensor:
        with model.using(subnet):
            for _ in range(3):
                await asyncio.sleep(0)
                found = call(model, inputs)
            child = asyncio.create_task(answered())
        return found if torch.equal(found, await child) else torch.empty(0)

    async def answered() -> Tensor:
        """Begins with what is set where the task is made, and keeps it when the block has ended."""
        await asyncio.sleep(0.001)
        return await asyncio.to_thread(call, model, inputs)

    async def all_at_once() -> list[Tensor]:
        return await asyncio.gather(*map(serve, chosen))

    for found, wanted in zip(asyncio.run(all_at_once()), expected, strict=True):
        assert torch.equal(found, wanted)
    assert model.active == model.space.full


def test_compiled_models_answer_threads_as_well() -> None:
    torch._dynamo.reset()
    model, inputs = made("bn")
    model.compile(backend="eager")
    assert strangers(model, inputs, by_block, calls=4) == 0
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_compiler_around_the_model_sees_which_sub_network_runs() -> None:
    torch._dynamo.reset()
    model, inputs = made("mlp")
    counter = CompileCounterWithBackend("eager")
    compiled: Any = torch.compile(model, backend=counter, fullgraph=True)
    chosen = subnets_of(model)[1:3]
    expected = [call(model, inputs, subnet=subnet) for subnet in chosen]
    for _ in range(3):
        for subnet, wanted in zip(chosen, expected, strict=True):
            with model.using(subnet):
                assert torch.equal(call(compiled, inputs), wanted)
    assert counter.frame_count == len(chosen)
    assert torch.equal(call(compiled, inputs, subnet=chosen[1]), expected[1])
    torch._dynamo.reset()


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_plain_threads_run_what_is_active_for_all_and_contexts_take_a_block_along() -> None:
    model, _ = made("mlp")
    full, half, small, _ = subnets_of(model)
    with model.using(half):
        assert in_thread(lambda: model.active) == full
        taken = contextvars.copy_context()
        assert in_thread(lambda: taken.run(lambda: model.active)) == half
        in_thread(lambda: model.activate(small))
        assert model.active == half
    assert model.active == small


def test_activate_inside_a_block_is_for_the_block() -> None:
    model, _ = made("parts")
    full, half, small, other = subnets_of(model)
    with model.using(half):
        model.activate(small)
        assert model.active == small
        assert in_thread(lambda: model.active) == full
        with model.using(other):
            pass
        assert model.active == small
    assert model.active == full
    assert isinstance(model, ComposedModel)
    assert {part.active == part.space.full for part in model.parts.values()} == {True}


def test_blocks_nest_of_several_models_and_end_with_errors() -> None:
    (one, _), (two, _) = made("mlp"), made("lm")
    full, half, small, _ = subnets_of(one)

    def failing() -> None:
        assert (one.active, two.active) == (small, two.space.subnet(width=0.5))
        raise ZeroDivisionError

    with one.using(half), two.using(width=0.5):
        with pytest.raises(ZeroDivisionError), one.using(small):
            failing()
        assert one.active == half
        with pytest.raises(BudgetError, match="does not belong to this model"), one.using(_parts().space.full):
            pass
        with pytest.raises(BudgetError, match=r"using: give a budget.*one of them"), one.using(half, budget=0.5):
            pass
        assert one.active == half
    assert (one.active, two.active) == (full, two.space.full)
    assert not scope._OPEN.get()


def test_generators_end_their_blocks_in_any_order_and_in_any_thread() -> None:
    model, _ = made("mlp")
    full, half, small, _ = subnets_of(model)

    def opened(subnet: Subnet) -> Iterator[Subnet]:
        with model.using(subnet):
            yield model.active

    first, second = opened(half), opened(small)
    assert (next(first), next(second)) == (half, small)
    assert list(first) == []
    assert model.active == small  # a generator leaves its block open for whoever takes from it
    assert list(second) == []
    assert model.active == full
    third = opened(half)
    in_thread(lambda: next(third))
    assert model.active == full
    assert list(third) == []
    assert model.active == full


def test_copies_begin_with_what_is_active_and_go_their_own_way(tmp_path: Path) -> None:
    for kind in ("bn", "parts"):
        model, inputs = made(kind)
        full, half, small, _ = subnets_of(model)
        with model.using(half):
            expected = call(model, inputs)
            twin = copy.deepcopy(model)
            model.activate(small)
            assert twin.active == half
            assert torch.equal(call(twin, inputs), expected)
            model.save(tmp_path / kind)
        assert (model.active, twin.active) == (full, half)
        with twin.using(small):
            assert model.active == full
        again = load(tmp_path / kind, Router() if kind == "parts" else None)
        assert again.active == full
        assert torch.equal(call(again, inputs, subnet=half), expected)


# -- one call ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_at_a_sub_network(kind: str) -> None:
    model, inputs = made(kind)
    _, half, small, _ = subnets_of(model)
    expected = by_block(model, inputs, half, lambda: None)
    model.activate(small)
    assert torch.equal(call(model, inputs, subnet=half), expected)
    assert model.active == small
    assert torch.equal(call(model, inputs, subnet=None), call(model, inputs))
    with pytest.raises(BudgetError, match=r"sub-network 0\.5 does not belong to this model.*choose"):
        call(model, inputs, subnet=0.5)
    with pytest.raises(BudgetError, match="does not belong to this model"):
        call(model, inputs, subnet=made("mlp" if kind == "parts" else "parts")[0].space.full)


class Named(nn.Module):
    """Its argument `subnet` is its own: an address."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.layers, self.branches = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), branches

    def forward(self, x: Tensor, subnet: Tensor | None = None) -> Tensor:
        y: Tensor = self.layers(x)
        if self.branches and y.sum() > 1e9:
            y = -y
        return y if subnet is None else y + subnet


@pytest.mark.parametrize("in_parts", [False, True])
def test_an_argument_of_the_originals_with_that_name_is_its_own(in_parts: bool) -> None:
    original, x, mask = Named(in_parts).eval(), torch.randn(4, 8), torch.randn(4, 4)
    model = sortify(original, {"x": x, "subnet": mask})
    assert isinstance(model, ComposedModel) == in_parts
    assert torch.allclose(model(x, subnet=mask), original(x, mask), atol=1e-6)
    with model.using(width=0.5):
        assert not torch.allclose(model(x, subnet=mask), original(x, mask), atol=1e-3)
    if not in_parts:
        with pytest.raises(InputError, match="subnet"):
            model(x, subnet=model.space.smallest)


# -- statistics and budgets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bn", "parts"])
def test_calls_while_others_measure_and_forget_have_the_one_or_the_other(kind: str) -> None:
    model, inputs = made(kind)
    batches = [(torch.randn_like(inputs[0]) + 3,)]
    half = subnets_of(model)[1]

    def recalibrated(subnet: Subnet) -> None:
        with model.using(subnet):
            model.recalibrate(batches)

    answers = []
    for change in (model.forget_statistics, functools.partial(recalibrated, half)):
        change()
        answers.append(call(model, inputs, subnet=half))

    def changing(barrier: threading.Barrier) -> int:
        barrier.wait()
        for _ in range(12):
            recalibrated(half)
            model.forget_statistics()
        return 0

    def calling(barrier: threading.Barrier) -> int:
        barrier.wait()
        found = [call(model, inputs, subnet=half) for _ in range(60)]
        return sum(not any(torch.equal(each, known) for known in answers) for each in found)

    assert not torch.equal(*answers)
    assert sum(at_once([changing, calling, calling])) == 0
    recalibrated(half)
    assert model.is_calibrated(half)


def test_the_warning_that_nobody_measured_is_for_the_line_that_asks() -> None:
    model, _ = made("bn")
    model.forget_statistics()
    model.record_trained(model.space.settings)
    with pytest.warns(UserWarning, match="nobody measured them") as told:
        model.activate(budget=0.5)
    with pytest.warns(UserWarning, match="nobody measured them") as told_too, model.using(budget=0.5):
        pass
    assert [each.filename for each in (*told, *told_too)] == [__file__] * 2


def test_threads_that_measure_at_once_keep_the_statistics_of_each_other() -> None:
    model, inputs = made("bn")
    expected = {subnet: dict(own) for subnet, own in model.statistics.items()}
    model.forget_statistics()

    def measure(subnet: Subnet, barrier: threading.Barrier) -> None:
        with model.using(subnet):
            barrier.wait()
            model.recalibrate([inputs])

    at_once([functools.partial(measure, subnet) for subnet in expected])
    assert set(model.statistics) == set(expected)


def test_budgets_are_remembered_until_what_they_mean_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = made("mlp")
    digests = []

    def counted(*given: Any) -> str:
        digests.append(fingerprint(*given))
        return digests[-1]

    monkeypatch.setattr(switching, "fingerprint", counted)
    first = model.choose(0.5)
    assert model.choose("50%") is first
    members = sorted(model.space.members(), key=lambda subnet: model.cost(subnet).flops)
    model.record_scores(
        Scores("accuracy", fingerprint(model), {subnet: 1.0 / n for n, subnet in enumerate(members, 1)})
    )
    second = model.choose(0.5)
    assert (second.subnet, model.choose(0.5), len(digests)) == (members[0], second, 1)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert (model.choose(0.5), model.choose(0.5), len(digests)) == (first, first, 2)
    levels = levels_for(model.space.using({"width": (0.25, 1.0)}), ("width",))
    model.record_trained(model.space.using(dict(levels)).settings)
    assert "trained" in model.choose(0.5).rule
    for wrong in ("nothing", 2.0, ["1 GFLOPs", None]):
        with pytest.raises(BudgetError):
            model.choose(wrong)  # type: ignore[arg-type]


# -- training ---------------------------------------------------------------------------------------------------------


def gradients(model: SortedModel, inputs: Any, subnet: Subnet) -> list[Tensor | None]:
    """Of all parameters, without touching what is accumulated."""
    with model.using(subnet):
        output = model(*inputs).square().mean()
        return list(torch.autograd.grad(output, list(model.parameters()), allow_unused=True))


def same(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> bool:
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(one, other, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["mlp-still", "bn-still"])
def test_gradients_in_threads_are_those_of_one_thread(kind: str) -> None:
    model, inputs = make_model(kind).train(), example(kind)
    chosen = subnets_of(model)[1:]
    expected = [gradients(model, inputs, subnet) for subnet in chosen]
    assert not same(expected[0], expected[1])

    def work(subnet: Subnet, barrier: threading.Barrier) -> list[Any]:
        barrier.wait()
        return [gradients(model, inputs, subnet) for _ in range(4)]

    found = at_once([functools.partial(work, subnet) for subnet in chosen])
    assert all(same(each, wanted) for every, wanted in zip(found, expected, strict=True) for each in every)


def test_what_is_computed_again_backward_is_the_sub_network_of_the_forward_pass() -> None:
    """Another thread stands for that of autograd on a GPU; it is not inside the block, nor is the backward pass."""
    model, inputs = make_model("mlp-still").train(), example("mlp")
    half = subnets_of(model)[1]

    def landed(output: Tensor) -> list[Tensor | None]:
        model.zero_grad(set_to_none=True)
        in_thread(output.square().mean().backward)
        return [parameter.grad for parameter in model.parameters()]

    with model.using(half):
        expected = landed(model(*inputs))
    found = landed(checkpoint(model, *inputs, subnet=half, use_reentrant=False))
    assert same(found, expected)
    model.gradient_checkpointing_enable()
    with model.using(half):
        output = model(*inputs)
    assert same(landed(output), expected)
    model.gradient_checkpointing_disable()
    assert not same(landed(model(*inputs)), expected)


def test_an_update_inside_a_block_trains_what_it_draws_and_leaves_the_block_as_it_was() -> None:
    losses, inputs = [], example("mlp")
    for inside in (False, True):
        model = make_model("mlp-still").train()
        half = subnets_of(model)[1]
        seen = list[Subnet]()

        def loss(model: SortedModel = model, seen: list[Subnet] = seen) -> Tensor:
            output: Tensor = model(*inputs)
            output.register_hook(lambda _: seen.append(model.active))
            return output.square().mean()

        update = SortedUpdate(model, make_sampler("random", model.space, levels_for(model.space, ("width",)), 4))
        with model.using(half if inside else model.space.full):
            drawn = update(loss)
            assert model.active == (half if inside else model.space.full)
        assert model.active == model.space.full
        assert seen == [each.subnet for each in drawn]
        losses.append([float(each.loss) for each in drawn])
    assert losses[0] == losses[1]
