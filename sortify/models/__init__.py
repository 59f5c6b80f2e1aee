"""The sorted model: captured whole or in parts, with its statistics, checkpoints and profiles."""
