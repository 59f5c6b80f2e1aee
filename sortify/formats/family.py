"""Several sub-networks in one folder, with an index of what each costs and scores."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sortify.costs.cost import Cost
from sortify.errors import BudgetError, SortifyError
from sortify.files import is_taken, replacing
from sortify.formats.members import AUTO, NATIVE, Written, check_form, write_subnet
from sortify.models.scores import Chosen
from sortify.models.sorted_model import SortedModel
from sortify.native.nearest import nearest_native
from sortify.space.budget import Budget, Limit
from sortify.space.space import Subnet

INDEX = "index.json"
VERSION = 1


@dataclass(frozen=True)
class Member:
    """One sub-network of a family.

    Attributes:
        budget: as it was asked for.
        subnet: the one that was chosen; rule: by which rule, in words.
        cost: of one call.
        score: that an evaluation of these weights found; None where there was none.
        path: of the file or folder, from the family's folder.
        written: what is known of it; its `path` is that of before it was moved.
    """

    budget: str
    subnet: Subnet
    rule: str
    cost: Cost
    score: float | None
    path: str
    written: Written


@dataclass(frozen=True)
class Family:
    """What `extract_family` wrote.

    Attributes:
        folder: where.
        members: one for each budget, in the order of the budgets; those of one sub-network share its file.
        metric: the name of the score; None where there is none.
        sizes: the open sizes of the call that costs are of.
        notes: what else there is to say, one line each.
    """

    folder: Path
    members: tuple[Member, ...]
    metric: str | None
    sizes: dict[str, int]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The index, as JSON values."""
        return {
            "version": VERSION,
            "sizes": self.sizes,
            "metric": self.metric,
            "members": [
                {
                    "budget": member.budget,
                    "name": str(member.subnet),
                    "subnet": member.subnet.to_json(),
                    "flops": member.cost.flops,
                    "params": member.cost.params,
                    "score": member.score,
                    "path": member.path,
                    "format": member.written.form,
                    "difference": member.written.error,
                    "use": member.written.use,
                }
                for member in self.members
            ],
        }


def extract_family(
    model: SortedModel,
    budgets: Sequence[Budget],
    target: str | Path,
    *,
    metric: str = "flops",
    form: str = AUTO,
    native: bool = False,
    prepare: Callable[[Subnet], None] | None = None,
    **sizes: int,
) -> Family:
    """Write the sub-network for each budget, and `index.json`; the folder appears when all of it is written.

    Args:
        model: the sorted model.
        budgets: one for each member; each as for `SortedModel.choose`.
        target: a folder that is not there yet, or is empty.
        metric: what a budget without a unit is about.
        form: as for `write_subnet`.
        native: for each budget the nearest sub-network that is a model of the original's own class.
        prepare: called with each sub-network before it is cut out, such as to measure its batch-norm statistics.
        sizes: open sizes to cost at, such as `batch=1`; else those of the example inputs.

    Raises:
        BudgetError: there is no budget, or one that nothing fits; nothing has been written then.
        NativeError: no sub-network within a budget is a model of the original's class.
        SortifyError: there is something already, or as `write_subnet`.
    """
    target, form = Path(target), NATIVE if native else form
    check_form(form)
    if is_taken(target):
        raise SortifyError(f"{target}: there is something already; name a folder that is new or empty")
    if not budgets:
        raise BudgetError("a family needs budgets, such as 0.25, 0.5 and 1")
    texts = [_text(budget) for budget in budgets]
    chosen = [_choose(model, budget, metric, native=native, **sizes) for budget in budgets]
    names = _file_names(texts, chosen)
    written = dict[Subnet, Written]()
    try:
        with replacing(target) as draft:
            draft.mkdir()
            for subnet in dict.fromkeys(each.subnet for each in chosen):
                if prepare is not None:
                    prepare(subnet)
                written[subnet] = write_subnet(model, subnet, draft / names[subnet], form)
            asked = zip(texts, chosen, strict=True)
            members = [_member(model, text, each, written[each.subnet], sizes) for text, each in asked]
            scores = model.scores
            family = Family(
                target,
                tuple(members),
                scores.metric if scores is not None and any(each.score is not None for each in members) else None,
                {**model.open_sizes, **sizes},
                tuple(_notes(members)),
            )
            (draft / INDEX).write_text(json.dumps(family.to_json(), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise SortifyError(f"{target}: cannot be written ({error}); earlier files are untouched") from error
    return family


def _choose(model: SortedModel, budget: Budget, metric: str, *, native: bool, **sizes: int) -> Chosen:
    """The sub-network for a budget, as `SortedModel.choose` or as `nearest_native` finds it, and by which rule."""
    if not native:
        return model.choose(budget, metric, **sizes)
    subnet = nearest_native(model, budget, metric, **sizes).subnet
    return Chosen(subnet, "the largest within the budget that is a model of the original's class")


def _member(model: SortedModel, budget: str, chosen: Chosen, written: Written, sizes: Mapping[str, int]) -> Member:
    scores = model.scores
    return Member(
        budget,
        chosen.subnet,
        chosen.rule,
        model.cost(chosen.subnet, **sizes),
        scores.rows.get(chosen.subnet) if scores is not None else None,
        written.path.name,
        written,
    )


def _text(budget: Budget | Limit) -> str:
    """A budget as people write it."""
    if isinstance(budget, (str, float, int, Limit)):
        return str(budget).strip()
    return ", ".join(map(_text, budget))


def _file_names(texts: Sequence[str], chosen: Sequence[Chosen]) -> dict[Subnet, str]:
    """For each sub-network its first budget as the name of a file without an ending: `0.25`, `2.5M-params`."""
    names = dict[Subnet, str]()
    for text, each in zip(texts, chosen, strict=True):
        name = re.sub(r"[^A-Za-z0-9.]+", "-", text.replace("%", "-percent")).strip("-.") or "member"
        names.setdefault(each.subnet, name if name not in names.values() else f"{name}-{len(names)}")
    return names


def _notes(members: Sequence[Member]) -> Iterator[str]:
    """Budgets that give the same sub-network, and members that are no folder of their library."""
    for subnet in dict.fromkeys(member.subnet for member in members):
        alike = [member for member in members if member.subnet == subnet]
        if len(alike) > 1:
            budgets = " and ".join(member.budget for member in alike)
            yield f"budgets {budgets} give the same sub-network, {subnet}: it is written once"
        if alike[0].written.note:
            yield f"{alike[0].path} is {alike[0].written.note}"
