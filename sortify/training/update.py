"""The sorted update: repeat {draw a sub-network, forward, backward}, then one optimiser step.

SortedNet, arXiv 2309.00255, Algorithm 1. The mean over the draws is taken, not the sum, so that a learning rate
means the same for any number of draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._pytree import tree_map_only

from sortify.data.batches import mix
from sortify.errors import TrainingError
from sortify.network.features import Features, Noted, Processes, distance
from sortify.training.accumulation import Accumulation, Scheduled
from sortify.training.gradients import Probe, Projection, average_gradients
from sortify.training.landing import Landing
from sortify.training.objectives import Objective, soft_cross_entropy
from sortify.training.samplers import counted
from sortify.training.sampling import Learns, Sampler, Watches
from sortify.training.sharding import is_sharded

if TYPE_CHECKING:
    from sortify.models.sorted_model import SortedModel
    from sortify.space.space import Subnet


TOLD = ("loss", "apart", "features")
"""The numbers that are told of a draw."""
Match = Callable[[Any, Any], Tensor]
"""How far an output is from a teacher's: a scalar, in the units of the loss."""


@dataclass(frozen=True)
class Drawn:
    """One sub-network of an update, its loss, and how far it is from its teacher (no gradients).

    Attributes:
        apart: in the output; features: in hidden features, where they are compared.
    """

    subnet: Subnet
    loss: Tensor
    apart: Tensor | None = None
    features: Tensor | None = None


