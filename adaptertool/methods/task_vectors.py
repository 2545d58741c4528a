"""Task arithmetic in mergekit's family: of each change a part is dropped, the rest scaled, weighted and added up.

τᵢ = sparse(Tᵢ − W);  D = λ·Σ mᵢ·wᵢ·τᵢ / n;  W + D. Without an election mᵢ = 1; else, for each element,
s = sign(Σ wᵢ·τᵢ), + where that is 0, and mᵢ = 1 where wᵢ·τᵢ has that sign, else 0. With `normalize` n = Σ mᵢ·wᵢ, or 1
where that is 0 (without an election: below 10⁻⁸); else n = 1. With `rescale` τᵢ is multiplied by Σ|Tᵢ − W| / Σ|τᵢ| of
the whole tensor, unless one of both is below 10⁻⁷.

Sparse: of the largest magnitude (ties), by chance (dare, della), without the smallest and the largest (breadcrumbs).
Otherwise than in `ties` and `dare_*`, which are PEFT's, weights come before the election.

Source: mergekit 0.1.5, `GeneralizedTaskArithmeticMerge`, against which it is checked in the tests, in float64. There
DARE and DELLA draw other numbers of the same distribution; and DELLA's ranks are among the elements of the second
dimension of a tensor of more than two, here of the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptertool.methods.method import Array, Method, Place, Survey, always
from adaptertool.methods.setting import (
    DENSITY,
    LAMBDA,
    NORMALIZE,
    RESCALE,
    SEED,
    Setting,
    Settings,
    only,
    setting_of,
)
from adaptertool.numerics.counter_random import uniform

_LEAST_SUM = 1e-7  # of magnitudes, for a change to be rescaled
_LEAST_WEIGHT = 1e-8  # the sum of weights, for the sum to be divided by it

GAMMA = Setting(
    number=float,
    least=0,
    most=1,
    allowed="a share from 0 to 1",
    default=0.01,
    each=True,
    help="The share of each change, of the largest, that goes.",
)
EPSILON = Setting(
    number=float,
    least=0,
    most=1,
    allowed="a share from 0 to 1",
    default=0.15,
    each=True,
    help="How far chances lie around the density.",
)


def scales(survey: Survey) -> list[float] | None:
    """What makes up for what was dropped of each change; None: nothing does."""
    if not only(survey.settings, "rescale"):
        return None
    both = survey.sums(lambda block: map(abs, [*block.whole, *block.changes]))
    before, after = np.array(both).reshape(2, len(survey.weights))
    kept = (before >= _LEAST_SUM) & (after >= _LEAST_SUM)
    return [float(was / now) if one else 1.0 for was, now, one in zip(before, after, kept, strict=True)]


def _weighted(changes: Sequence[Array], weights: Sequence[float], whole: list[float] | None) -> list[Array]:
    times = [1.0] * len(weights) if whole is None else whole
    return [weight * (change * scale) for change, weight, scale in zip(changes, weights, times, strict=True)]


def added(
    base: Array, changes: Sequence[Array], weights: Sequence[float], settings: Settings, whole: list[float] | None
) -> Array:
    """W + λ·Σ wᵢ·τᵢ / n."""
    total = base * 0
    for one in _weighted(changes, weights, whole):
        total += one
    divisor = sum(weights)
    if only(settings, "normalize") and abs(divisor) >= _LEAST_WEIGHT:
        total /= divisor
    result: Array = base + only(settings, "lambda") * total
    return result


def elected(
    base: Array, changes: Sequence[Array], weights: Sequence[float], settings: Settings, whole: list[float] | None
) -> Array:
    """W + λ·Σ mᵢ·wᵢ·τᵢ / n, of those that have the elected sign."""
    weighted = _weighted(changes, weights, whole)
    total = base * 0
    for one in weighted:
        total += one
    sign = np.where(total >= 0, 1.0, -1.0)
    total, divisor = base * 0, base * 0
    for one, weight in zip(weighted, weights, strict=True):
        agrees = sign * one > 0
        total += agrees * one
        divisor += agrees * weight
    if only(settings, "normalize"):
        total /= np.where(divisor == 0, 1, divisor)
    result: Array = base + only(settings, "lambda") * total
    return result


def by_chance(change: Array, settings: Settings, place: Place, source: int) -> Array:
    """The change of which elements stay as often as `density` says; what stays is not scaled here."""
    drawn = uniform(f"{only(settings, 'seed')}/{source}/{place.tensor}", place.first, place.size)
    kept: Array = (drawn < setting_of(settings, "density", source)) * change
    return kept


def by_rank(change: Array, settings: Settings, place: Place, source: int) -> Array:
    """The change of which an element stays with the chance density − ε + 2·ε·(r − 1)/(n − 1), where r is its rank by
    magnitude among the n of its row, from 1 for the smallest; among equals the first is the smaller."""
    density, epsilon = setting_of(settings, "density", source), setting_of(settings, "epsilon", source)
    if density >= 1:
        return change
    rows = change.reshape(-1, place.columns)
    order = np.argsort(abs(rows), axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(place.columns)[None], axis=1)
    chance = (density - epsilon) + ranks / max(1, place.columns - 1) * 2 * epsilon
    drawn = uniform(f"{only(settings, 'seed')}/{source}/{place.tensor}", place.first, place.size)
    kept: Array = (drawn < chance.reshape(-1)) * change
    return kept


def _chances(_weights: Sequence[float], settings: Settings) -> str | None:
    several = [settings[name] for name in ("density", "epsilon")]
    count = max(len(one) if isinstance(one, tuple) else 1 for one in several)
    for source in range(count):
        density, epsilon = (setting_of(settings, name, source) for name in ("density", "epsilon"))
        if density < 1 and not epsilon < density < 1 - epsilon:
            return f"density {density:g} and epsilon {epsilon:g} leave chances outside of 0 to 1"
    return None


_MIXED = {"normalize": NORMALIZE, "lambda": LAMBDA}
_SPARSE = {"density": DENSITY, "rescale": RESCALE} | _MIXED
_ARITHMETIC = 'G. Ilharco et al., "Editing models with task arithmetic" (arXiv:2212.04089)'
_TIES = 'P. Yadav et al., "TIES-Merging" (arXiv:2306.01708)'
_DARE = 'L. Yu et al., "Language Models are Super Mario" (arXiv:2311.03099)'
_BREADCRUMBS = 'M. Davari, E. Belilovsky, "Model Breadcrumbs" (arXiv:2312.06795)'
_DELLA = 'P. T. Deep et al., "DELLA-Merging" (arXiv:2406.11617)'

TASK_ARITHMETIC = Method(name="task_arithmetic", source=_ARITHMETIC, combine=added, settings=_MIXED, elementwise=always)
MERGEKIT_TIES = Method(
    name="mergekit_ties",
    source=_TIES,
    combine=elected,
    settings=_SPARSE,
    defaults={"density": 1.0, "normalize": True},
    survey=scales,
    trims="density",
    fewest=1,
    elementwise=always,
)
_CHANCE = _SPARSE | {"seed": SEED}
MERGEKIT_DARE_LINEAR, MERGEKIT_DARE_TIES = (
    Method(
        name=name,
        source=_DARE,
        combine=combine,
        settings=_CHANCE,
        defaults={"density": 1.0, "rescale": True},
        survey=scales,
        prune=by_chance,
        elementwise=always,
    )
    for name, combine in (("mergekit_dare_linear", added), ("mergekit_dare_ties", elected))
)
BREADCRUMBS, BREADCRUMBS_TIES = (
    Method(
        name=name,
        source=_BREADCRUMBS,
        combine=combine,
        settings=_SPARSE | {"gamma": GAMMA},
        defaults={"density": 1.0},
        survey=scales,
        trims="density",
        skips="gamma",
        elementwise=always,
    )
    for name, combine in (("breadcrumbs", added), ("breadcrumbs_ties", elected))
)
DELLA, DELLA_LINEAR = (
    Method(
        name=name,
        source=_DELLA,
        combine=combine,
        settings=_CHANCE | {"epsilon": EPSILON},
        defaults={"density": 1.0, "rescale": True, "normalize": combine is elected},
        survey=scales,
        prune=by_rank,
        rows=True,
        refuses=_chances,
    )
    for name, combine in (("della", elected), ("della_linear", added))
)
