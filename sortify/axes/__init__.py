"""The dimension algebra: expressions, one rule per op, analysis, names."""
