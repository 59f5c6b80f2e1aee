"""Sub-networks, what there is to choose from, and the one for a budget."""
