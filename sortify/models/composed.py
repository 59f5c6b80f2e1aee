"""A model in parts: the original with its capturable sub-modules replaced by sorted ones.

Where a model cannot be captured whole, its largest capturable parts are sorted, each with fixed inputs and outputs, and
the original's own code runs between them. It is used like any sorted model.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import torch
from torch import nn

from sortify.capture.exporting import run_untouched
from sortify.capture.prepare import NOTHING, Example, LeftOut
from sortify.costs.cost import Cost
from sortify.difference import difference
from sortify.errors import CaptureError, InputError, SortifyError, first_line
from sortify.graph.signature import Signature
from sortify.models import calibration, composed_checkpoint
from sortify.models.merging import Part, inside, merge_costs, merge_plans, split
from sortify.models.places import carry, outside, stand_for
from sortify.models.scope import Scope
from sortify.models.sorted_model import SortedModel
from sortify.models.tensor_files import LARGEST
from sortify.network.blueprint import Blueprint
from sortify.network.extract import ExtractedModel
from sortify.network.network import STATISTICS
from sortify.plan import Plan
from sortify.proof import proof
from sortify.space.budget import Budget
from sortify.space.profile import Profile
from sortify.space.space import Space, Subnet, Trained


class ComposedModel(SortedModel):
    """A model of which parts are sorted. Made by `sortify.sortify`, read back by `sortify.load(path, module=original)`.

    Attributes:
        parts: the sorted parts by module path.
        left: module path -> why the original's code runs there.
        report: the proof made at conversion; None when read from a file.
    """

    _whole: nn.Module | None

    def __init__(
        self,
        whole: nn.Module | None,
        parts: Sequence[Part],
        left: Mapping[str, str],
        signature: Signature,
        examples: Sequence[torch.Tensor],
        rest: int,
        source: str | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            whole: the original's copy, parts in place; None for a model that is only looked at.
            parts: the parts; left: what runs as it was.
            signature, examples: of the whole.
            rest: the number of parameters outside the parts.
            source: what it was converted from, for people.
        """
        nn.Module.__init__(self)
        self.signature, self.left = signature, dict(left)
        self.example_tensors = tuple(t.detach().clone() for t in examples)
        self.report: proof.Report | None = None
        self._parts, self._rest, self._source = tuple(parts), rest, source
        self._plan = merge_plans(parts, left, signature.implied)
        self._space = Space(self._plan, merge_costs(parts, self._plan, rest))
        self._scope, self._active, self._statistics = Scope(), self._space.full, {}
        stand_for(self, whole)

    @property
    def blueprint(self) -> Blueprint:  # type: ignore[override]
        """All parts in one, to look at: the programs are called `eval PATH` and `train PATH`, and cannot be run."""
        own = {part.path: part.model.blueprint for part in self._parts}
        return Blueprint(
            {f"{mode} {path}": program for path, each in own.items() for mode, program in each.programs.items()},
            {f"{path}.{name}": info for path, each in own.items() for name, info in each.infos.items()},
            {f"{p}.{name}": f"{p}.{first}" for p, each in own.items() for name, first in each.aliases.items()},
            self.signature,
            self._plan,
            self._space.exact,
            self._space.trained,
            self._source,
            self._space.profile,
            next((each.ordered for each in own.values()), None),
        )

    @property
    def parts(self) -> dict[str, SortedModel]:
        """The sorted parts by module path."""
        return {part.path: part.model for part in self._parts}

    # -- running

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's output, computed with the active sub-network of every part; see `SortedModel.forward`."""
        subnet = self._called(kwargs) or self.active
        if self.training:
            self._statistics = {}
            if self.norms_frozen:
                self._set_norms_between(False)
        with self._running(subnet, self._statistics_of(subnet)):
            return self._runnable()(*args, **self.signature.completed(args, kwargs))

    def _runnable(self) -> nn.Module:
        if self._whole is None:
            raise SortifyError(
                "this model was read without the original module, to look at: load(path, module=original)"
            )
        self._whole.training = self.training
        return self._whole

    @contextmanager
    def _running(self, subnet: Subnet, statistics: Mapping[str, torch.Tensor] | None = None) -> Iterator[None]:
        """As for any sorted model, with every part at what the sub-network means for it."""
        known = self._statistics.get(subnet, {}) if statistics is None else statistics
        with ExitStack() as blocks:
            blocks.enter_context(super()._running(subnet, statistics))
            for part in self._parts:
                blocks.enter_context(part.model._running(split(subnet, part), inside(known, part)))
            yield

    def _switch(self, subnet: Subnet, statistics: Mapping[str, torch.Tensor] | None = None) -> None:
        super()._switch(subnet, statistics)
        self._hand_out(subnet)

    def _hand_out(self, subnet: Subnet) -> None:
        """Switch every part to what a sub-network means for it.

        Its statistics depend on what comes before it: sub-networks that cut it alike may need different ones.
        """
        known = self._statistics_of(subnet)
        for part in self._parts:
            part.model._switch(split(subnet, part), inside(known, part))

    def _weights(self) -> Iterable[nn.Parameter]:
        return self.parameters()

    def noting_features(self) -> NoReturn:
        raise SortifyError(
            "the model is in parts, and what goes on between them is not known: hidden features are compared in models "
            "that were captured whole (objective 'distill' compares outputs alone)"
        )

    # -- what is known

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def space(self) -> Space:
        return self._space

    @property
    def source(self) -> str | None:
        return self._source

    @property
    def tensors(self) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Every parameter, buffer and constant by original name."""
        own = {f"{p.path}.{name}": tensor for p in self._parts for name, tensor in p.model.tensors.items()}
        return {**self.rest, **own}

    @property
    def rest(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers outside the parts, by original name."""
        return outside(self, [part.path for part in self._parts])

    def cost(self, subnet: Subnet | None = None, **sizes: int) -> Cost:
        """The cost of all parts in one call, each at the sizes of its first call; parameters count the rest too."""
        return super().cost(subnet, **sizes)

    def print_graph(self, mode: str = "eval") -> str:
        """The rewritten graph of every part."""
        return "\n".join(f"# {path}\n{model.print_graph(mode)}" for path, model in self.parts.items())

    # -- statistics

    @property
    def has_batch_statistics(self) -> bool:
        return any(part.model.has_batch_statistics for part in self._parts)

    @property
    def norms_frozen(self) -> bool:
        return any(part.model.norms_frozen for part in self._parts)

    def freeze_norms(self, frozen: bool = True) -> None:
        """As for any sorted model; norms between the parts, which have one size, keep their statistics too."""
        if frozen != self.norms_frozen:
            self.forget_statistics()
        for part in self._parts:
            part.model.freeze_norms(frozen)
        if not frozen:
            self._set_norms_between(self.training)

    def _set_norms_between(self, training: bool) -> None:
        """The mode of the modules outside the parts that keep running statistics; parts go by their graphs."""
        for module in self.modules():
            if all(name in module._buffers for name in STATISTICS):
                module.training = training

    def recalibrate(self, loader: Iterable[Any], batches: int = 20) -> None:
        """Measure the statistics of the active sub-network, part by part, on what the whole hands to each."""
        if not self.has_batch_statistics:
            return
        chosen = [batch for _, batch in zip(range(batches), loader, strict=False)]
        modes = {child: child.training for child in self.modules()}
        subnet, found = self.active, dict[str, torch.Tensor]()
        self.eval()
        with self._running(subnet, found):
            order = self._as_called(chosen[0]) if chosen else self._parts
        for part in order:
            if part.model.has_batch_statistics:
                with self._running(subnet, found):
                    seen = [call for batch in chosen for call in self._inputs_of(part, batch)]
                own = calibration.measure(part.model, split(subnet, part), seen, max(1, len(seen)))
                found = {**found, **{f"{part.path}.{name}": tensor for name, tensor in own.items()}}
        self._keep_statistics(subnet, found)
        self._hand_out(subnet)
        for child, training in modes.items():
            child.training = training

    def _as_called(self, batch: Any) -> list[Part]:
        """The parts in the order in which they are first called: what one is given depends on those before it."""
        order = list[str]()
        with ExitStack() as hooks:
            for part in self._parts:
                hooks.enter_context(_watched(part, lambda *_, path=part.path: order.append(path)))
            _call(self, batch)
        places = {path: place for place, path in reversed(list(enumerate(order)))}
        return sorted(self._parts, key=lambda part: places.get(part.path, len(order)))

    def _inputs_of(self, part: Part, batch: Any) -> list[Any]:
        """What the part is called with when the whole runs on a batch."""
        seen: list[Any] = []

        def note(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args if not kwargs else part.model.signature._named(args, kwargs))

        with _watched(part, note):
            _call(self, batch)
        return seen

    def forget_statistics(self) -> None:
        super().forget_statistics()
        for part in self._parts:
            part.model.forget_statistics()

    def captured_parts(self) -> list[tuple[str, SortedModel]]:
        return [(f"{part.path}.", part.model) for part in self._parts]

    def captured_inputs(self, batch: Any) -> list[tuple[str, list[torch.Tensor]]]:
        calls = [(part, call) for part in self._parts for call in self._inputs_of(part, batch)]
        return [(f"{part.path}.", calibration.bind_batch(part.model, call)) for part, call in calls]

    # -- what comes out

    def extract(
        self,
        budget: Budget | Subnet | None = None,
        metric: str = "flops",
        subnet: Subnet | None = None,
        **fractions: float,
    ) -> ExtractedModel:
        """As for any sorted model: the original's copy with every part cut to the sub-network."""
        chosen = self._to_extract(budget, metric, subnet, fractions)
        self._warn_uncalibrated(chosen)
        with self.using(chosen):
            small = {part.path: part.model.extract(subnet=part.model.active) for part in self._parts}
        swapped = {id(part.model): carry(part.model, small[part.path]) for part in self._parts}
        whole = copy.deepcopy(self._runnable(), {**swapped})
        return ExtractedParts(whole, small, self.signature).train(self.training)

    def verify(self) -> proof.Report:
        """The proof of every part on the weights of now, and the whole against its extraction at full size."""
        rows = tuple(row for part in self._parts for row in _rows(part.path, part.model.verify()))
        args, kwargs = self.examples
        with self.using():
            whole = compare_whole(self.extract(subnet=self.space.full), self, Example(args, kwargs), False)
        return proof.Report((*rows, whole))

    def record_trained(self, trained: Trained) -> None:
        self._space = Space(self._plan, self._space.exact, trained, profile=self._space.profile)

    def record_profile(self, profile: Profile) -> None:
        self._space = Space(self._plan, self._space.exact, self._space.trained, profile=profile)

    def record_order(self, by: str) -> None:
        for part in self._parts:
            part.model.record_order(by)

    def save(self, path: Any, max_shard_size: int | str = LARGEST) -> None:
        """Write the parts and all other tensors to a folder that `sortify.load(path, module=original)` reads."""
        contents = composed_checkpoint.Contents(
            self._parts,
            self.left,
            self.signature,
            self.example_tensors,
            {name: tensor for name, tensor in self.rest.items() if name in self.state_dict()},
            self._rest,
            self._statistics,
            self._space.trained,
            self._source,
            self._space.profile,
        )
        composed_checkpoint.save(path, contents, max_shard_size)

    def save_statistics(self, path: Any) -> None:
        """As `save`: the folder holds nothing else that could have changed."""
        self.save(path)


