"""Why a dimension is fixed, where that was found, and what would free it.

Most dimensions are fixed by what the model computes, and nothing frees them. The exceptions stand in one table, found
by how the reason begins.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where something happens: the op, the path of its module, the source line as `file:line`; '' where unknown."""

    op: str
    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        return self.op + (f" in {self.module}" if self.module else "") + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something is fixed, where that was found, and what would free it if the reason does not tell."""

    why: str
    place: Place = Place("")
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.why}" if self.place.op else self.why


NATURE = "nothing: the op needs this dimension as it is"
BOUNDARY = "nothing: whoever calls the model relies on it"
OUTPUT = "its name in free=, if whoever calls the model can do with a smaller output"
UNUSED = "no op uses it"
REMEDIES = {
    "it is a dimension of the input": BOUNDARY,
    "it is a dimension of the output": OUTPUT,
    "this op has no rule": "a rule for the op: sortify.register_rule",
    "its rule does not apply": "another spelling in the model, or a rule of your own: sortify.register_rule",
    "the result of its rule does not fit": "a right rule for the op: sortify.register_rule(..., replace=True)",
    "its module is opaque": "leave the module out of opaque=",
    "the caller fixed it": "leave the pattern out of fix=",
    UNUSED: "nothing to free: the model runs without it",
    "its size is only known when the model runs": "example inputs for which the size is the same in every call",
    "it is joined with a part whose size is only known": "example inputs for which the size is the same in every call",
    "it is split into pieces of unknown size": "sizes written in the model, instead of computed from its inputs",
    "it is repeated an unknown number of times": "sizes written in the model, instead of computed from its inputs",
    "it failed its proof": "a right rule for the ops that it passes: please report the model",
    "sizes ": "sizes in the source line that follow from a tensor's shape",
    "factors ": "sizes in the source line that follow from a tensor's shape",
    "segments ": "sizes in the source line that follow from a tensor's shape",
}


def remedy(why: str) -> str:
    """What the user can do about a fixed dimension; says so where nothing can be done."""
    return next((advice for start, advice in REMEDIES.items() if why.startswith(start)), NATURE)
