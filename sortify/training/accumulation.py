"""How many sub-networks an optimiser step trains: always the same number, a schedule, or what gradients ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sortify.errors import TrainingError

MOST = 8
"""Sub-networks of a step where the number adapts, at most."""
EVERY = 10
"""Steps between two looks at how far gradients agree."""
KEPT = 0.9
"""Weight of the past in the agreement."""
ADAPTIVE = "adaptive"

Counts = int | tuple[int, ...] | str | None
"""As `TrainConfig.accumulate` takes it."""


class Accumulation(Protocol):
    """What the update asks."""

    def count(self, step: int) -> int:
        """Return how many sub-networks to draw in optimiser step `step` (from 0)."""
        ...

    def measures(self, step: int) -> bool:
        """Return whether to look at how far the gradients of the step agree."""
        ...

    def observe(self, agreement: float) -> None:
        """Take the mean cosine of a step's gradients."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be kept to go on later, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        ...


@dataclass(frozen=True)
class Scheduled:
    """One number after the other, each for an equal part of the training.

    Once-for-all (arXiv 1908.09791) raises it from 1 over 2 to 4 while smaller sub-networks join.

    Attributes:
        counts: the numbers; one alone holds always.
        steps: of the whole training.
    """

    counts: tuple[int, ...]
    steps: int = 1

    def count(self, step: int) -> int:
        """The number of this part of the training."""
        return self.counts[min(len(self.counts) * step // max(1, self.steps), len(self.counts) - 1)]

    def measures(self, step: int) -> bool:
        """Never."""
        return False

    def observe(self, agreement: float) -> None:
        """Nothing hangs on it."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


class Adaptive:
    """As many as it takes for what the gradients have in common to outweigh in their mean what they have not.

    With a mean cosine c between the gradients of single sub-networks, the common part of the mean of n has the squared
    length c, and the rest (1 - c) / n: both are equal at n = (1 - c) / c. It is the simple noise scale of McCandlish et
    al., arXiv 1812.06162, appendix A, with sub-networks in the place of samples. Every `EVERY` steps two are drawn at
    least, to measure c.

    Args:
        most: the largest number.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most, self._now, self._agreement = most, 1, None

    _agreement: float | None

    def count(self, step: int) -> int:
        """The number as it is now; two at least where gradients are compared."""
        return max(self._now, 2) if self.measures(step) else self._now

    def measures(self, step: int) -> bool:
        """Every few steps."""
        return step % EVERY == 0

    def observe(self, agreement: float) -> None:
        """Take the mean cosine of a step's gradients, and choose the number anew."""
        before = agreement if self._agreement is None else self._agreement
        self._agreement = KEPT * before + (1 - KEPT) * agreement
        wanted = (1 - self._agreement) / max(self._agreement, 1e-6)
        self._now = max(1, min(self._most, math.ceil(wanted)))

    def state_dict(self) -> dict[str, Any]:
        """The number and the agreement."""
        return {"now": self._now, "agreement": self._agreement}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._now, self._agreement = state["now"], state["agreement"]


def make_accumulation(counts: Counts, usual: int, steps: int) -> Accumulation:
    """What `TrainConfig.accumulate` means.

    Args:
        counts: a number, several numbers for equal parts of the training, "adaptive", or None for the usual number.
        usual: the sampler's own number.
        steps: of the whole training.
    """
    if counts == ADAPTIVE:
        return Adaptive()
    if isinstance(counts, str):
        raise TrainingError(f"accumulate: expected a number, several, or '{ADAPTIVE}', got '{counts}'")
    return Scheduled((usual,) if counts is None else (counts,) if isinstance(counts, int) else counts, steps)


def check_counts(counts: Counts) -> None:
    """Refuse what is no number of sub-networks.

    Raises:
        TrainingError: it is none.
    """
    numbers = () if counts is None or counts == ADAPTIVE else (counts,) if not isinstance(counts, tuple) else counts
    if counts == () or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in numbers):
        raise TrainingError(
            f"accumulate must be a number of sub-networks (1 or more), several, or '{ADAPTIVE}', got {counts}"
        )
