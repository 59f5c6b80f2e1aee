"""Data sets that a path names, and batches of them."""
