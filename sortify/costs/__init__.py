"""Exact costs, of one sub-network and of millions."""
