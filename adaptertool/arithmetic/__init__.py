"""The arithmetic of one tensor, block by block: edits applied in floats, each element rounded once and correctly."""
