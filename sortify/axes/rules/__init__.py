"""The rules, by family; importing this package fills the table."""

from sortify.axes.rules import contraction, indexing, pointwise, reductions, shapes
from sortify.axes.rules.table import RULES, Call, Literal, rule

__all__ = ["RULES", "Call", "Literal", "contraction", "indexing", "pointwise", "reductions", "rule", "shapes"]
