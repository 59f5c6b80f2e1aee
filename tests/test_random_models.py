"""Random small models: twenty programs obey the laws, and the laws are fed conversions that are wrong.

`make test-long` runs 2,000 numbered programs of the same generator.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_laws import judge, laws, positions, shrunk
from random_models import DRAWN, Net, Program, Step, draw, examples, smaller

from sortify import sortify
from sortify.graph.dims import full, parse
from sortify.plan import Plan

SEEDS = range(16)
PLAIN = Program(
    ((4, 6),),
    (
        Step("stem", (0,), {"out": 12}),
        Step("chunk", (1,), {"count": 2}),
        Step("residual", (2,), {"inner": 8, "name": "relu", "bias": True}),
        Step("residual", (3,), {"inner": 9, "name": "gelu", "bias": True}),
        Step("cat", (4, 5), {"order": (1, 0)}),
        Step("head", (6,), {}),
    ),
    (7,),
)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_model_obeys_the_laws(seed: int) -> None:
    program = draw(random.Random(seed), most=5)
    outcome = judge(program, seed)
    assert not outcome.fault, f"{outcome.status}: {outcome.note}\n{program}\n{program.to_dict()}"


@settings(derandomize=True, deadline=None, max_examples=4, database=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_a_model_drawn_by_hypothesis_obeys_the_laws(source: random.Random) -> None:
    program = draw(source, most=4)
    outcome = judge(program)
    assert not outcome.fault, f"{outcome.status}: {outcome.note}\n{program}\n{program.to_dict()}"


def test_a_program_is_plain_data_and_builds_the_same_model_each_time() -> None:
    for seed in range(10):
        program = draw(random.Random(seed))
        assert program == draw(random.Random(seed))
        again = Program.of(json.loads(json.dumps(program.to_dict())))
        assert again == program
        for one, two in zip(Net(program).parameters(), Net(again).parameters(), strict=True):
            assert torch.equal(one, two)


def test_nearly_every_op_is_drawn_soon() -> None:
    drawn = {step.op for seed in range(60) for step in draw(random.Random(seed)).steps}
    assert len(drawn) > 0.85 * len(set(DRAWN))


def test_a_program_reads_as_text() -> None:
    text = str(PLAIN)
    assert "x0: sequence (4, 6)" in text
    assert "x2, x3 = chunk(x1, count=2)  # (4, 6), (4, 6)" in text
    assert text.endswith("return x7")


def test_a_program_shrinks_to_what_matters() -> None:
    small = shrunk(PLAIN, lambda program: any(step.op == "cat" for step in program.steps))
    assert [step.op for step in small.steps] == ["stem", "chunk", "cat", "head"]
    assert all(len(other.steps) < len(PLAIN.steps) for other in smaller(PLAIN))


@pytest.mark.parametrize("text", ["a:3", "(a:3 * 2)", "(2 * a:3)", "(a:3 + 2 + b:4)", "(2 * (a:3 + b:4))", "7"])
def test_positions_undo_each_other(text: str) -> None:
    dim = parse(text)
    orders = {"a": torch.tensor([2, 0, 1]).numpy(), "b": torch.tensor([3, 1, 0, 2]).numpy()}
    back = {name: order.argsort() for name, order in orders.items()}
    place = positions(dim, orders)
    assert place[positions(dim, back)].tolist() == list(range(full(dim)))


def test_positions_of_a_product_move_whole_rows() -> None:
    order = {"a": torch.tensor([2, 0, 1]).numpy()}
    assert positions(parse("(a:3 * 2)"), order).tolist() == [4, 5, 0, 1, 2, 3]
    assert positions(parse("(2 * a:3)"), order).tolist() == [2, 0, 1, 5, 3, 4]


# -- wrong conversions: each must be seen


def fails(law: str, model: Any) -> bool:
    """Whether a law does not hold."""
    errors = laws(PLAIN, model, 0)
    return any(error > 1e-5 for name, error in errors.items() if name.startswith(law))


@pytest.fixture
def model() -> Any:
    return sortify(Net(PLAIN), examples(PLAIN))


def test_the_right_conversion_breaks_no_law(model: Any) -> None:
    assert not any(fails(law, model) for law in ("full", "state", "smallest", "random", "permuted"))


class Altered:
    """A sorted model of which one attribute is another; everything else is handed on."""

    def __init__(self, model: Any, **changes: Any) -> None:
        self.__dict__.update(changes, _model=model)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        return self._model(*inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)


def swapped(plan: Plan) -> Plan:
    """The plan with one tensor's first dimension read as if it belonged to nobody."""
    name = next(name for name, dims in plan.shapes.items() if "stem" not in name and len(dims) == 2)
    whole = (parse(str(full(plan.shapes[name][0]))), *plan.shapes[name][1:])
    return replace(plan, shapes={**plan.shapes, name: whole})


def test_a_wrong_coupling_is_seen(model: Any) -> None:
    assert fails("permuted", Altered(model, plan=swapped(model.plan)))


class Drifting(torch.nn.Module):
    """An extraction whose outputs are a little off."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x) * 1.001


def test_a_wrong_extraction_is_seen(model: Any) -> None:
    assert fails("smallest", Altered(model, extract=lambda subnet: Drifting(model.extract(subnet=subnet))))


def test_a_crash_is_an_outcome() -> None:
    def crash(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
        raise KeyError("getitem")

    outcome = judge(PLAIN, convert=crash)
    assert outcome.status == "crashed"
    assert "KeyError" in outcome.note


def test_what_the_proof_caught_is_an_outcome(model: Any) -> None:
    why = replace(model.frozen[0], why="axis hidden failed its proof: permuting it changed the outputs")
    outcome = judge(PLAIN, convert=lambda module, inputs: Altered(model, frozen=(why,)))
    assert outcome.status == "caught"