class SortedUpdate:
    """The sorted update for any training loop, in two lines:

        update = SortedUpdate(model, make_sampler("random", model.space, levels, count=4))
        ...
        update(lambda: criterion(model(x), y))      # instead of criterion(model(x), y).backward()
        optimizer.step()

    States: `step` counts the updates made; every draw is a function of the seed and the step. With it `state_dict()`
    holds what samplers and numbers of draws have learnt, where they learn. Afterwards the sub-network that was active
    is active again.

    Args:
        model: a sorted model.
        sampler: which sub-networks to draw.
        seed: of the draws; alike on all processes, so that all draw alike.
        accelerator: of a run with several processes; gradients are then averaged over them after the last draw.
            The model must not be wrapped in DistributedDataParallel, which would lose the gradients of
            parameters that only an earlier draw used.
        objective: what each learns from; by default the loss alone.
        weight: the share of the teacher in the loss of a sub-network that has one; the rest is the loss itself, which
            Scala (arXiv 2412.04786, table 5) found worth keeping.
        features: the weight of the distance between hidden features, where the objective compares them, on top.
        match: how far an output is from the teacher's; by default the divergence of the classes of logits `[..., C]`.
        share_batch: whether all sub-networks of a step see the same batch; None for the way of sampler and objective.
            Sub-networks of equal widths that differ in depth then share one forward pass.
        accumulation: how many sub-networks to draw, where that changes; the sampler is then a dataclass with a `count`.
        project: whether conflicts between gradients are taken out, see `Projection`.

    Raises:
        SortifyError: hidden features are to be compared, and the model has none that are known.
    """

    def __init__(
        self,
        model: SortedModel,
        sampler: Sampler,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        *,
        objective: Objective | None = None,
        weight: float = 0.5,
        features: float = 0.1,
        match: Match = soft_cross_entropy,
        share_batch: bool | None = None,
        accumulation: Accumulation | None = None,
        project: bool = False,
    ) -> None:
        self._model = model
        self._sampler = sampler
        self._seed = seed
        self._accelerator = accelerator
        self._objective, self._weight, self._features, self._match = objective, weight, features, match
        by_itself = sampler.shares_batch or (objective is not None and objective.shares_batch)
        self._shared = by_itself if share_batch is None else share_batch
        if self._compares:
            with model.noting_features():
                pass  # refuses models without features
        self._accumulation = accumulation
        self._probe = Probe(model.parameters())
        self._projection = Projection(model.parameters()) if project else None
        self._landing = Landing(model)
        self._sharded = is_sharded(model.parameters())
        self._turn: _Turn | None = None
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept to go on later, as JSON values."""
        learnt = {"accumulation": self._accumulation, "sampler": self._sampler}
        states = {name: each.state_dict() for name, each in learnt.items() if isinstance(each, Learns)}
        return {**states, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.step = int(state["step"])
        for name, each in (("accumulation", self._accumulation), ("sampler", self._sampler)):
            if isinstance(each, Learns) and name in state:
                each.load_state_dict(state[name])

    def draw(self) -> list[Subnet]:
        """Return the sub-networks that the next update runs, in their order."""
        generator = torch.Generator().manual_seed(mix(self._seed, "subnets", self.step))
        sampler = self._sampler
        if self._accumulation is not None:
            sampler = counted(sampler, self._accumulation.count(self.step))
        drawn = sampler.draw(generator, self.step)
        return drawn if self._objective is None else self._objective.members(drawn)

    def __call__(
        self, loss: Callable[[], Tensor], backward: Callable[[Tensor], object] = Tensor.backward
    ) -> list[Drawn]:
        """Accumulate the gradients of one update.

        Args:
            loss: runs the model and returns the mean loss; called once per sub-network.
            backward: what to do with the loss, such as scaling it first.

        Returns:
            the sub-networks with their losses, before division by their number; averaged over processes.
        """
        subnets, before = self.draw(), self._model.active
        features = self._features if self._compares else 0.0
        lessons = _Lessons(self._objective, self._match, self._weight, features, self._processes())
        drawn, groups = list[Drawn](), self._groups(subnets)
        try:
            with lessons.of(self._model):
                self._before_backward()
                for group in groups:
                    drawn += self._group(group, lessons, loss, lambda total: backward(total / len(subnets)))
                    self._after_backward()
        finally:
            self._model.activate(before)
        if self._projection is not None:
            self._projection.finish()
        elif self._accelerator is not None:
            average_gradients(self._model.parameters(), self._accelerator)
        drawn = self._averaged(drawn)
        self._learn(drawn)
        self.step += 1
        return drawn

    def begin(self) -> Subnet:
        """For loops that run backward themselves: make the next sub-network of the step the active one, until `end`.

        Gradients of one forward and backward pass land; the loop divides the loss by the number of passes of a step.

        Returns:
            the sub-network.

        Raises:
            TrainingError: the update compares sub-networks, which only a call of it can.
        """
        if self._lone is not None:
            raise TrainingError(f"begin: {self._lone} needs the whole step: call the update with the loss instead")
        if self._turn is None:
            self._turn = _Turn(self.draw(), self._model.active)
        turn = self._turn
        subnet = self._model.activate(turn.subnets[turn.place])
        turn.open.enter_context(self._landing())
        return subnet

    def end(self, last: bool = False) -> bool:
        """Close what `begin` opened.

        Args:
            last: end the step, whether or not all its sub-networks had their turn: the batches of an epoch ran out.

        Returns:
            whether the step is complete: then the optimiser steps.
        """
        turn = self._turn
        if turn is None:
            return False
        turn.open.close()
        turn.place += 1
        self._model.activate(turn.before)
        if turn.place < len(turn.subnets) and not last:
            return False
        self._turn = None
        if self._accelerator is not None:
            average_gradients(self._model.parameters(), self._accelerator)
        self.step += 1
        return True

    @property
    def model(self) -> SortedModel:
        """The sorted model."""
        return self._model

    @property
    def _lone(self) -> str | None:
        """What cannot be done one pass at a time, if anything is asked for that cannot."""
        objective = self._objective
        if objective is not None and objective.shares_batch:
            return f"the objective '{objective.name}'"
        if isinstance(self._sampler, Watches):
            return f"the sampler '{self._sampler.name}'"
        return (
            "taking out conflicts" if self._projection is not None else "adapting the number" if self._adapts else None
        )

    @property
    def _compares(self) -> bool:
        return self._features > 0 and getattr(self._objective, "compares_features", False)

    @property
    def _adapts(self) -> bool:
        return self._accumulation is not None and not isinstance(self._accumulation, Scheduled)

    def _groups(self, subnets: list[Subnet]) -> list[list[Subnet]]:
        """Runs of sub-networks of equal widths that see the same batch, and one by one all others."""
        alone = not self._shared or self._sharded or self._projection is not None or self._compares
        if alone or self._measures():
            return [[subnet] for subnet in subnets]
        return [list(group) for _, group in groupby(subnets, key=lambda subnet: subnet.sizes)]

    def _group(
        self,
        group: list[Subnet],
        lessons: _Lessons,
        loss: Callable[[], Tensor],
        backward: Callable[[Tensor], object],
    ) -> list[Drawn]:
        """Run sub-networks of equal widths, forward and backward."""
        self._model.activate(group[0])
        drawn, totals = list[Drawn](), list[Tensor]()
        with self._landing(), self._model.together(group):
            for subnet in group:
                self._model.activate(subnet)
                value = loss()
                total, learnt = lessons.mixed(subnet, value)
                totals.append(total)
                drawn.append(learnt)
            backward(sum(totals[1:], totals[0]))
        return drawn

    def _processes(self) -> Processes | None:
        accelerator = self._accelerator
        if accelerator is None or accelerator.num_processes == 1:
            return None
        return Processes(accelerator.num_processes, lambda tensor: accelerator.reduce(tensor, reduction="sum"))

    def _measures(self) -> bool:
        return self._accumulation is not None and self._accumulation.measures(self.step)

    def _before_backward(self) -> None:
        if self._measures():
            self._probe.start()
        if self._projection is not None:
            self._projection.start()

    def _after_backward(self) -> None:
        if self._measures():
            self._probe.add()
        if self._projection is not None:
            if self._accelerator is not None:
                average_gradients(self._model.parameters(), self._accelerator)
            self._projection.add()

    def _averaged(self, drawn: list[Drawn]) -> list[Drawn]:
        """Losses, and distances from teachers, averaged over processes."""
        if self._accelerator is None or self._accelerator.num_processes == 1:
            return drawn
        names = [[name for name in TOLD if getattr(draw, name) is not None] for draw in drawn]
        values = [getattr(draw, name).float() for draw, own in zip(drawn, names, strict=True) for name in own]
        means = iter(self._accelerator.reduce(torch.stack(values), reduction="mean"))
        return [replace(draw, **{name: next(means) for name in own}) for draw, own in zip(drawn, names, strict=True)]

    def _learn(self, drawn: list[Drawn]) -> None:
        """Tell those who want to know how the step went."""
        if self._accumulation is not None and self._measures():
            agreement = self._probe.agreement()
            value = torch.tensor(math.nan if agreement is None else agreement)
            if self._accelerator is not None and self._accelerator.num_processes > 1:
                value = self._accelerator.reduce(value.to(self._accelerator.device), reduction="mean")
            if value.isfinite():
                self._accumulation.observe(float(value))
        if isinstance(self._sampler, Watches):
            self._sampler.observe([(each.subnet, float(each.loss)) for each in drawn])


@dataclass
class _Turn:
    """A step that goes one pass at a time: its sub-networks, and which of them is next."""

    subnets: list[Subnet]
    before: Subnet
    place: int = 0
    open: ExitStack = field(default_factory=ExitStack)


class _Lessons:
    """What the sub-networks of one step have put out, for those that learn from them."""

    def __init__(
        self, objective: Objective | None, match: Match, weight: float, features: float, processes: Processes | None
    ) -> None:
        self._objective, self._match, self._weight, self._features = objective, match, weight, features
        self._processes = processes
        self._model: SortedModel | None = None
        self._noted: Noted | None = None
        self._last: Any = None
        self._said: dict[Subnet, tuple[Any, Features]] = {}
        self._teaching = objective is not None and objective.teaches and (weight > 0 or features > 0)

    @contextmanager
    def of(self, model: SortedModel) -> Iterator[None]:
        """Listen to a model, for the length of a `with` block."""
        with ExitStack() as listening:
            self._model = model
            if self._teaching:
                listening.enter_context(model.register_forward_hook(self._watch))
            if self._teaching and self._features > 0:
                self._noted = listening.enter_context(model.noting_features())
            yield

    def _watch(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """Remember what the model has just put out."""
        self._last = output

    def mixed(self, subnet: Subnet, loss: Tensor) -> tuple[Tensor, Drawn]:
        """The loss with the teacher's part in it, and what is to be told of it."""
        drawn = Drawn(subnet, loss.detach())
        if self._objective is None or not self._teaching:
            return loss, drawn
        output, features = self._last, self._noted.last if self._noted is not None else {}
        teacher = self._objective.teacher(subnet, list(self._said))
        self._said[subnet] = tree_map_only(Tensor, Tensor.detach, (output, features))
        self._last = None
        if teacher is None:
            return loss, drawn
        said, taught = self._said[teacher]
        if self._weight > 0:
            apart = self._match(output, said)
            loss, drawn = (1 - self._weight) * loss + self._weight * apart, replace(drawn, apart=apart.detach())
        if self._noted is not None and self._model is not None:
            if not taught:
                raise TrainingError("hidden features are known in training mode only: call model.train() first")
            away = distance(self._model.plan, subnet, features, teacher, taught, self._processes)
            loss, drawn = loss + self._features * away, replace(drawn, features=away.detach())
        return loss, drawn
