"""Measured costs with a clock of our own: planted times come back, budgets go by them, what is wrong is told."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_calls import small_net
from parts_models import Router
from torch import Tensor, nn

from sortify import Profile, SortedModel, Subnet, load, sortify
from sortify.errors import BudgetError, CheckpointError, InputError, ProfileError
from sortify.models import profiling
from sortify.models.peak import peak
from sortify.space.budget import figure
from sortify.space.profile import FEATURES, Features

WEIGHTS = {"constant": 2e5, "flops": 0.25, "activation_bytes": 1.5, "params": 3.0, "operations": 1e4}
"""Nanoseconds of each."""


@functools.cache
def converted() -> SortedModel:
    return sortify(small_net(), (torch.zeros(2, 1, 8, 8),)).eval()


def fresh() -> SortedModel:
    """The small model without a profile."""
    model = converted()
    return SortedModel(model.blueprint, model.tensors, model.example_tensors).eval()


class Machine:
    """A machine whose clock moves only while it runs a sub-network, by what `seconds` says."""

    def __init__(self, seconds: Callable[[Subnet, int], float], memory: Callable[[Subnet], int] = lambda _: 1000):
        self.seconds, self.memory = seconds, memory
        self.now = 0.0
        self.calls: list[Subnet] = []

    def clock(self) -> float:
        return self.now

    def prepare(self, subnet: Subnet) -> profiling.Probe:
        def call() -> None:
            self.now += self.seconds(subnet, len(self.calls))
            self.calls.append(subnet)

        def memory() -> int:
            call()
            return self.memory(subnet)

        return profiling.Probe(call, memory)


def planted(model: SortedModel, subnet: Subnet) -> float:
    """Seconds that are a sum of exact costs."""
    table = Features(model.space.exact, model.plan).table(np.array([subnet.values], dtype=np.int64), WEIGHTS, {})
    return sum(weight * float(table[name][0]) for name, weight in WEIGHTS.items()) / 1e9


def measured(model: SortedModel, machine: Machine | None = None, **given: Any) -> Profile:
    """Profile a model on a planted machine, and note it."""
    machine = machine or Machine(
        lambda subnet, _: planted(model, subnet), lambda subnet: 4 * model.cost(subnet).params + 500
    )
    given = {"seconds": 1e6, "rounds": 5, **given}
    found = profiling.profile(model, prepare=machine.prepare, clock=machine.clock, **given)
    model.record_profile(found)
    return found


def others(model: SortedModel, known: Iterable[Subnet]) -> list[Subnet]:
    """Sub-networks of fractions that are no levels."""
    chance = torch.Generator().manual_seed(7)
    drawn = 0.2 + 0.8 * torch.rand(40, 2, generator=chance)
    found = [model.space.subnet(width=float(width), depth=float(depth)) for width, depth in drawn]
    return [subnet for subnet in found if subnet not in set(known)]


# -- measuring and predicting


def test_planted_costs_come_back_and_predict_what_was_not_measured() -> None:
    model = fresh()
    found = measured(model)
    assert dict(found.latency.weights) == pytest.approx(WEIGHTS, rel=1e-6)
    assert found.latency.worst < 1e-9
    assert found.memory.worst < 1e-9
    unseen = others(model, [row.subnet for row in found.rows])
    assert len(unseen) > 10
    for subnet in unseen:
        told = model.measured_cost(subnet)
        assert told.latency == pytest.approx(planted(model, subnet), rel=1e-5)
        assert told.memory == pytest.approx(4 * model.cost(subnet).params + 500, abs=2)


def test_the_sample_holds_the_ends_each_group_alone_and_others() -> None:
    model = fresh()
    found = profiling.sample(model.space, 24)
    assert len(set(found)) == len(found) == 24
    low = {"width": 0.25, "depth": 0.25}
    assert {model.space.full, model.space.smallest, model.space.subnet(width=0.25)} <= set(found)
    assert model.space.subnet(depth=low["depth"]) in found
    assert found == profiling.sample(model.space, 24)
    assert len(profiling.sample(model.space, 4)) == 4


def test_all_take_turns() -> None:
    model = fresh()
    machine = Machine(lambda *_: 1.0)
    subnets = profiling.sample(model.space, 6)
    measured(model, machine, subnets=subnets, rounds=3)
    ready = profiling.WARM_UP * len(subnets)
    assert machine.calls[ready:] == subnets * 3


def test_a_burst_of_other_work_does_not_count() -> None:
    """Two rounds of seven are ten times as slow: medians do not see it, but for the spread."""
    model, quiet = fresh(), fresh()
    subnets = profiling.sample(model.space, 12)
    ready = profiling.WARM_UP * len(subnets)
    slow = range(ready + 12, ready + 36)
    burst = Machine(lambda subnet, call: (10 if call in slow else 1) + 100 * planted(model, subnet))
    expected = measured(quiet, Machine(lambda subnet, _: 1 + 100 * planted(model, subnet)), subnets=subnets, rounds=7)
    found = measured(model, burst, subnets=subnets, rounds=7)
    assert [row.latency for row in found.rows] == pytest.approx([row.latency for row in expected.rows])
    assert max(row.spread for row in found.rows) > 1 > max(row.spread for row in expected.rows)


@pytest.mark.parametrize(("seconds", "rounds"), [(1e-9, 1), (50.0, 2), (1e9, 9)])
def test_the_time_limit_ends_rounds_but_one_is_made(seconds: float, rounds: int) -> None:
    """Six sub-networks of a second each: 18 seconds to warm up, 6 a round."""
    model, told = fresh(), list[tuple[int, int]]()
    subnets = profiling.sample(model.space, 6)
    seconds = 18 + 6 * 2.5 if rounds == 2 else seconds
    found = measured(
        model,
        Machine(lambda *_: 1.0),
        subnets=subnets,
        seconds=seconds,
        rounds=9,
        progress=lambda done, of: told.append((done, of)),
    )
    assert found.rounds == rounds
    assert [done for done, _ in told] == list(range(1, rounds + 1))
    assert told[-1] == (rounds, rounds)


def test_what_the_costs_do_not_explain_is_told() -> None:
    model = fresh()
    chance = np.random.default_rng(0)
    drawn = {subnet: float(np.exp(chance.normal())) for subnet in profiling.sample(model.space, 24)}
    found = measured(model, Machine(lambda subnet, _: drawn[subnet]))
    assert found.latency.error > 0.25
    assert found.latency.worst >= found.latency.error


def test_predictions_never_fall_as_sizes_grow() -> None:
    """Even of measurements without any sense."""
    model = fresh()
    chance = np.random.default_rng(1)
    measured(model, Machine(lambda *_: float(chance.random()), lambda _: int(chance.integers(1, 10**9))))
    found = others(model, [])
    pairs = [(a, b) for a in found for b in found if a != b and a.contains(b)]
    assert len(pairs) > 50
    for large, small in pairs:
        mine, theirs = model.measured_cost(large), model.measured_cost(small)
        assert mine.latency >= theirs.latency
        assert mine.memory >= theirs.memory


def test_a_real_measurement_of_the_running_machine() -> None:
    """What the machine says is not known; what is measured and noted is."""
    model = fresh()
    found = model.profile("cpu", 4, 0.01, batch=3)
    assert len(found.rows) == 4
    assert dict(found.sizes) == {"batch": 3}
    assert (found.samples, found.tokens) == (3, None)
    assert all(row.latency > 0 for row in found.rows)
    assert dict(found.machine)["threads"] == "1"
    assert model.profiled is found
    full = next(row for row in found.rows if row.subnet == model.space.full)
    held = 4 * (model.cost(model.space.full).params + 3 * 64)
    assert held < full.memory < 2 * held + 3 * model.cost(model.space.full, batch=3).activation_bytes


# -- memory


def test_the_peak_is_what_lives_at_once() -> None:
    start = torch.zeros(1000)

    def call() -> None:
        first = start + 1
        second = first * 2
        del first
        (second.view(10, 100).t() + 1).sum()

    assert peak(call, [start, start.view(10, 100)]) == 4000 + 8004
    assert peak(call, []) == 8004
    assert peak(lambda: [start + n for n in range(3)], [start]) == 4000 + 12000
    assert peak(lambda: start.view(100, 10), [start]) == 4000


# -- inputs


class Sentences(nn.Module):
    """Tokens `[batch, sequence]` and a mask of the same sizes to `[batch, 2]`."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc1, self.fc2 = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(self.table(ids) * mask[:, :, None])).sum(1))