class ExtractedParts(ExtractedModel):
    """The original's copy with extracted parts: smaller tensors, the original's code between them."""

    _whole: nn.Module

    def __init__(self, whole: nn.Module, parts: Mapping[str, ExtractedModel], signature: Signature) -> None:
        nn.Module.__init__(self)
        self.signature = signature
        self._parts = dict(parts)
        stand_for(self, whole)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Every parameter, buffer and constant by original name."""
        rest = outside(self, list(self._parts))
        return {**rest, **{f"{p}.{n}": t for p, model in self._parts.items() for n, t in model.tensors.items()}}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._whole.training = self.training
        return self._whole(*args, **self.signature.completed(args, kwargs))


def compose(
    original: nn.Module, parts: Sequence[Part], left: Mapping[str, str], example: Example, source: str | None = None
) -> ComposedModel:
    """A copy of the original with its parts in place.

    Raises:
        CaptureError: the original cannot be copied, or its call cannot be described.
    """
    places = {id(original.get_submodule(part.path)): part.model for part in parts}
    try:
        for part in parts:
            carry(original.get_submodule(part.path), part.model)
        whole = copy.deepcopy(original, {**places})
        signature = Signature.of(original.forward, example.args, example.kwargs)
    except InputError:
        raise
    except Exception as error:
        raise CaptureError(f"{type(original).__name__} cannot be copied: {first_line(error)}") from error
    leaves = [x for x in torch.utils._pytree.tree_leaves((example.args, example.kwargs)) if isinstance(x, torch.Tensor)]
    everything = sum(p.numel() for p in original.parameters())
    inside = sum(p.numel() for part in parts for p in original.get_submodule(part.path).parameters())
    return ComposedModel(whole, parts, left, signature, leaves, everything - inside, source)


def compare_whole(
    expected: nn.Module, model: ComposedModel, example: Example, training: bool, left_out: LeftOut = NOTHING
) -> proof.Check:
    """One row of a proof: the composed model against another module without what is left out, on the example call."""
    name = f"whole ({'train' if training else 'eval'})"
    note = "full model in parts = original" if not isinstance(expected, ExtractedModel) else "full model = extraction"
    with left_out.of(expected):
        theirs = run_untouched(expected, example.args, example.kwargs, training)
    try:
        ours = run_untouched(model, example.args, example.kwargs, training)
    except Exception as error:  # whatever the code around asks of a part that the part does not have
        return proof.Check(name, float("inf"), proof.SINGLE, f"{type(error).__name__}: {first_line(error)}")
    return proof.Check(name, difference(theirs, ours), proof.SINGLE, note)


def _rows(path: str, report: proof.Report) -> list[proof.Check]:
    return [proof.Check(f"{path}: {row.name}", row.error, row.tolerance, row.note) for row in report.rows]


def merged_report(parts: Sequence[Part], whole: Sequence[proof.Check]) -> proof.Report:
    """The proofs of the parts, made when they were converted, and the checks of the whole."""
    rows = [row for part in parts if part.model.report for row in _rows(part.path, part.model.report)]
    seconds: dict[str, float] = {}
    for part in parts:
        for stage, time in (part.model.report.seconds if part.model.report else {}).items():
            seconds[stage] = seconds.get(stage, 0.0) + time
    return proof.Report((*rows, *whole), seconds, merged_left_out({part.path: part.model for part in parts}))


def merged_left_out(parts: Mapping[str, SortedModel]) -> LeftOut:
    """What the parts leave out in training, as of the whole."""
    found = [(path, model.report.left_out) for path, model in parts.items() if model.report]
    return LeftOut(
        any(own.skips for _, own in found),
        tuple(f"{path}.{name}".rstrip(".") for path, own in found for name in own.held_back),
    )


@contextmanager
def _watched(part: Part, note: Callable[[tuple[Any, ...], dict[str, Any]], object]) -> Iterator[None]:
    """Note with what this thread calls a part, for the length of a `with` block; other threads may call it too."""
    thread = threading.get_ident()

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            note(args, kwargs)

    handle = part.model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _call(model: ComposedModel, batch: Any) -> Any:
    """Run on a batch that may come with a target."""
    try:
        args, kwargs = model.signature.call(calibration.bind_batch(model, batch))
    except InputError:  # lists of other lengths: the original's own code takes them
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        args, kwargs = ((batch[0] if pair else batch),), {}
    return model(*args, **kwargs)
