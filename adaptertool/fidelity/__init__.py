"""How near what is stored, and what is computed with it, comes to the formula in real numbers."""
