"""Every op in the rule table keeps the law of rules on numbers (rule_law.py), and wrong rules are caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from rule_law import Sample, check, judge, positions
from rule_samples import samples_of
from rule_tensors import case
from rule_tensors import numbers as n

from sortify.axes import algebra
from sortify.axes.algebra import concat, open_atom, product
from sortify.axes.rules import RULES, Call
from sortify.axes.rules.images import affine_grid
from sortify.axes.rules.indexing import count, counted
from sortify.axes.rules.layouts import solve
from sortify.axes.rules.pointwise import kept_for_later, pointwise
from sortify.axes.rules.products import FOREIGN
from sortify.axes.rules.scattering import positions as positions_picked
from sortify.axes.rules.shapes import repeat
from sortify.axes.rules.table import Dims, rule

# Ops whose every use fixes everything: their results depend on positions or data alone.
FIXING = (count, counted, positions_picked, solve, kept_for_later, affine_grid)
ALL_FIXED = frozenset(op for op in RULES if RULES[op] in FIXING)


WARNINGS = (
    "frobenius_norm is deprecated",
    "degrees of freedom is <= 0",
    "A window was not provided",
    "it will be required to pass the indexing argument",
    "index_reduce\\(\\) is in beta",
    "The reduce argument of torch.scatter",
)


@pytest.mark.filterwarnings(*(f"ignore:.*{text}" for text in WARNINGS))
@pytest.mark.parametrize("op", RULES)
def test_rule_holds_on_numbers(op: str) -> None:
    if op in FOREIGN:
        pytest.importorskip("transformers.integrations.moe")
    samples = samples_of(op)
    assert samples, f"{op} has a rule but no sample: add one to rule_samples*.py"
    found = [check(sample).open for sample in samples]
    assert any(found) != (op in ALL_FIXED), "the samples of an elastic op leave nothing open"


def test_an_op_without_a_rule_fixes_everything() -> None:
    sample = Sample("aten.renorm.default", (n(3, 4), 2, 0, 1.0), refused=True)
    verdict = check(sample, {"aten.relu.default": pointwise})
    assert verdict.open == []
    assert any("aten.renorm.default: this op has no rule" in why for why in verdict.reasons)


def test_a_size_that_is_read_fixes_its_own_dimension_alone() -> None:
    verdict = judge(case("sym_size.int", n(3, 4, 5), -2, opens=2))
    fixed = [str(algebra.resolve(dim).fixed or "") for dims in verdict.inputs for dim in dims]
    assert fixed == ["", "aten.sym_size.int: its size is read as a number", ""]


def test_a_rule_that_gives_wrong_sizes_fixes_everything() -> None:
    verdict = judge(case("t.default", n(3, 4), opens=2), {"aten.t.default": lambda call: call.dims("self")})
    assert verdict.open == []
    assert any("the result of its rule does not fit" in why for why in verdict.reasons)


# -- wrong rules: what each does wrong, the sample that shows it, and which part of the law says so


def _first_as_it_is(call: Call) -> Dims:
    return call.dims_of(call.node.args[0])


def _notes_no_sizes(call: Call) -> Dims:
    """Right about the dimensions, but silent about arguments that are sizes."""
    found: Dims = RULES[str(call.node.target)](call)
    call.literals.clear()
    return found


def _fixes_everything(call: Call) -> Dims:
    call.fix(call.dims("self"), "who knows")
    return call.dims("self")


def _ties_rows_to_columns(call: Call) -> Dims:
    left, right = call.dims("self"), call.dims("mat2")
    call.unify(left[0], right[1])
    return left[0], right[1]


def _ties_nothing(call: Call) -> Dims:
    return call.dims("self")[0], call.dims("mat2")[1]


def _ignores_groups(call: Call) -> Dims:
    image, weight = call.dims("input"), call.dims("weight")
    call.fix([*weight[1:], *image[1:]], "not of interest")
    return (image[0], weight[0], *image[2:])


def _copies_inside(call: Call) -> Dims:
    """Takes tiling for repetition of each element."""
    (dim,) = call.dims("self")
    copies = open_atom(call["repeats"][0], "repeat")
    call.literal("repeats", 0, copies)
    return (product([dim, copies]),)


def _splits_the_other_way(call: Call) -> Dims:
    """Takes the inner factor for the outer one."""
    (dim,) = call.dims("self")
    outer, inner = (open_atom(size) for size in call.shape)
    call.unify(dim, product([inner, outer]))
    return outer, inner


def _joins_backwards(call: Call) -> Dims:
    return (concat(call.dims_of(t)[0] for t in reversed(call["tensors"])),)


def _takes_the_first(call: Call) -> Dims:
    """Takes the wrong end of what is sliced."""
    (dim,) = call.dims("self")
    first, _ = algebra.split_concat(dim, call.shape[0].count)
    return (first,)


IMAGE, GROUPED, DEPTHWISE = n(2, 4, 3, 3), n(6, 2, 1, 1), n(4, 1, 1, 1)
SQUARE = case("transpose.int", n(4, 4), 0, 1, opens=2)
IN_GROUPS = case("conv2d.default", IMAGE, GROUPED, None, [1, 1], [0, 0], [1, 1], 2, opens=4, values="masked")
IN_DEPTH = case("conv2d.default", IMAGE, DEPTHWISE, None, [1, 1], [0, 0], [1, 1], 4, opens=2, values="masked")
PRODUCT = case("mm.default", n(3, 4), n(4, 5), opens=3, values="masked")
SQUARES = replace(PRODUCT, args=(n(4, 4), n(4, 4)))
NORM = case("layer_norm.default", n(3, 4), [4], n(4), opens=2, values="shape")
RELU = case("relu.default", n(3, 4), opens=2)
GATHER = case("gather.default", n(3, 4), 1, torch.tensor([[0, 1, 2, 3]] * 3), opens=1)

WRONG: dict[str, tuple[Callable[[Call], Any], Sample, str]] = {
    "transpose that does not swap": (_first_as_it_is, SQUARE, "permutation"),
    "transpose of other sizes": (_first_as_it_is, case("transpose.int", n(3, 4), 0, 1, opens=2), "does not fit"),
    "product that ties rows to columns": (_ties_rows_to_columns, SQUARES, "permutation"),
    "product that ties nothing": (_ties_nothing, PRODUCT, "permutation"),
    "convolution that ignores groups": (_ignores_groups, IN_GROUPS, "permutation"),
    "convolution that keeps its groups": (_notes_no_sizes, IN_DEPTH, "RuntimeError"),
    "scan taken for pointwise": (_first_as_it_is, case("cumsum.default", n(3, 4), 1, opens=1), "permutation"),
    "sort taken for pointwise": (_first_as_it_is, case("argsort.default", n(3, 4), 1, opens=1), "permutation"),
    "norm that ignores its weight": (_first_as_it_is, NORM, "permutation"),
    "norm that keeps its shape": (_notes_no_sizes, NORM, "RuntimeError"),
    "tiling taken for repetition": (_copies_inside, case("repeat.default", n(3), [3], opens=2), "permutation"),
    "split the other way": (_splits_the_other_way, case("view.default", n(9), [3, 3], opens=2), "permutation"),
    "view that keeps its sizes": (_notes_no_sizes, case("view.default", n(12), [3, 4], opens=2), "RuntimeError"),
    "parts joined backwards": (_joins_backwards, case("cat.default", [n(4), n(4)], opens=2), "permutation"),
    "slice of the wrong end": (_takes_the_first, case("slice.Tensor", n(6), 0, 3, 6, opens=2), "permutation"),
    "slice that keeps its end": (_notes_no_sizes, case("slice.Tensor", n(6), 0, 0, 4, opens=2), "slice to"),
    "gather taken for pointwise": (_first_as_it_is, GATHER, "permutation"),
    "everything fixed for safety": (_fixes_everything, RELU, "0 atoms are open, expected 2"),
    "an exception": (lambda call: call.dims("self")[5], RELU, "IndexError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_law_catches_a_wrong_rule(name: str) -> None:
    wrong, sample, says = WRONG[name]
    with pytest.raises(AssertionError, match=says):
        check(sample, {**RULES, sample.op: wrong})


@pytest.mark.parametrize("name", WRONG)
def test_the_right_rule_passes_the_same_sample(name: str) -> None:
    _, sample, _ = WRONG[name]
    assert len(check(sample).open) == sample.opens


def test_slices_are_compared_by_numbers() -> None:
    """Where a summed dimension is cut, the plain slice of the full result is wrong, and the law must see it."""
    sample = case("linear.default", n(3, 4), n(5, 4), opens=3, values="masked")
    assert len(check(sample).open) == 3
    with pytest.raises(AssertionError, match=r"slice to .* outputs differ"):
        check(replace(sample, values="equal"))


def test_too_many_open_atoms_are_reported() -> None:
    with pytest.raises(AssertionError, match="2 atoms are open, expected 1"):
        check(case("relu.default", n(3, 4), opens=1))


def test_positions_follow_numpy() -> None:
    heads, head, rest = open_atom(2), open_atom(3), open_atom(4)
    kept = {heads: [1, 0], head: [0, 2]}
    assert positions(concat([product([heads, head]), rest]), kept).tolist() == [3, 5, 0, 2, 6, 7, 8, 9]


def test_registration_refuses_duplicates_and_unknown_ops() -> None:
    with pytest.raises(ValueError, match="has a rule already"):
        rule("aten.relu.default")(pointwise)
    with pytest.raises(ValueError, match="is no op of this torch"):
        rule("aten.no_such_op.default")(pointwise)
    with pytest.raises(ValueError, match="is no op"):
        rule("aten.relu")(pointwise)
    assert RULES["aten.relu.default"] is pointwise
    assert RULES["aten.repeat.default"] is repeat
