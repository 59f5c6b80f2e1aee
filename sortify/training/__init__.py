"""All nested sub-networks at once (SortedNet, arXiv 2309.00255)."""
