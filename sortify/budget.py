"""Budgets: what a user writes (`0.5`, `50%`, `2.5M params`, `300 MFLOPs`, `40 MB`), read as limits of costs.

A plain number up to 1, or a percentage, is a share of the full network's cost. A figure with a unit is a cost by
itself: parameters, FLOPs (a MAC counts as two), or bytes of activations of one call. Several budgets hold together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from sortify.cost import METRICS
from sortify.errors import BudgetError

Budget = float | str | Sequence[float | str]

PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
UNITS = {
    **dict.fromkeys(("flop", "flops"), ("flops", 2)),
    **dict.fromkeys(("mac", "macs"), ("flops", 4)),
    **dict.fromkeys(("param", "params", "parameter", "parameters"), ("params", 2)),
    **dict.fromkeys(("b", "byte", "bytes"), ("activation_bytes", 2)),
}
"""Unit -> its metric, and twice what one of it counts."""
MEASURED = {
    **dict.fromkeys(("s", "ms", "us", "sec", "seconds", "latency"), "latency"),
    **dict.fromkeys(("memory",), "memory"),
}
WORDS = {"activations": "activation_bytes", "activation": "activation_bytes", **{metric: metric for metric in METRICS}}
EXAMPLES = "0.5, 50%, 2.5M params, 300 MFLOPs or 40 MB"


@dataclass(frozen=True)
class Limit:
    """The most that one metric may cost.

    Attributes:
        metric: flops, params or activation_bytes.
        amount: a share of the full network's cost, or a cost.
        relative: which of both.
    """

    metric: str
    amount: Fraction
    relative: bool

    def bound(self, whole: int) -> int:
        """The largest cost within the limit, where the full network costs `whole`."""
        return math.floor(self.amount * whole if self.relative else self.amount)

    def __str__(self) -> str:
        if self.relative:
            return f"{float(self.amount):g} of the full network's {self.metric}"
        return f"{math.floor(self.amount):,} {self.metric}"


def read_budget(budget: Budget, metric: str = "flops") -> tuple[Limit, ...]:
    """Read one or several budgets.

    Args:
        budget: a share, a text, texts with commas between them, or a list of these.
        metric: what a budget without a unit is about.

    Raises:
        BudgetError: it cannot be read, or asks for what is not measured.
    """
    _check_metric(metric)
    if isinstance(budget, (str, int, float)):
        budget = [budget]
    limits = []
    for each in budget:
        for part in each.split(",") if isinstance(each, str) else [each]:
            limits.append(_read(part.strip(), metric) if isinstance(part, str) else _share(part, str(part), metric))
    if not limits:
        raise BudgetError(f"budget: nothing is given; write {EXAMPLES}")
    return tuple(limits)


def _check_metric(metric: str) -> None:
    if metric in MEASURED:
        raise BudgetError(_not_measured(metric, MEASURED[metric]))
    if metric not in METRICS:
        raise BudgetError(f"metric {metric!r}: expected one of {', '.join(METRICS)}")


def _not_measured(text: str, what: str) -> str:
    return (
        f"{text!r}: {what} is measured on a machine, and this model has no profile of one; "
        f"give a budget of {', '.join(METRICS)}"
    )


def _share(value: float, text: str, metric: str) -> Limit:
    if not value > 0:
        raise BudgetError(f"budget {text}: expected a fraction of the full network above 0, such as 0.5")
    if value > 1:
        raise BudgetError(
            f"budget {text}: a plain number is a share of the full network, at most 1; write 50% or a unit ({EXAMPLES})"
        )
    return Limit(metric, Fraction(str(value)), relative=True)


def _read(text: str, metric: str) -> Limit:
    found = re.fullmatch(r"(-?[\d_]*\.?\d+(?:[eE][+-]?\d+)?|nan|inf)\s*(.*)", text)
    if found is None:
        raise BudgetError(f"budget {text!r}: expected a number, with a unit or without: {EXAMPLES}")
    number, rest = found[1].replace("_", ""), found[2].strip()
    word = rest.removeprefix("%").strip().lower()
    if rest.startswith("%"):
        share = _share(float(number) / 100, text, _metric(word, metric, text))
        return Limit(share.metric, Fraction(number) / 100, relative=True)
    if not word or (word in WORDS and float(number) <= 1):
        return _share(float(number), text, _metric(word, metric, text))
    return _cost(Fraction(number), word, metric, text)


def _metric(word: str, metric: str, text: str) -> str:
    """The metric that a word names; without a word the default."""
    if word in MEASURED:
        raise BudgetError(_not_measured(text, MEASURED[word]))
    own = metric if not word else WORDS.get(word) or UNITS.get(word, ("", 0))[0]
    if not own:
        raise BudgetError(f"budget {text!r}: {word!r} is no metric; there are {', '.join(METRICS)}")
    return own


def _cost(number: Fraction, word: str, metric: str, text: str) -> Limit:
    """A figure with a unit, a prefix, or both."""
    if word in MEASURED:
        raise BudgetError(_not_measured(text, MEASURED[word]))
    found = re.fullmatch(rf"((?:[{''.join(PREFIXES)}]i?)?)\s*({'|'.join([*UNITS, *WORDS])}|)", word)
    if found is None or found[1] not in {**PREFIXES, **BINARY}:
        raise BudgetError(f"budget {text!r}: the unit {word!r} is unknown; write {EXAMPLES}")
    if number <= 0:
        raise BudgetError(f"budget {text!r}: expected a cost above 0")
    name, twice = UNITS.get(found[2]) or (WORDS.get(found[2], metric), 2)
    return Limit(name, number * {**PREFIXES, **BINARY}[found[1]] * Fraction(twice, 2), relative=False)
