"""A sub-network as its own library knows it: the original class with smaller settings."""