def test_inputs_of_other_sizes_and_tokens_a_second() -> None:
    torch.manual_seed(0)
    model = sortify(Sentences(), (torch.randint(0, 20, (2, 5)), torch.ones(2, 5).long()))
    ids, mask = profiling.inputs_at(model, {"batch": 3, "sequence": 7})
    assert ids.shape == mask.shape == (3, 7)
    with torch.no_grad():
        assert model(ids, mask).shape == (3, 2)
    assert torch.equal(ids[0, :5], model.example_tensors[0][0])
    assert torch.equal(ids[2], ids[0])
    with pytest.raises(InputError, match="no open size 'height'"):
        profiling.inputs_at(model, {"height": 3})
    assert profiling.counts([ids, mask]) == (3, 21)
    assert profiling.counts([mask.float()]) == (3, None)
    found = measured(model, sizes={"batch": 3})
    assert found.throughput(0.5) == (30.0, "tokens/s")
    assert measured(fresh()).throughput(0.5) == (4.0, "samples/s")


# -- budgets


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75, 1.0])
def test_a_budget_of_time_picks_the_largest_that_fits(share: float) -> None:
    model = fresh()
    measured(model)
    times = {subnet: model.measured_cost(subnet).latency for subnet in model.space.members()}
    limit = (1 - share) * min(times.values()) + share * max(times.values())
    most = max(time for time in times.values() if time <= limit)
    of_full = limit / max(times.values())
    for budget in (f"{1e3 * limit:.9f} ms", f"{limit:.12f} s", f"{1e6 * limit:.6f}us", f"{100 * of_full}% latency"):
        assert times[model.space.at(budget)] == most
    assert times[model.space.at(of_full, metric="latency")] == most
    assert model.activate(budget=f"{1e3 * limit:.9f} ms") == model.space.at(f"{1e3 * limit:.9f} ms")


