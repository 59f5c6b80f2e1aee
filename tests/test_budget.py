"""Budgets as users write them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sortify.errors import BudgetError
from sortify.space.budget import Budget, Limit, read_budget


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
        ("40 MB", "memory", "40000000", False),
        ("2 MiB", "memory", "2097152", False),
        ("512 bytes", "memory", "512", False),
        ("40 MB memory", "memory", "40000000", False),
        ("40 MB activations", "activation_bytes", "40000000", False),
        ("2MiB  activation_bytes", "activation_bytes", "2097152", False),
        ("40M memory", "memory", "40000000", False),
        ("50% memory", "memory", "1/2", True),
        ("5 ms", "latency", "5000000", False),
        ("5ms", "latency", "5000000", False),
        ("0.5 s", "latency", "500000000", False),
        ("250 us", "latency", "250000", False),
        ("1.5 seconds", "latency", "1500000000", False),
        ("50% latency", "latency", "1/2", True),
        ("0.5 latency", "latency", "1/2", True),
        ("7k activations", "activation_bytes", "7000", False),
        ("4 kB cache", "cache_bytes", "4000", False),
        ("50% cache", "cache_bytes", "1/2", True),
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
        ("50% speed", "'speed' is no metric; there are params, flops, activation_bytes, cache_bytes, latency, memory"),
        ("5 latency", "latency is told in ms"),
        ("5M flops memory", "only bytes say of what"),
        ("5 MB params", "only bytes say of what"),
        ("0 ms", "above 0"),
        ([], "nothing is given"),
        (None, "expected a number, a text or a list of these, got None"),
        ([object()], "expected a number, a text or a list of these"),
    ],
)
def test_wrong_budgets_are_refused_in_one_line(wrong: Budget, message: str) -> None:
    with pytest.raises(BudgetError, match=message) as caught:
        read_budget(wrong)
    assert "\n" not in str(caught.value)


def test_wrong_metrics_are_refused() -> None:
    with pytest.raises(
        BudgetError, match="metric 'speed': expected one of params, flops, activation_bytes, cache_bytes, latency"
    ):
        read_budget(0.5, "speed")


def test_bytes_are_of_the_metric_where_it_has_bytes() -> None:
    assert read_budget("40 MB", "activation_bytes") == read_budget("40 MB activations")
    assert read_budget("40 MB", "memory") == read_budget("40 MB", "flops") == read_budget("40 MB memory")
    assert read_budget(0.5, "memory") == read_budget("50% memory")


def test_limits_are_told_as_people_read_them() -> None:
    assert str(read_budget("5 ms")[0]) == "5 ms latency"
    assert str(read_budget("0.25 s")[0]) == "250 ms latency"
    assert str(read_budget("40 MB")[0]) == "40 MB memory"
    assert str(read_budget("40 MB activations")[0]) == "40,000,000 activation_bytes"


def test_bounds_are_exact() -> None:
    """In floats 0.7 * 10 and the whole of a large cost come out too low."""
    assert Limit("flops", Fraction("0.7"), True).bound(10) == 7
    assert read_budget(1.0)[0].bound(2**63 + 1) == 2**63 + 1
    assert read_budget("33%")[0].bound(10) == 3
    assert read_budget("2.5M params")[0].bound(7) == 2_500_000
    assert str(read_budget("2.5M params")[0]) == "2,500,000 params"
    assert str(read_budget("33%")[0]) == "0.33 of the full network's flops"
