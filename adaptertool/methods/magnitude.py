"""Magnitude pruning: W + Σ w_i·trim(δ_i); of each tensor the share `density` of largest magnitude stays as it is.

Checked against `magnitude_prune` of PEFT 0.21.2 in the tests.
"""

from adaptertool.methods.method import Method, weighted_sum

MAGNITUDE_PRUNE = Method("magnitude_prune", weighted_sum, trims=True)
