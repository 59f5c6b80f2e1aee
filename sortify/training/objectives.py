"""What a drawn sub-network learns from: the targets alone, or larger sub-networks of the same step as well.

An objective is a small object that says which sub-networks run for a draw, and which of those that ran before teaches
each. Losses are mixed by `SortedUpdate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from torch import Tensor

from sortify.tasks.base import divergence
from sortify.tasks.inputs import logits_of
from sortify.training.kinds import Kinds
from sortify.training.sampling import Levels

if TYPE_CHECKING:
    from sortify.space.space import Space, Subnet


class Objective(Protocol):
    """What the update asks."""

    name: ClassVar[str]
    shares_batch: ClassVar[bool]
    """Whether all sub-networks of a step have to see the same mini-batch."""
    teaches: ClassVar[bool]
    """Whether outputs are kept, for some to learn from."""
    compares_features: ClassVar[bool]
    """Whether hidden features are, too; may be left out."""

    def members(self, drawn: Sequence[Subnet]) -> list[Subnet]:
        """Return the sub-networks that run in a step, in the order in which they run."""
        ...

    def teacher(self, subnet: Subnet, before: Sequence[Subnet]) -> Subnet | None:
        """Return which of those that ran before in this step teaches `subnet`; None for the targets alone."""
        ...


@dataclass(frozen=True)
class BaseObjective:
    """What the objectives of this library have in common: what was drawn sees one batch, and nobody teaches.

    Attributes:
        space: the model's sub-networks.
        levels: that are trained.
    """

    shares_batch: ClassVar[bool] = True
    teaches: ClassVar[bool] = False
    compares_features: ClassVar[bool] = False

    space: Space
    levels: Levels

    def members(self, drawn: Sequence[Subnet]) -> list[Subnet]:
        """What was drawn, the largest first."""
        return largest_first(drawn)

    def teacher(self, subnet: Subnet, before: Sequence[Subnet]) -> Subnet | None:
        """Nobody."""
        return None


class TaskObjective(BaseObjective):
    """The task's loss of what was drawn: SortedNet, arXiv 2309.00255, Algorithm 1."""

    name: ClassVar[str] = "task"
    shares_batch: ClassVar[bool] = False

    def members(self, drawn: Sequence[Subnet]) -> list[Subnet]:
        """What was drawn, in its order."""
        return list(drawn)


class DistillObjective(BaseObjective):
    """In-place distillation: the largest of the step teaches those inside it (US-Nets, arXiv 1903.05134, section 3.3).

    With a sampler that draws the full network in every step, such as `sandwich`, that is the teacher of all.
    """

    name: ClassVar[str] = "distill"
    teaches: ClassVar[bool] = True

    def teacher(self, subnet: Subnet, before: Sequence[Subnet]) -> Subnet | None:
        """The first of those that contain it."""
        return next((other for other in before if other != subnet and other.contains(subnet)), None)


class ChainObjective(BaseObjective):
    """Chain distillation: each learns from the next larger one of the step (Scala, arXiv 2412.04786)."""

    name: ClassVar[str] = "chain"
    teaches: ClassVar[bool] = True

    def teacher(self, subnet: Subnet, before: Sequence[Subnet]) -> Subnet | None:
        """The last of those that contain it."""
        return next((other for other in reversed(before) if other != subnet and other.contains(subnet)), None)


class FeaturesObjective(DistillObjective):
    """In-place distillation of hidden features, too: what blocks put out and what the last layers are given.

    FitNets (arXiv 1412.6550) and TinyBERT (1909.10351) let a student's features follow a teacher's, DynaBERT
    (2004.04037) those of narrow networks the full one's. None needs a projection here: see `sortify.network.features`.
    """

    name: ClassVar[str] = "features"
    compares_features: ClassVar[bool] = True


class SumObjective(BaseObjective):
    """The task's loss of what was drawn and of all inside it that have trained levels, averaged (stochastic summation).

    Where only the depth is trained, one forward pass serves them all (Sorted LLaMA, arXiv 2309.08968); else a step may
    run as many sub-networks as there are.
    """

    name: ClassVar[str] = "sum"

    def members(self, drawn: Sequence[Subnet]) -> list[Subnet]:
        """What was drawn and what is nested in it, each once, the largest first."""
        known = _members(self.space, self.levels)
        inside = [member for member in known if any(each.contains(member) for each in drawn)]
        return largest_first(list(dict.fromkeys([*drawn, *inside])))


@lru_cache(maxsize=8)
def _members(space: Space, levels: Levels) -> tuple[Subnet, ...]:
    """All that is trained, at the levels alone."""
    return tuple(space.using(dict(levels), every=()).members()) if levels else ()


def largest_first(subnets: Sequence[Subnet]) -> list[Subnet]:
    """In an order in which none stands before one that it is nested in; those of equal widths follow each other."""
    return sorted(subnets, key=_size, reverse=True)


def _size(subnet: Subnet) -> tuple[int, tuple[int, ...], int]:
    sizes, depths = tuple(n for _, n in subnet.sizes), [n for _, n in subnet.depths]
    return sum(sizes), sizes, sum(depths)


class ObjectiveKind(Protocol):
    """What makes an objective: a class, as a rule."""

    name: ClassVar[str]
    shares_batch: ClassVar[bool]
    teaches: ClassVar[bool]

    def __call__(self, space: Space, levels: Levels) -> Objective:
        """Make one for a space and the levels to train."""
        ...


OBJECTIVES = Kinds[ObjectiveKind]("an objective", "shares_batch", "teaches", "members", "teacher")
"""Objectives by the name that `--objective` takes."""

Kind = TypeVar("Kind", bound="type[Any]")


def register_objective(objective: Kind) -> Kind:
    """Add an objective class to the table under its own name, so that `--objective` and `TrainConfig` know it.

    Args:
        objective: takes the space and the levels, and has `name`, `shares_batch`, `teaches`, `members(drawn)`
            and `teacher(subnet, before)`.

    Raises:
        ValueError: the name is taken, or something is missing.
    """
    OBJECTIVES.add(objective)
    return objective


for _kind in (TaskObjective, DistillObjective, ChainObjective, FeaturesObjective, SumObjective):
    register_objective(_kind)


def make_objective(name: str, space: Space, levels: Levels) -> Objective:
    """Make an objective from the table.

    Raises:
        TrainingError: none has this name.
    """
    return OBJECTIVES.find(name)(space, levels)


def soft_cross_entropy(output: Any, teacher: Any) -> Tensor:
    """The mean Kullback-Leibler divergence of a sub-network's classes from its teacher's (Hinton et al. 2015).

    Args:
        output, teacher: logits `[..., C]`, or outputs that hold some; the teacher's without gradients.

    Returns:
        a scalar, in nats per position.
    """
    own, taught = logits_of(output), logits_of(teacher)
    return divergence(own.flatten(0, -2), taught.flatten(0, -2)).mean()