def test_budgets_of_time_memory_and_costs_hold_together() -> None:
    model = fresh()
    measured(model)
    whole = model.measured_cost(model.space.full)
    params = model.cost(model.space.full).params
    found = model.space.at(f"{900 * whole.latency:.9f} ms, {0.8 * whole.memory:.0f} B, {params // 2} params")
    told = model.measured_cost(found)
    assert told.latency <= 0.9 * whole.latency
    assert told.memory <= 0.8 * whole.memory
    assert model.cost(found).params <= params // 2
    assert found != model.space.smallest
    assert model.extract(budget="90% latency").tensors


def test_an_untied_space_is_searched_by_time_too() -> None:
    model = fresh()
    measured(model)
    space = model.space.untied("width")
    limit = model.measured_cost(model.space.full).latency * 0.6
    found = space.at(f"{1e3 * limit:.9f} ms")
    assert 0.9 * limit < model.measured_cost(found).latency <= limit
    assert space.profile is model.profiled


def test_after_an_evaluation_the_best_within_the_time_is_chosen() -> None:
    model = fresh()
    measured(model)
    scores = {subnet: float(number) for number, subnet in enumerate(reversed(model.space.members()))}
    limit = 0.6 * model.measured_cost(model.space.full).latency
    fitting = {s: score for s, score in scores.items() if model.measured_cost(s).latency <= limit}
    assert model.space.at(f"{1e3 * limit:.9f} ms", scores=scores) == max(fitting, key=fitting.__getitem__)


