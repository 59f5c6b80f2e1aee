"""Modules made of graphs, and sub-networks that stand on their own."""
