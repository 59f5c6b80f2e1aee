"""The rules, by family; importing this package fills the table."""

from sortify.axes.rules import (
    contraction,
    images,
    indexing,
    layouts,
    pointwise,
    products,
    recurrent,
    reductions,
    scattering,
    shapes,
)
from sortify.axes.rules.table import RULES, Call, Literal, rule

# Ops that sum products over a dimension.
CONTRACTIONS = frozenset(
    name
    for name, function in RULES.items()
    if function.__module__ in (contraction.__name__, products.__name__, recurrent.__name__)
)

__all__ = [
    "CONTRACTIONS",
    "RULES",
    "Call",
    "Literal",
    "contraction",
    "images",
    "indexing",
    "layouts",
    "pointwise",
    "products",
    "recurrent",
    "reductions",
    "rule",
    "scattering",
    "shapes",
]
