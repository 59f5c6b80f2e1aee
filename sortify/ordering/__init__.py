"""Which units and blocks the small sub-networks keep."""
