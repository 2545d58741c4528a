"""Adapters from adapters, and from the difference of two checkpoints: sums, truncation, extraction."""
