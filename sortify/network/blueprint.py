"""Everything about a sorted model but its tensors: what is saved beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import fx, nn

from sortify.capture.capture import TensorInfo
from sortify.capture.lifting import Program
from sortify.costs.cost import CostModel
from sortify.graph.signature import Signature
from sortify.network.network import Runner
from sortify.network.norms import frozen
from sortify.plan import Plan
from sortify.rewriting.rewrite import rewrite
from sortify.sources.origin import Origin
from sortify.space.profile import Profile
from sortify.space.space import Space, Trained


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

    @cached_property
    def sorted_runners(self) -> dict[str, Runner]:
        """The rewritten graphs; they take the sizes of the active sub-network first."""
        return {
            mode: Runner(rewrite(program, self.plan, mode, self.infos), program.tensors, program.outputs)
            for mode, program in self.programs.items()
        }

    @cached_property
    def plain_runners(self) -> dict[str, Runner]:
        """The captured graphs as they came."""
        return {
            mode: Runner(fx.GraphModule(nn.Module(), program.graph), program.tensors, program.outputs)
            for mode, program in self.programs.items()
        }

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
