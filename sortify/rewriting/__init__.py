"""The slice node, and the graph in which every elastic dimension is one."""
