"""Sizes that a call decides: by name, by rule, and refused where nothing certain can be said."""

from __future__ import annotations

import pytest

from sortify.costs.open_sizes import OpenSize, chosen_by_caller, opens_from_json, opens_to_json, sizes_at
from sortify.errors import InputError
from sortify.graph.arithmetic import follows, value_of

OPENS = (
    OpenSize("batch", 2),
    OpenSize("sequence", 8),
    OpenSize("size_2", 5, "(sequence//2) + 1"),
    OpenSize("size_3", 7, "unknown: Oracle(sequence)"),
)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("a", 10),
        ("(a//4) + 1", 3),
        ("2*a - b", 17),
        ("Mod(a, b)", 1),
        ("Max(a, b*5)", 15),
        ("Min(a, b)", 3),
        ("a**2", 100),
        ("-a + 12", 2),
        ("CeilDiv(a, b)", 4),
        ("FloorToInt(0.35*ToFloat(a))", 3),
        ("TruncToInt(IntTrueDiv(a, 4))", 2),
        ("((a - 1)//2) + 1", 5),
        ("(a / 5)*b", 6),
    ],
)
def test_rules_are_computed(rule: str, value: int) -> None:
    assert value_of(rule, {"a": 10, "b": 3}) == value
    assert follows(rule, {"a": 10, "b": 3}, value)
    assert not follows(rule, {"a": 10, "b": 3}, value + 1)


@pytest.mark.parametrize(
    "rule",
    [
        "c",
        "a +",
        "a / b",
        "0.25*a",
        "Oracle(a)",
        "a.size",
        "a[0]",
        "__import__('os')",
        "a**99",
        "(lambda: 1)()",
        "Mod(a)",
        f"{'(' * 400}a{')' * 400}",
    ],
)
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=r"not understood|no whole number"):
        value_of(rule, {"a": 10, "b": 3})
    assert not follows(rule, {"a": 10, "b": 3}, 1)


def test_sizes_follow_from_those_that_are_given() -> None:
    opens = OPENS[:3]
    assert chosen_by_caller(opens) == {"batch": 2, "sequence": 8}
    assert sizes_at(opens, {}) == {"batch": 2, "sequence": 8, "size_2": 5}
    assert sizes_at(opens, {"sequence": 21}) == {"batch": 2, "sequence": 21, "size_2": 11}
    assert sizes_at(OPENS, {}) == {"batch": 2, "sequence": 8, "size_2": 5, "size_3": 7}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bach": 3}, r"bach=3: the model has no open size 'bach'; it has batch \(2\), sequence \(8\)"),
        ({"size_2": 3}, "no open size 'size_2'"),
        ({"batch": 0}, "batch=0: expected a size, a whole number from 1"),
        ({"batch": 2.5}, "expected a size"),
        ({"batch": True}, "expected a size"),
        ({"sequence": 9}, "cannot be computed at these sizes .* at the sizes of the example inputs only"),
    ],
)
def test_wrong_sizes_are_refused_in_one_line(given: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        sizes_at(OPENS, given)
    assert "\n" not in str(caught.value)


def test_open_sizes_survive_json() -> None:
    assert opens_from_json(opens_to_json(OPENS)) == OPENS
