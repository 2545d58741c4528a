"""Pure functions over tensors: correct rounding; later low rank and error metrics. No I/O."""
