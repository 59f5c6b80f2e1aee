"""Nested values, sizes as expressions, calls and graphs as JSON, names of dimensions and operations."""
