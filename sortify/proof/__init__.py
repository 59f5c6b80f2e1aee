"""Checks by running: rewritten = original, permutations, slice = extraction, open sizes."""
