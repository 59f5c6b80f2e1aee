"""Everything about a sorted model but its tensors: what is saved beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import fx, nn

from sortify.capture.capture import TensorInfo
from sortify.capture.lifting import Program
from sortify.costs.cost import CostModel
from sortify.errors import CheckpointError
from sortify.graph.signature import Signature
from sortify.network.network import Runner
from sortify.network.norms import frozen
from sortify.plan import Plan
from sortify.rewriting.rewrite import Bypass, rewrite
from sortify.sources.origin import Origin
from sortify.space.profile import Profile
from sortify.space.space import Space, Trained


class Runners(Mapping[str, Runner]):
    """Executable graphs by mode; each is made when it is first asked for."""

    def __init__(self, modes: Collection[str], make: Callable[[str], Runner]) -> None:
        self._modes, self._make, self._made = tuple(modes), make, dict[str, Runner]()

    def __getitem__(self, mode: str) -> Runner:
        if mode not in self._made and mode in self._modes:
            self._made[mode] = self._make(mode)
        return self._made[mode]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modes)

    def __len__(self) -> int:
        return len(self._modes)


@dataclass(frozen=True, eq=False)
class Blueprint:
    """A captured and analysed model.

    Attributes:
        programs: the captured graphs by mode ('train', 'eval').
        infos: what each tensor is; aliases: further names of tied tensors.
        signature: how calls become tensors.
        plan: what is elastic; costs: what any sub-network costs.
        trained: the groups and levels that were trained, if any.
        source: what the model was converted from, for people.
        profile: what sub-networks cost on a machine, if that was measured.
        ordered: the measure by which units were sorted last, if they were; blocks_ranked: whether blocks were, too.
        origin: the class and the settings of the library that it comes from, where that is known.
        thawed: the train graph as it was captured, where that among the programs has frozen norms.
        read_from: the folder of a model that was saved.
        recomputes: whether blocks compute their activations again in the backward pass.
    """

    programs: Mapping[str, Program]
    infos: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    signature: Signature
    plan: Plan
    costs: CostModel
    trained: Trained | None = None
    source: str | None = None
    profile: Profile | None = None
    ordered: str | None = None
    blocks_ranked: bool = False
    origin: Origin | None = None
    thawed: Program | None = None
    read_from: str | None = None
    recomputes: bool = False

    @cached_property
    def sorted_runners(self) -> Runners:
        """The rewritten graphs; they take the sizes of the active sub-network first.

        Asking for one of a damaged file raises CheckpointError.
        """
        return Runners(self.programs, self._rewritten)

    def _rewritten(self, mode: str) -> Runner:
        program = self.programs[mode]
        try:
            module = rewrite(program, self.plan, mode, self.infos)
        except Exception as error:
            if self.read_from is None:
                raise
            text = " ".join(str(error).split())
            raise CheckpointError(
                f"{self.read_from}: damaged checkpoint: the plan does not fit the {mode} graph "
                f"({type(error).__name__}: {text})"
            ) from error
        for block in module.modules():
            if isinstance(block, Bypass):
                block.recomputes = self.recomputes and mode == "train"
        return Runner(module, program.tensors, program.outputs)

    @cached_property
    def plain_runners(self) -> Runners:
        """The captured graphs as they came."""

        def made(mode: str) -> Runner:
            program = self.programs[mode]
            return Runner(fx.GraphModule(nn.Module(), program.graph), program.tensors, program.outputs)

        return Runners(self.programs, made)

    @cached_property
    def space(self) -> Space:
        return Space(self.plan, self.costs, self.trained, profile=self.profile)

    def with_trained(self, trained: Trained) -> Blueprint:
        return replace(self, trained=trained)

    def with_profile(self, profile: Profile) -> Blueprint:
        return replace(self, profile=profile)

    @property
    def norms_frozen(self) -> bool:
        """Whether norms use the full network's running statistics in training too."""
        return self.thawed is not None

    def with_frozen_norms(self, wanted: bool) -> Blueprint:
        """The model with norms that leave their running statistics alone, or with norms as they were captured.

        Raises:
            CaptureError: a norm cannot be told to.
        """
        if wanted == self.norms_frozen:
            return self
        train = self.thawed or self.programs["train"]
        programs = {**self.programs, "train": frozen(train) if wanted else train}
        return replace(self, programs=programs, thawed=train if wanted else None)
