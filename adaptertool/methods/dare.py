"""DARE: drop elements of each change by chance, and scale what stays: δ → m·δ / density, with m = 1 as often as that.

Chance depends on the seed, the tensor's name, the source's number and the element alone: not on threads or blocks.
Then as in linear, or as in TIES.
"""

from __future__ import annotations

from adaptertool.methods.method import Array, Method, Place, always, weighted_sum
from adaptertool.methods.setting import DENSITY, SEED, Settings, only, setting_of
from adaptertool.methods.ties import elected
from adaptertool.numerics.counter_random import uniform


def dropped(change: Array, settings: Settings, place: Place, source: int) -> Array:
    """The change with elements dropped, the rest divided by the density."""

    density, seed = setting_of(settings, "density", source), only(settings, "seed")
    drawn = uniform(f"{seed}/{source}/{place.tensor}", place.first, place.size)
    kept: Array = (drawn < density) * (change / density)
    return kept


_SOURCE = 'L. Yu et al., "Language Models are Super Mario" (arXiv:2311.03099)'
_SETTINGS = {"density": DENSITY, "seed": SEED}

DARE_LINEAR, DARE_TIES = (
    Method(
        name=name,
        source=_SOURCE,
        combine=combine,
        settings=_SETTINGS,
        prune=dropped,
        sums=True,
        elementwise=always,
    )
    for name, combine in (("dare_linear", weighted_sum), ("dare_ties", elected))
)
