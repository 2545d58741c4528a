"""DARE: drop elements of each change by chance, and scale what stays: δ → m·δ / density, with m = 1 as often as that.

Chance depends on the seed, the tensor's name, the source's number and the element alone: not on threads or blocks.
Source: L. Yu et al., "Language Models are Super Mario" (arXiv:2311.03099); then as in linear, or as in TIES.
"""

from __future__ import annotations

from adaptertool.methods.method import Array, Method, Place, weighted_sum
from adaptertool.methods.ties import elected
from adaptertool.numerics.counter_random import uniform


def dropped(change: Array, density: float, place: Place, source: int) -> Array:
    """The change with elements dropped, the rest divided by the density."""

    drawn = uniform(f"{place.seed}/{source}/{place.tensor}", place.first, place.size)
    kept: Array = (drawn < density) * (change / density)
    return kept


DARE_LINEAR = Method("dare_linear", weighted_sum, prune=dropped)
DARE_TIES = Method("dare_ties", elected, prune=dropped)
