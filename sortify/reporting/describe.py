"""A sorted model in words and numbers: what `sortify inspect` prints and `sortify report` writes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from sortify.models.sorted_model import SortedModel
from sortify.plan import Axis, Frozen
from sortify.space.profile import Profile
from sortify.space.space import Subnet

# -- sub-networks -----------------------------------------------------------------------------------------------------


def ends(model: SortedModel) -> dict[str, Subnet]:
    """The full sub-network, half of every group, and the smallest."""
    space = model.space
    half = space.subnet(**dict.fromkeys(space.groups, 0.5))
    return {"full": space.full, "half of all": half, "smallest": space.smallest}


def kept(model: SortedModel, subnet: Subnet) -> list[tuple[str, str]]:
    """What a sub-network keeps: (`heads`, `6 of 12 (12 axes)`), (`depth`, `of layers the first 6 of 12 blocks`)."""
    sizes, depths = dict(subnet.sizes), dict(subnet.depths)
    kinds: dict[str, Counter[tuple[int, int]]] = {}
    for axis in model.axes.values():
        kinds.setdefault(axis.kind, Counter())[axis.size, sizes[axis.name]] += 1
    told = []
    for kind, found in kinds.items():
        parts = (
            f"{n} of {size}{f' ({count} axes)' if count > 1 else ''}" for (size, n), count in sorted(found.items())
        )
        told.append((kind, ", ".join(parts)))
    which = "most important" if model.blocks_ranked else "first"
    for chain in model.chains.values():
        told.append(("depth", f"of {chain.name} the {which} {depths[chain.name]} of {len(chain.blocks)} blocks"))
    return told


# -- axes -------------------------------------------------------------------------------------------------------------


def alike(axes: Sequence[Axis]) -> list[list[Axis]]:
    """Axes of one kind, size and number of tensors whose names differ in numbers only, in the order of the first."""
    found: dict[object, list[Axis]] = {}
    for axis in axes:
        key = re.sub(r"\d+", "*", axis.name), axis.kind, axis.size, axis.levels, len(axis.parameters)
        found.setdefault(key, []).append(axis)
    return list(found.values())


def common_name(names: Sequence[str]) -> str:
    """Names that differ in numbers only as one pattern: a star for the numbers that differ."""
    parts = [re.split(r"(\d+)", name) for name in names]
    return "".join(own[0] if len(set(own)) == 1 else "*" for own in zip(*parts, strict=True))


def parameter_counts(model: SortedModel) -> dict[str, int]:
    """Elements of every parameter, by its original name."""
    return {name: tensor.numel() for name, tensor in model.tensors.items() if isinstance(tensor, torch.nn.Parameter)}


def elastic_share(model: SortedModel) -> float:
    """The share of the parameters that lie in tensors with an elastic dimension."""
    counts = parameter_counts(model)
    carried = {name for axis in model.axes.values() for name in axis.parameters}
    return sum(counts.get(name, 0) for name in carried) / max(1, sum(counts.values()))


# -- what is fixed ----------------------------------------------------------------------------------------------------


def frozen_reasons(model: SortedModel) -> list[tuple[str, int]]:
    """Why something is not elastic, and how often; the most frequent reason first."""
    return Counter(map(reason, model.frozen)).most_common()


def reason(frozen: Frozen) -> str:
    """A reason without its place: the same reason in many modules is told once."""
    return f"{frozen.op}: {frozen.why}" if frozen.op else frozen.why


# -- what was done with it --------------------------------------------------------------------------------------------


def order_text(model: SortedModel) -> str:
    """By what units and blocks were sorted, as an addition to a line; nothing where they were not."""
    return f"; ordered by {model.ordered}{', blocks too' if model.blocks_ranked else ''}" if model.ordered else ""


def trained_text(model: SortedModel) -> str:
    """The levels that were trained, on one line."""
    trained = model.space.trained
    if trained is None:
        return "nothing yet"
    told = [f"{group} {', '.join(f'{x:g}' for x in levels)}" for group, levels in trained.levels]
    told += [f"every size of {', '.join(trained.every)}"] if trained.every else []
    told += [f"untied {', '.join(trained.untied)}"] if trained.untied else []
    told += [f"multiples of {trained.multiple}"] if trained.multiple > 1 else []
    return "; ".join(told) or "full only"


def sizes_text(sizes: Mapping[str, int]) -> str:
    """`batch=1, sequence=128`."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def profile_text(profile: Profile) -> str:
    """Where a profile was measured and how well it predicts, on one line."""
    facts = dict(profile.machine)
    place = ", ".join(f"{name} {facts[name]}" for name in ("device", "processor", "threads", "dtype") if name in facts)
    sizes = sizes_text(dict(profile.sizes))
    fits = ((name, fit) for name, fit in (("latency", profile.latency), ("memory", profile.memory)))
    off = "; ".join(f"{name} {fit.error:.1%} off in the median, {fit.worst:.1%} at most" for name, fit in fits)
    return f"profile ({place}{'; ' + sizes if sizes else ''}): each of {len(profile.rows)} from the others: {off}"
