"""Budgets as users write them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sortify.budget import Budget, Limit, read_budget
from sortify.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "metric", "amount", "relative"),
    [
        (0.5, "flops", "1/2", True),
        (1, "flops", "1", True),
        ("0.5", "flops", "1/2", True),
        (".25", "flops", "1/4", True),
        ("50%", "flops", "1/2", True),
        ("12.5 %", "flops", "1/8", True),
        ("50% params", "params", "1/2", True),
        ("50% activation_bytes", "activation_bytes", "1/2", True),
        ("0.7 params", "params", "7/10", True),
        ("2.5M params", "params", "2500000", False),
        ("2.5m", "flops", "2500000", False),
        ("1_000_000 parameters", "params", "1000000", False),
        ("300 MFLOPs", "flops", "300000000", False),
        ("1.2GFLOPs", "flops", "1200000000", False),
        ("600 MMACs", "flops", "1200000000", False),
        ("3e8 flops", "flops", "300000000", False),
        ("40 MB", "activation_bytes", "40000000", False),
        ("2 MiB", "activation_bytes", "2097152", False),
        ("512 bytes", "activation_bytes", "512", False),
        ("7k activations", "activation_bytes", "7000", False),
    ],
)
def test_one_budget(text: Budget, metric: str, amount: str, relative: bool) -> None:
    assert read_budget(text) == (Limit(metric, Fraction(amount), relative),)


@pytest.mark.parametrize("several", ["50% flops, 2M params", ["50%", "2M params"], [0.5, "2M params"]])
def test_several_budgets(several: Budget) -> None:
    assert read_budget(several) == (Limit("flops", Fraction(1, 2), True), Limit("params", Fraction(2_000_000), False))


def test_what_has_no_unit_is_of_the_metric() -> None:
    assert read_budget("2M", "params") == read_budget("2M params")
    assert read_budget("50%", "params") == read_budget(0.5, "params")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (0.0, "expected a fraction of the full network above 0"),
        (float("nan"), "expected a fraction of the full network above 0"),
        (2, "budget 2: a plain number is a share of the full network, at most 1"),
        ("150%", "at most 1"),
        ("0%", "above 0"),
        ("-3 MFLOPs", "expected a cost above 0"),
        ("half", "'half': expected a number"),
        ("", "expected a number"),
        ("3 parsecs", "the unit 'parsecs' is unknown"),
        ("50% speed", "'speed' is no metric; there are params, flops, activation_bytes"),
        ("5 ms", "'5 ms': latency is measured on a machine, and this model has no profile of one"),
        ("50% latency", "latency is measured"),
        ([], "nothing is given"),
    ],
)
def test_wrong_budgets_are_refused_in_one_line(wrong: Budget, message: str) -> None:
    with pytest.raises(BudgetError, match=message) as caught:
        read_budget(wrong)
    assert "\n" not in str(caught.value)


def test_wrong_metrics_are_refused() -> None:
    with pytest.raises(BudgetError, match="metric 'speed': expected one of params, flops, activation_bytes"):
        read_budget(0.5, "speed")
    with pytest.raises(BudgetError, match="'memory': memory is measured on a machine"):
        read_budget(0.5, "memory")


def test_bounds_are_exact() -> None:
    """In floats 0.7 * 10 and the whole of a large cost come out too low."""
    assert Limit("flops", Fraction("0.7"), True).bound(10) == 7
    assert read_budget(1.0)[0].bound(2**63 + 1) == 2**63 + 1
    assert read_budget("33%")[0].bound(10) == 3
    assert read_budget("2.5M params")[0].bound(7) == 2_500_000
    assert str(read_budget("2.5M params")[0]) == "2,500,000 params"
    assert str(read_budget("33%")[0]) == "0.33 of the full network's flops"
