"""The sorted model: one set of weights, every nested sub-network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sortify.costs.cost import Cost, Costs
from sortify.depth import Chain
from sortify.errors import SortifyError
from sortify.models import calibration, checkpoint, profiling
from sortify.models.scope import NOTED, STANDING_IN, TOGETHER, Scope
from sortify.models.switching import Switched
from sortify.models.tensor_files import LARGEST
from sortify.network import exits, extract
from sortify.network.blueprint import Blueprint
from sortify.network.compiled import Compiler
from sortify.network.features import Noted
from sortify.network.network import Runner, followed
from sortify.ordering import importance
from sortify.ordering import order as ordering
from sortify.plan import Axis, Frozen, Plan
from sortify.proof import proof
from sortify.rewriting.rewrite import readable
from sortify.space.budget import Budget
from sortify.space.profile import MeasuredCost, Profile
from sortify.space.space import Subnet, Trained


class SortedModel(Switched):
    """A model whose sub-networks share its weights. Made by `sortify.sortify`, read back by `sortify.load`.

    It is called like the original module and is an ordinary `nn.Module`: parameters, optimisers, `.to(...)`,
    `state_dict()` (original names) all work. At first the full network is active.

    Attributes:
        blueprint: everything about it but the tensors.
        example_tensors: the example inputs, in captured order, as they were given.
        report: the proof made at conversion, of the original weights; None when read from a file.
    """

    _compiler: Compiler | None = None

    def __init__(
        self,
        blueprint: Blueprint,
        tensors: Mapping[str, torch.Tensor],
        examples: Sequence[torch.Tensor],
        report: proof.Report | None = None,
        *,
        owned: bool = False,
    ) -> None:
        super().__init__(tensors, blueprint.infos, blueprint.aliases, blueprint.signature, owned=owned)
        self.blueprint = blueprint
        self.report = report
        self.example_tensors = tuple(t.detach().clone() for t in examples)
        self._scope, self._active, self._statistics = Scope(), blueprint.space.full, {}

    # -- running

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The active sub-network's output, in the structure of the original output.

        `model(x, subnet=...)` runs another one for this call alone, unless the original has an argument of that name.
        In training mode recalibrated statistics are forgotten: weights change from here on.

        Raises:
            InputError: the call does not fit the original's.
            BudgetError: the sub-network is not one of this model.
        """
        subnet, training = self._called(kwargs) or self.active, self.training
        if training:
            self.forget_statistics()
        inputs, together = self._bind(args, kwargs), self._scope.get(TOGETHER)
        if together is None:
            return self._run(subnet, training, inputs)
        return together.take(subnet, inputs, lambda subnets: self._run_many(subnets, training, inputs))

    def _runner(self, training: bool) -> Runner:
        return self.blueprint.sorted_runners["train" if training else "eval"]

    def _run(self, subnet: Subnet, training: bool, inputs: Sequence[torch.Tensor]) -> Any:
        runner, noted = self._runner(training), self._scope.get(NOTED)
        tensors = self._tensors_of(subnet, training)
        if noted is not None and training:
            return noted.run(runner, subnet.values, tensors, inputs)
        if self._compiler is not None:
            return self._compiler(runner, subnet.values, tensors, inputs)
        return runner((subnet.values,), tensors, inputs)

    @contextmanager
    def noting_features(self) -> Iterator[Noted]:
        """Keep the hidden features of each call in training mode, for the length of a `with` block: its `last`.

        Such calls are not compiled.

        Raises:
            SortifyError: the model is in parts, or has no features.
        """
        if not self.plan.features:
            raise SortifyError("the model has no hidden features to compare: no block, and no layer before its output")
        noted = Noted(self.plan)
        with self._scope.set(NOTED, noted):
            yield noted

    def _tensors_of(self, subnet: Subnet, training: bool) -> Mapping[str, torch.Tensor]:
        own = {} if training else self._statistics_of(subnet)
        sizes, stand_ins = self._scope.get(STANDING_IN, (None, {}))
        if sizes == subnet.sizes:
            own = {**own, **stand_ins}
        return calibration.Overlay(self.tensors, own) if own else self.tensors

    def _run_many(self, subnets: Sequence[Subnet], training: bool, inputs: Sequence[torch.Tensor]) -> list[Any]:
        """The outputs of several sub-networks, one by one where they cannot share."""
        alone = len(subnets) == 1 or self._compiler is not None or not exits.can_share(self._runner(training))
        if alone or (not training and any(map(self._statistics_of, subnets))):
            return [self._run(subnet, training, inputs) for subnet in subnets]
        values, axes = [subnet.values for subnet in subnets], len(self.plan.axes)
        return exits.run_many(self._runner(training), values, axes, self._tensors_of(subnets[0], training), inputs)

    def compile(self, *, dynamic: bool = True, **options: Any) -> None:
        """Run sub-networks through `torch.compile` from now on.

        Args:
            dynamic: widths are symbols: two graphs for each choice of blocks serve them all. False makes a graph for
                every sub-network that runs, which may be faster, and takes the compiler's time for each.
            options: of `torch.compile`, such as `mode="max-autotune"`.
        """
        for _, part in self.captured_parts():
            part._compiler = Compiler(len(part.plan.axes), dynamic, options)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Let every bypassable block compute its activations again in the backward pass: less memory, more time.

        Batch-norms of the full network then see each batch twice; those of smaller ones keep no statistics while they
        train. The name is that of transformers.

        Args:
            gradient_checkpointing_kwargs: not needed; `transformers.Trainer` gives some.
        """
        self._recompute(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations, as at first."""
        self._recompute(False)

    def _recompute(self, wanted: bool) -> None:
        for _, part in self.captured_parts():
            part.blueprint = replace(part.blueprint, recomputes=wanted)

    @contextmanager
    def standing_in(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Run sub-networks of the widths that are active now on other tensors, for the length of a `with` block.

        Args:
            tensors: what stands in, of the sizes of the sub-network, by the names of those that it stands in for.
        """
        with self._scope.set(STANDING_IN, (self.active.sizes, tensors)):
            yield

    @contextmanager
    def together(self, subnets: Sequence[Subnet]) -> Iterator[None]:
        """Let one forward pass serve several sub-networks of equal widths, for the length of a `with` block.

        When the first of them is called, the outputs of all are computed, and what they have in common only once: of
        sub-networks that differ in depth all blocks but those that are left out, and the head for each. The others,
        activated and called on the very same tensors, get theirs.

        Args:
            subnets: which; what random numbers are drawn for is shared too (one dropout mask for all).
        """
        alike = len({subnet.sizes for subnet in subnets}) == 1
        with self._scope.set(TOGETHER, exits.Together(subnets) if alike and len(subnets) > 1 else None):
            yield

    # -- what is known

    @property
    def plan(self) -> Plan:
        return self.blueprint.plan

    @property
    def axes(self) -> Mapping[str, Axis]:
        """Every elastic axis by name."""
        return MappingProxyType({axis.name: axis for axis in self.plan.axes})

    @property
    def chains(self) -> Mapping[str, Chain]:
        """Every chain of bypassable blocks by name."""
        return MappingProxyType({chain.name: chain for chain in self.plan.chains})

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """What is not elastic, and why."""
        return self.plan.frozen

    @property
    def source(self) -> str | None:
        """What the model was converted from."""
        return self.blueprint.source

    @property
    def examples(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example call, where the weights are and in their dtype: positional and named arguments."""
        return self.signature.call(followed(self.example_tensors, self.tensors))

    @property
    def open_sizes(self) -> dict[str, int]:
        """The sizes that a call decides (`batch`, `sequence`, `x_2` ...), as they are at the example inputs."""
        return self.space.open_sizes

    def cost(self, subnet: Subnet | None = None, **sizes: int) -> Cost:
        """The exact cost of one call of a sub-network (the active one by default).

        Args:
            subnet: which sub-network.
            sizes: open sizes, such as `batch=8, sequence=512`; those that are not named are the example inputs'.

        Raises:
            InputError: the model has no such open size, or its cost is no known function of it.
        """
        return self.space.cost(self.active if subnet is None else subnet, **sizes)

    def costs(self, subnets: Sequence[Subnet] | NDArray[np.int64], **sizes: int) -> Costs:
        """The exact costs of many sub-networks at once, as arrays; see `Space.costs`."""
        return self.space.costs(subnets, **sizes)

    def shares(self, metric: str = "flops") -> dict[str, float]:
        """For every axis the share of the full network's cost that its size multiplies; for '' that of all together.

        Args:
            metric: flops, params or activation_bytes.
        """
        return self.blueprint.costs.shares(metric)

    def share(self, axes: Collection[str], metric: str = "flops") -> float:
        """The share of the full network's cost that the size of any of these axes multiplies."""
        return self.blueprint.costs.share(axes, metric)

    def print_graph(self, mode: str = "eval") -> str:
        """The rewritten graph as code: slice nodes, computed sizes, blocks."""
        return readable(self.blueprint.sorted_runners[mode].module)

    # -- what it costs on a machine

    def profile(
        self,
        device: str | torch.device | None = None,
        subnets: int | Sequence[Subnet] = profiling.COUNT,
        seconds: float = profiling.SECONDS,
        progress: profiling.Progress | None = None,
        **sizes: int,
    ) -> Profile:
        """Measure latency and peak memory of a sample of sub-networks, and predict all others' from then on.

        Budgets of time and memory (`5 ms`, `40 MB`) use it, and `save` keeps it. Each sub-network is measured as it is
        extracted, in evaluation mode and without gradients; all take turns, and the median over the rounds counts.

        Args:
            device: where to measure; else where the weights are.
            subnets: how many, of which the smallest and the full one, each group alone, a nested chain and random ones;
                or which.
            seconds: time to measure for; at least one round is made, however long that takes.
            progress: called with (rounds done, rounds that there is time for).
            sizes: open sizes of the calls, such as `batch=1, sequence=512`; else those of the example inputs.

        Raises:
            ProfileError: the device, the sub-networks or the sizes cannot be used.
            InputError: the model has no such open size.
        """
        found = profiling.profile(self, device, subnets, seconds, progress, sizes=sizes)
        self.record_profile(found)
        return found

    @property
    def profiled(self) -> Profile | None:
        """The profile that was made last, if any."""
        return self.space.profile

    def record_profile(self, profile: Profile) -> None:
        """Note what was measured: budgets of time and memory go by it from now on."""
        self.blueprint = self.blueprint.with_profile(profile)

    def measured_cost(self, subnet: Subnet | None = None) -> MeasuredCost:
        """Latency and peak memory of a sub-network (the active one by default), as the profile predicts them.

        Raises:
            BudgetError: there is no profile.
        """
        return self.space.measured_cost(self.active if subnet is None else subnet)

    # -- order

    def order(
        self,
        by: str = "magnitude",
        data: Iterable[Any] | None = None,
        batches: int = 20,
        *,
        loss: importance.Loss | None = None,
        progress: importance.Progress | None = None,
        blocks: bool = False,
    ) -> ordering.Ordered:
        """Sort the units of every axis by importance, in place: small sub-networks keep the most important ones.

        The full network's function stays what it is, which is checked on the example inputs. Parameters, buffers and
        gradients are permuted; the states of an optimiser are not: make it afterwards. Recalibrated statistics
        are forgotten.

        Args:
            by: `magnitude` (no data), `activation` or `taylor`; see `sortify/importance.py`.
            data: batches as for `recalibrate`; taylor needs (inputs, target) or a mapping with labels.
            batches: how many to use.
            loss: for taylor, a function of (outputs, target); else `output.loss` or the cross-entropy of logits.
            progress: called with (batches done, batches).
            blocks: rank the blocks of every chain as well: smaller depths give up the least important ones, and the
                others run in their own order.

        Raises:
            DataError: unknown measure, or data is missing or does not fit.
            ProofError: outputs would change; the weights are then as they were.
        """
        return ordering.order(self, by, data, batches, loss, progress, blocks)

    @property
    def ordered(self) -> str | None:
        """The measure by which the units were sorted last, if they were."""
        return self.blueprint.ordered

    @property
    def blocks_ranked(self) -> bool:
        """Whether chains keep their most important blocks, not the first that run."""
        return self.blueprint.blocks_ranked

    def record_order(self, by: str) -> None:
        """Note the measure by which the units were sorted."""
        self.blueprint = replace(self.blueprint, ordered=by)

    def record_block_order(self, blueprint: Blueprint) -> None:
        """Take chains in another order, with their costs."""
        self.blueprint = replace(blueprint, blocks_ranked=True)
        self._known_weights = None

    def captured_parts(self) -> list[tuple[str, SortedModel]]:
        """The captured models that this one is made of, with what stands before their names: itself."""
        return [("", self)]

    def captured_inputs(self, batch: Any) -> list[tuple[str, list[torch.Tensor]]]:
        """What each captured model is called with on a batch."""
        return [("", calibration.bind_batch(self, batch))]

    # -- what comes out

    def extract(
        self,
        budget: Budget | Subnet | None = None,
        metric: str = "flops",
        subnet: Subnet | None = None,
        **fractions: float,
    ) -> extract.ExtractedModel:
        """A sub-network as a module of its own.

        `extract(0.5)`, `extract(budget="2.5M params")` as `choose` gives it, `extract(subnet)`, or
        `extract(width=0.5, depth=0.75)`.

        Raises:
            BudgetError: nothing fits the budget, or not exactly one of budget, subnet and fractions is given.
        """
        chosen = self._to_extract(budget, metric, subnet, fractions)
        self._warn_uncalibrated(chosen)
        small = extract.extract(self.blueprint, self.tensors, chosen, self._statistics_of(chosen))
        return small.train(self.training)

    def verify(self) -> proof.Report:
        """Run the proof of the conversion again on the weights of now."""
        return proof.prove(self.blueprint, self.tensors, self.example_tensors)

    def record_trained(self, trained: Trained) -> None:
        """Note which groups and levels were trained: budgets choose among them from now on."""
        self.blueprint = self.blueprint.with_trained(trained)

    def save(self, path: str | Path, max_shard_size: int | str = LARGEST) -> None:
        """Write the model to a folder that `sortify.load` reads: safetensors, JSON, graphs; no pickle.

        Args:
            path: the folder; files of others in it stay.
            max_shard_size: bytes that a file of weights may hold (`"5GB"`); larger weights are written to several.

        Raises:
            CheckpointError: the disk refuses, or there is nothing to write; the folder then holds what it held before.
        """
        checkpoint.save(
            path, self.blueprint, self.tensors, self.example_tensors, self._statistics, largest=max_shard_size
        )


def made_of(found: checkpoint.Contents) -> SortedModel:
    """The model that a checkpoint holds, in evaluation mode; it takes the tensors that were read."""
    model = SortedModel(found.blueprint, found.tensors, found.examples, owned=True)
    model.take_statistics(found.statistics)
    return model.eval()
