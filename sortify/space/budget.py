"""Budgets: what a user writes (`0.5`, `50%`, `2.5M params`, `300 MFLOPs`, `5 ms`, `40 MB`), read as limits of costs.

A plain number up to 1, or a percentage, is a share of the full network's cost. A figure with a unit is a cost by
itself: parameters, FLOPs (a MAC counts as two), the time of one call, or bytes: those of memory at the peak of one
call, of all its activations (`40 MB activations`), or of the keys and values kept for each token (`4 kB cache`). Time
and memory are known where there is a profile of the machine. Several budgets hold together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from sortify.costs.cost import METRICS
from sortify.errors import BudgetError

Budget = float | str | Sequence["float | str | Limit"]

PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
UNITS = {
    **dict.fromkeys(("flop", "flops"), ("flops", 2)),
    **dict.fromkeys(("mac", "macs"), ("flops", 4)),
    **dict.fromkeys(("param", "params", "parameter", "parameters"), ("params", 2)),
    **dict.fromkeys(("b", "byte", "bytes"), ("memory", 2)),
}
"""Unit -> its metric, and twice what one of it counts."""
TIMES = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 10**9),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 10**6),
    **dict.fromkeys(("us", "\u00b5s", "\u03bcs", "microsecond", "microseconds"), 10**3),
}
"""Unit -> nanoseconds."""
MEASURED = ("latency", "memory")
"""Metrics that a profile knows, in nanoseconds and bytes."""
ALL = (*METRICS, *MEASURED)
WORDS = {
    "activations": "activation_bytes",
    "activation": "activation_bytes",
    "cache": "cache_bytes",
    **{metric: metric for metric in ALL},
}
BYTES = ("memory", "activation_bytes", "cache_bytes")
EXAMPLES = "0.5, 50%, 2.5M params, 300 MFLOPs, 5 ms or 40 MB"


@dataclass(frozen=True)
class Limit:
    """The most that one metric may cost.

    Attributes:
        metric: flops, params, activation_bytes, cache_bytes, latency (in nanoseconds) or memory (in bytes).
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
        return f"{figure(self.metric, math.floor(self.amount))} {self.metric}"


def figure(metric: str, amount: int) -> str:
    """A cost as people read it: `1,234`, `5.31 ms`, `40.2 MB`."""
    if metric == "latency":
        return f"{amount / 1e6:,.4g} ms"
    return f"{amount / 1e6:,.4g} MB" if metric == "memory" else f"{amount:,}"


def read_budget(budget: Budget, metric: str = "flops") -> tuple[Limit, ...]:
    """Read one or several budgets.

    Args:
        budget: a share, a text, texts with commas between them, limits that were read before, or a list of these.
        metric: what a budget without a unit is about.

    Raises:
        BudgetError: it cannot be read.
    """
    if metric not in ALL:
        raise BudgetError(f"metric {metric!r}: expected one of {', '.join(ALL)}")
    if isinstance(budget, (str, int, float)):
        budget = [budget]
    if not isinstance(budget, Sequence) or not all(isinstance(each, (str, int, float, Limit)) for each in budget):
        raise BudgetError(f"budget: expected a number, a text or a list of these, got {budget!r:.80}; write {EXAMPLES}")
    limits = list[Limit]()
    for each in budget:
        if isinstance(each, Limit):
            limits.append(each)
            continue
        for part in each.split(",") if isinstance(each, str) else [each]:
            limits.append(_read(part.strip(), metric) if isinstance(part, str) else _share(part, str(part), metric))
    if not limits:
        raise BudgetError(f"budget: nothing is given; write {EXAMPLES}")
    return tuple(limits)


def not_kept(limit: Limit) -> str:
    """What to say where no cache is known."""
    return (
        f"budget {limit}: it is not known what this model keeps of each token: {limit.metric} is counted where running "
        "showed that keys and values of attention, as they are, are all that the next token needs of earlier ones"
    )


def not_measured(limit: Limit) -> str:
    """What to say where there is no profile."""
    return (
        f"budget {limit}: {limit.metric} is measured on a machine, and this model has no profile of one: "
        f"run `sortify profile`, or model.profile(); without one there are {', '.join(METRICS)}"
        f"{' (40 MB activations)' if limit.metric == 'memory' else ''}"
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
    own = metric if not word else "latency" if word in TIMES else WORDS.get(word) or UNITS.get(word, ("", 0))[0]
    if not own:
        raise BudgetError(f"budget {text!r}: {word!r} is no metric; there are {', '.join(ALL)}")
    return own


def _cost(number: Fraction, word: str, metric: str, text: str) -> Limit:
    """A figure with a unit, a prefix, or both; bytes may say of what they are."""
    if number <= 0:
        raise BudgetError(f"budget {text!r}: expected a cost above 0")
    if word in TIMES:
        return Limit("latency", number * TIMES[word], relative=False)
    prefix, unit, kind = rf"(?:[{''.join(PREFIXES)}]i?)?", "|".join([*UNITS, *WORDS]), "|".join(WORDS)
    found = re.fullmatch(rf"({prefix})\s*({unit}|)(?:\s+({kind}))?", word)
    if found is None or found[1] not in {**PREFIXES, **BINARY}:
        raise BudgetError(f"budget {text!r}: the unit {word!r} is unknown; write {EXAMPLES}")
    name, twice = UNITS.get(found[2]) or (WORDS.get(found[2], metric), 2)
    if name == "memory":
        name = WORDS[found[3]] if found[3] else metric if metric in BYTES else name
    if name == "latency" or (found[3] and name not in BYTES):
        raise BudgetError(f"budget {text!r}: latency is told in ms, and only bytes say of what; write {EXAMPLES}")
    return Limit(name, number * {**PREFIXES, **BINARY}[found[1]] * Fraction(twice, 2), relative=False)
