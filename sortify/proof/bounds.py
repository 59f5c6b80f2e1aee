"""Which sizes the captured graphs serve: conditions of the tracer, tried by running the original beside the graph.

A traced graph holds for the sizes for which the code would have gone the same way. The tracer notes far more than
that: most of its conditions only say that a size is not 1, and break nothing where they fail. So each is broken once,
with the nearest size that breaks it. Where the graph then gives what the original gives, the condition is let go;
where it does not, or was too large to try, calls with such sizes are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sortify.graph.arithmetic import holds, value_of
from sortify.graph.symbols import Traced, name_of
from sortify.network.blueprint import Blueprint
from sortify.proof.original import distance
from sortify.proof.proof import SINGLE
from sortify.proof.trials import unsettled

LARGEST = 2
"""Sizes up to this many times those of the example, and one more, are tried."""
SMALL = 128
"""And so are sizes up to this one."""


@dataclass(frozen=True)
class _Trial:
    """One open size changed: its name, what it is now, and whether that is more than in the example."""

    name: str
    size: int
    more: bool


def limits_of(
    blueprint: Blueprint,
    traced: Mapping[str, Traced],
    tensors: Mapping[str, torch.Tensor],
    examples: Sequence[torch.Tensor],
    original: nn.Module,
) -> tuple[str, ...]:
    """The conditions on sizes that calls must meet, over `s0_1` (dimension 1 of input tensor 0) and the like.

    Args:
        blueprint: the sorted model; traced: what the tracer noted, by mode; tensors: the weights, not changed.
        examples: the example inputs; original: the module that was captured.
    """
    found: dict[str, None] = {}
    noisy = unsettled(blueprint, tensors, examples) if any(sizes.conditions for sizes in traced.values()) else tensors
    for mode, sizes in traced.items():
        side = _Side(blueprint, noisy, examples, original, mode, sizes)
        broken = _broken(sizes, side.values)
        best = {condition: _best(trials, broken) for condition, trials in broken.items()}
        good = {trial for trial in set().union(*best.values()) if side.agrees(trial)}
        found |= dict.fromkeys(_fewest({each: broken[each] for each, trials in best.items() if trials - good}))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Side:
    """The graph of one mode beside the original."""

    blueprint: Blueprint
    tensors: Mapping[str, torch.Tensor]
    examples: Sequence[torch.Tensor]
    original: nn.Module
    mode: str
    sizes: Traced

    @property
    def values(self) -> dict[str, int]:
        """Every open size of the example inputs by its name."""
        return {name_of((n, dim)): self.examples[n].shape[dim] for n, dim in self.sizes.places}

    def agrees(self, trial: _Trial) -> bool:
        """Whether the graph gives what the original gives with one size changed; False where either does not run."""
        if trial.size > max(SMALL, LARGEST * self.values[trial.name] + 1):
            return False
        inputs = _resized(self.sizes, {**self.values, trial.name: trial.size}, self.examples)
        try:
            return distance(self.blueprint, self.tensors, inputs, self.mode, self.original) <= SINGLE
        except Exception:
            return False


def _broken(sizes: Traced, values: Mapping[str, int]) -> dict[str, list[_Trial]]:
    """Every condition that some size breaks -> all such sizes among the candidates, the nearest first."""
    found: dict[str, list[_Trial]] = {}
    for name in (name_of(place) for place, rule in sizes.places.items() if rule == name_of(place)):
        for condition in (each for each in sizes.conditions if re.search(rf"\b{name}\b", each)):
            for side in _candidates(values[name]):
                breaking = [size for size in side if _breaks(condition, {**values, name: size})]
                trials = [_Trial(name, size, size > values[name]) for size in breaking]
                if trials:
                    found.setdefault(condition, []).extend(trials)
    return found


def _best(trials: Sequence[_Trial], broken: Mapping[str, Sequence[_Trial]]) -> set[_Trial]:
    """The sizes to run a condition with: of each input one below the example's and one above.

    It breaks the fewest other conditions, as the original itself may refuse a size that breaks another; of equals it is
    the nearest.
    """
    others = Counter(trial for each in broken.values() for trial in each)
    sides: dict[tuple[str, bool], list[_Trial]] = {}
    for trial in trials:
        sides.setdefault((trial.name, trial.more), []).append(trial)
    return {min(side, key=others.__getitem__) for side in sides.values()}


def _candidates(size: int) -> tuple[list[int], list[int]]:
    """Sizes to try, the nearest first: smaller ones and larger ones."""
    steps = {size * factor + more for factor in range(1, LARGEST + 1) for more in (-1, 0, 1)}
    powers = {2**power + more for power in range(14) for more in (-1, 0, 1)}
    every = sorted(n for n in {*range(1, SMALL // 2), *steps, *powers} if n > 0 and n != size)
    return [n for n in reversed(every) if n < size], [n for n in every if n > size]


def _breaks(condition: str, values: Mapping[str, int]) -> bool:
    try:
        return not holds(condition, values)
    except (ValueError, ArithmeticError):  # in words of the tracer that are not understood
        return False


def _resized(sizes: Traced, values: Mapping[str, int], examples: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The example inputs at other sizes: cut, or repeated from the start."""
    found = list(examples)
    for (number, dim), rule in sizes.places.items():
        have, want = found[number].shape[dim], value_of(rule, values)
        found[number] = found[number].index_select(dim, torch.arange(want, device=found[number].device) % have)
    return found


def _fewest(broken: Mapping[str, Sequence[_Trial]]) -> Iterator[str]:
    """Conditions that together refuse every candidate that all of them refuse; those that refuse most come first."""
    left = set[_Trial]().union(*broken.values())
    for condition in sorted(broken, key=lambda each: (-len(broken[each]), len(each))):
        if left & set(broken[condition]):
            left -= set(broken[condition])
            yield condition
