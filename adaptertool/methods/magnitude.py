"""Magnitude pruning: W + Σ w_i·trim(δ_i); of each tensor the share `density` of largest magnitude stays as it is."""

from adaptertool.methods.method import Method, always, weighted_sum
from adaptertool.methods.setting import DENSITY

MAGNITUDE_PRUNE = Method(
    name="magnitude_prune",
    source="`magnitude_prune` of PEFT 0.21.2, against which it is checked in the tests",
    combine=weighted_sum,
    settings={"density": DENSITY},
    trims="density",
    sums=True,
    elementwise=always,
)
