"""Pure functions over tensors: correct rounding. No I/O."""