def test_an_infeasible_budget_names_the_smallest_reachable() -> None:
    model = fresh()
    measured(model)
    least = model.measured_cost(model.space.smallest)
    with pytest.raises(BudgetError, match="is too small: the smallest reachable is") as caught:
        model.space.at("1 us")
    assert figure("latency", round(1e9 * least.latency)) in str(caught.value)
    with pytest.raises(BudgetError, match=f"0.0001 MB memory is too small.* {figure('memory', least.memory)}"):
        model.space.at("100 B")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", ["5 ms", "40 MB", "50% latency", "0.5 memory", "50%, 3 s"])
def test_without_a_profile_one_line_says_how_to_make_one(budget: str) -> None:
    with pytest.raises(BudgetError, match=r"run `sortify profile`, or model.profile\(\)") as caught:
        fresh().space.at(budget)
    assert "\n" not in str(caught.value)
    with pytest.raises(BudgetError, match="run `sortify profile`"):
        fresh().measured_cost()


def test_a_profile_speaks_of_its_own_sizes() -> None:
    model = fresh()
    measured(model, sizes={"batch": 4})
    assert model.space.at("90% latency") == model.space.at("90% latency", batch=4)
    with pytest.raises(BudgetError, match="was measured at batch=4, not at batch=1"):
        model.space.at("90% latency", batch=1)
    model.space.at("90% flops", batch=1)


# -- what is refused


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"subnets": 3}, "3 different sub-networks, expected 4 or more"),
        ({"seconds": 0.0}, "expected 1 round or more, and some time"),
        ({"rounds": 0}, "expected 1 round or more"),
        ({"device": "toaster"}, "device 'toaster' cannot be used here"),
        ({"subnets": [Subnet((("other", 1),), ())] * 5}, "does not belong to this model"),
    ],
)
def test_one_clear_error(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ProfileError, match=words) as caught:
        measured(fresh(), **given)
    assert "\n" not in str(caught.value)


def test_a_clock_that_stands_still_is_no_measurement() -> None:
    with pytest.raises(ProfileError, match="no measurement"):
        measured(fresh(), Machine(lambda *_: 0.0))


# -- kept


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = fresh()
    found = measured(model, sizes={"batch": 4})
    model.save(tmp_path / "sorted")
    again = load(tmp_path / "sorted")
    assert again.profiled == found
    assert again.space.at("70% latency") == model.space.at("70% latency")
    assert Profile.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_folder_of_before_loads_and_damage_is_told(tmp_path: Path) -> None:
    model = fresh()
    found = measured(model)
    model.save(tmp_path / "sorted")
    main = tmp_path / "sorted" / "sortify.json"
    stored = json.loads(main.read_text())
    foreign = dataclasses.replace(found.rows[0], subnet=Subnet((("other", 1),), ()))
    negative = dict.fromkeys(FEATURES["latency"], -1.0)
    for wrong in (
        {**stored["profile"], "rows": [[1, 2]]},
        {**stored["profile"], "latency": [negative, [0.1]]},
        {**stored["profile"], "memory": [{}, [0.1]]},
        dataclasses.replace(found, rows=(foreign,)).to_json(),
        [1],
    ):
        main.write_text(json.dumps({**stored, "profile": wrong}))
        with pytest.raises(CheckpointError, match="damaged checkpoint"):
            load(tmp_path / "sorted")
    del stored["profile"]
    main.write_text(json.dumps(stored))
    assert load(tmp_path / "sorted").profiled is None


def test_a_model_in_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, router = torch.randn(12, 8), Router().eval()
    model = sortify(router, (x,)).eval()
    found = model.profile("cpu", 4, 0.01)
    model.save(tmp_path / "sorted")
    again = load(tmp_path / "sorted", module=router)
    assert again.profiled == found
    assert again.space.at("100% latency") == model.space.at("100% latency")


def test_training_keeps_the_profile() -> None:
    model = fresh()
    found = measured(model)
    trained = model.space.using(levels={"width": 2}).settings
    model.record_trained(trained)
    assert model.profiled is found
