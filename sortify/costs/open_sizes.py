"""Sizes that a call decides: the batch, a sequence length, the height of a picture, and what follows from them.

Costs are kept as polynomials in these sizes. A size that is no polynomial of the others (`(sequence//2) + 1`) is kept
as its rule, and computed by that rule; a rule that is not understood is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sortify.errors import InputError
from sortify.graph.arithmetic import value_of


@dataclass(frozen=True)
class OpenSize:
    """One size that the captured graph leaves open.

    Attributes:
        name: such as `batch` or `sequence`, or `x_2` for dimension 2 of the input `x`.
        size: what it is at the example inputs.
        rule: how it follows from the others, such as `(sequence//2) + 1`; empty for one that the caller chooses.
    """

    name: str
    size: int
    rule: str = ""


Opens = tuple[OpenSize, ...]


def natural_name(label: str, tensor: torch.Tensor, dim: int) -> str:
    """What people call an open dimension of an input; `label` is the input's own name."""
    if dim == 0:
        return "batch"
    sequence = dim == 1 and tensor.dim() == 2 and not tensor.is_floating_point()
    return "sequence" if sequence else re.sub(r"\W", "_", f"{label}_{dim}")


def chosen_by_caller(opens: Opens) -> dict[str, int]:
    """The open sizes that a call decides, as they are at the example inputs."""
    return {each.name: each.size for each in opens if not each.rule}


def sizes_at(opens: Opens, given: Mapping[str, int]) -> dict[str, int]:
    """Every open size, where those in `given` have the given value and the others that of the example inputs.

    Raises:
        InputError: a name is no open size, a value is no positive integer, or a rule cannot be computed.
    """
    known = chosen_by_caller(opens)
    for name, value in given.items():
        if name not in known:
            told = ", ".join(f"{each} ({size})" for each, size in known.items()) or "none: all sizes are fixed"
            raise InputError(f"{name}={value}: the model has no open size {name!r}; it has {told}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: expected a size, a whole number from 1")
    values = known | dict(given)
    for each in opens:
        if each.rule:
            values[each.name] = each.size if values == known else _followed(each, values)
            known[each.name] = each.size
    return values


def _followed(size: OpenSize, values: Mapping[str, int]) -> int:
    try:
        return value_of(size.rule, values)
    except (ValueError, ArithmeticError) as error:
        raise InputError(
            f"a size of this model, {size.rule}, cannot be computed at these sizes ({error}): "
            f"its costs are known at the sizes of the example inputs only"
        ) from None


def opens_from_json(data: Sequence[Any]) -> Opens:
    """Read what `opens_to_json` gave."""
    return tuple(OpenSize(str(name), int(size), str(rule)) for name, size, rule in data)


def opens_to_json(opens: Opens) -> list[list[Any]]:
    """Open sizes as JSON values."""
    return [[each.name, each.size, each.rule] for each in opens]
