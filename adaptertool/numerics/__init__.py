"""Pure functions of arrays: correct rounding, exact number systems, error bounds, factored SVD. No I/O."""
