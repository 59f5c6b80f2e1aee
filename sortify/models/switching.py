"""Which sub-network runs: that of the model, or of a `with` block in the thread or task that opened it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Self

from torch import Tensor, nn

from sortify.errors import BudgetError
from sortify.models.calibration import Calibrated
from sortify.models.scope import ACTIVE
from sortify.models.scores import Chosen, Scores, fingerprint
from sortify.space.budget import Budget, Limit, read_budget
from sortify.space.space import Space, Subnet

ARGUMENT = "subnet"
"""The argument of a call that names the sub-network to run, unless the original has one of that name."""
REMEMBERED = 1024
"""Budgets whose sub-networks are remembered."""


class Switched(Calibrated):
    """The part of a sorted model that chooses the sub-network that runs. No weight is copied.

    States: the model has one active sub-network for all threads and tasks, the full one at first; a thread or task
    inside a block of `using` has its own.
    """

    _scores: Scores | None = None
    _known_weights: tuple[tuple[Any, ...], str] | None = None
    _choices: _Choices | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins with the sub-network that is active where it is made, for all its threads and tasks."""
        return {**vars(self), "_active": self.active, "_choices": None}

    def activate(
        self, subnet: Subnet | None = None, *, budget: Budget | None = None, metric: str = "flops", **fractions: float
    ) -> Subnet:
        """Make a sub-network the active one: in all threads and tasks but those inside a block of `using`.

        `activate(subnet)`, `activate(width=0.5, depth=0.75)` or `activate(budget="50%")`. Without arguments the full
        network becomes active. No weight is copied. A sub-network whose batch-norm statistics were measured before runs
        with them; where a budget names one without, a warning says so.

        Inside a block of `using` it becomes that of the block, until the block ends.
        """
        chosen = self._asked("activate", subnet, budget, metric, **fractions)
        self._switch(chosen)
        return chosen

    @contextmanager
    def using(self, subnet: Subnet | None = None, **wanted: Any) -> Iterator[Self]:
        """Run a sub-network, chosen as by `activate`, for the length of a `with` block.

        It is that of the thread or asyncio task that opened the block; no other one sees it. Tasks that are made inside
        the block begin with it, plain threads do not: they run what is active for all. A generator that yields inside
        the block leaves it open for whoever takes from it.
        """
        with self._running(self._asked("using", subnet, **wanted)):
            yield self

    @contextmanager
    def _running(self, subnet: Subnet, statistics: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Let a sub-network be active in this thread or task, for the length of a `with` block.

        Args:
            subnet: which.
            statistics: those of its batch-norms; by default those that were measured.
        """
        with self._scope.set(ACTIVE, (subnet, statistics)):
            yield

    def _switch(self, subnet: Subnet, statistics: Mapping[str, Tensor] | None = None) -> None:
        """Make a sub-network the active one of the innermost block, or else of the model; as for `_running`."""
        if not self._scope.replace(ACTIVE, (subnet, statistics)):
            self._active = subnet
            if statistics is not None:
                self.take_statistics({subnet: statistics} if statistics else {})

    def _asked(
        self,
        what: str,
        subnet: Subnet | None,
        budget: Budget | None = None,
        metric: str = "flops",
        **fractions: float,
    ) -> Subnet:
        """The sub-network that `activate` or `using` is asked for."""
        if budget is not None:
            if subnet is not None or fractions:
                raise BudgetError(f"{what}: give a budget, a sub-network or fractions, one of them")
            subnet = self.choose(budget, metric).subnet
            self._warn_uncalibrated(subnet, 4 if what == "activate" else 5)  # `using` is entered by contextlib
        return self._chosen(subnet, fractions)

    def _called(self, kwargs: dict[str, Any]) -> Subnet | None:
        """Take the sub-network out of the named arguments of a call, if one is named."""
        if ARGUMENT in self.signature.names or any(each.name == ARGUMENT for each in self.signature.arguments):
            return None  # it is the original's
        subnet = kwargs.pop(ARGUMENT) if ARGUMENT in kwargs else None
        return None if subnet is None else self._chosen(subnet, {})

    def choose(self, budget: Budget, metric: str = "flops", **sizes: int) -> Chosen:
        """The sub-network for a budget; remembered, so that the next time it takes no time.

        After an evaluation of these very weights it is the most accurate measured one within the budget; else, or where
        none of the measured ones fits, the largest of those that were trained (before training, of the default levels).

        Args:
            budget: a share of the full cost (0.5, "50%"), a cost ("300 MFLOPs", "2.5M params"), or several.
            metric: what a budget without a unit is about.
            sizes: open sizes to cost at, such as `batch=1`; else those of the example inputs. Time and memory are known
                at the sizes of the profile.

        Raises:
            BudgetError: nothing fits (the message names the smallest reachable), or the budget cannot be read.
        """
        scores, choices = self.scores, self._choices
        if choices is None or choices.space is not self.space or choices.scores is not scores:
            self._choices = choices = _Choices(self.space, scores)
        found: Chosen = choices.of(read_budget(budget, metric), tuple(sorted(sizes.items())))
        return found

    @property
    def scores(self) -> Scores | None:
        """What an evaluation found, if the weights are still those that it measured."""
        known = self._scores is not None and self._scores.weights == self._fingerprint()
        return self._scores if known else None

    def record_scores(self, scores: Scores | None) -> None:
        """Note what an evaluation found: budgets choose by it as long as the weights stay as they are."""
        self._scores = scores

    def _weights(self) -> Iterable[nn.Parameter]:
        return (tensor for tensor in self.tensors.values() if isinstance(tensor, nn.Parameter))

    def _fingerprint(self) -> str:
        """The digest of the weights; worked out anew when one of them has changed."""
        versions = tuple((id(p), p._version, p.device, p.dtype) for p in self._weights())
        known = self._known_weights
        if known is None or known[0] != versions:
            self._known_weights = known = versions, fingerprint(self)
        return known[1]

    def _chosen(self, subnet: Subnet | None, fractions: Mapping[str, float]) -> Subnet:
        if subnet is not None and fractions:
            raise BudgetError("give a sub-network or fractions, not both")
        chosen = self.space.subnet(**fractions) if subnet is None else subnet
        if chosen not in self.space:
            raise BudgetError(
                f"sub-network {chosen} does not belong to this model; take one from model.space, or "
                f"model.choose(budget).subnet"
            )
        return chosen

    def _to_extract(
        self, budget: Budget | Subnet | None, metric: str, subnet: Subnet | None, fractions: Mapping[str, float]
    ) -> Subnet:
        """The sub-network that `extract` is asked for."""
        if sum((budget is not None, subnet is not None, bool(fractions))) != 1:
            raise BudgetError("extract: give a budget, such as 0.5, a sub-network, or fractions, one of them")
        if isinstance(budget, Subnet):
            subnet = budget
        elif budget is not None:
            subnet = self.choose(budget, metric).subnet
        return self._chosen(subnet, fractions)


class _Choices:
    """What budgets mean in a space, by the scores of an evaluation if there is one; remembered.

    Attributes:
        of: limits, and open sizes -> the sub-network, and why that one.
    """

    def __init__(self, space: Space, scores: Scores | None) -> None:
        self.space, self.scores = space, scores
        self.of = lru_cache(maxsize=REMEMBERED)(self._of)

    def _of(self, limits: tuple[Limit, ...], sizes: tuple[tuple[str, int], ...]) -> Chosen:
        rows = {} if self.scores is None else self.scores.rows
        subnet = self.space.at(limits, "flops", scores=rows, **dict(sizes))
        if self.scores is not None and subnet in rows:
            found = f"{self.scores.metric} {rows[subnet]:.4g}"
            return Chosen(subnet, f"the best within the budget of {len(rows)} measured ({found})")
        what = "trained" if self.space.trained is not None else "default"
        return Chosen(subnet, f"the largest within the budget of the {what} ones")
