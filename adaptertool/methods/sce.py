"""SCE: select, calculate, erase. Of the changes δᵢ the elements stay that differ most between the models; each change
has the weight that its mean square has among all; of each element those stay that have the elected sign.

Select: the share `select_topk` of the elements whose variance over i is not 0, of largest variance. wᵢ = mean(δᵢ²) over
their sum, or 1/n where that is below 10⁻⁶. With mᵢ = 1 where δᵢ has the sign of Σ δᵢ, + where that is 0, else 0:
W + Σ mᵢ·wᵢ·δᵢ/max(Σ mᵢ·wᵢ, 10⁻⁶). Weights are not asked.

Source: "sce" of mergekit 0.1.5, against which it is checked in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.methods.method import Array, Block, Found, Method, Survey
from adaptertool.methods.setting import Setting, Settings, only
from adaptertool.numerics.top_k import largest

_LEAST = 1e-6  # of a sum of weights

SELECT_TOPK = Setting(
    number=float,
    least=0,
    most=1,
    allowed="a share from 0 to 1",
    default=1.0,
    help="The share of elements, of largest variance between the models, that is selected.",
)


class Whole(NamedTuple):
    """What is known of a tensor before its first block: weights, and which elements are selected."""

    weights: Sequence[float]
    variance: float  # the least that is selected; of those that are equal to it all are


def _variance(changes: Sequence[Array]) -> Array:
    """The variance of each element over the changes; 0 where they are the same, whose mean may be rounded."""
    together = np.asarray(changes)
    variance: Array = np.where((together == together[0]).all(axis=0), 0.0, together.var(axis=0))
    return variance


def weighed(survey: Survey) -> Whole:
    """The least variance that is selected, then the weights of what is selected."""
    share = only(survey.settings, "select_topk")

    def variances(function: Callable[[Array], Found]) -> Iterable[Found]:
        return survey.each(lambda block: function(_variance(block.changes)))

    least = -1.0
    if share < 1:
        count = int(sum(variances(lambda part: int(np.count_nonzero(part)))) * share)
        least = largest(variances, count).bound

    def squares(block: Block) -> list[Array]:
        chosen = _variance(block.changes) >= least
        return [chosen * change * change for change in block.changes]

    size = sum(survey.each(lambda block: block.base.size))
    means = np.array(survey.sums(squares)) / max(size, 1)
    total = float(means.sum())
    weights = means / total if total >= _LEAST else np.full(len(means), 1 / len(means))
    return Whole([float(one) for one in weights], least)


def erased(
    base: Array, changes: Sequence[Array], _weights: Sequence[float], _settings: Settings, whole: Whole
) -> Array:
    """W + Σ mᵢ·wᵢ·δᵢ/Σ mᵢ·wᵢ of what is selected."""
    chosen = _variance(changes) >= whole.variance
    selected = [chosen * change for change in changes]
    total = base * 0
    for change in selected:
        total += change
    sign = np.where(total >= 0, 1.0, -1.0)
    total, divisor = base * 0, base * 0
    for change, weight in zip(selected, whole.weights, strict=True):
        agrees = sign * change > 0
        total += agrees * (weight * change)
        divisor += agrees * weight
    result: Array = base + total / np.maximum(divisor, _LEAST)
    return result


SCE = Method(
    name="sce",
    source='F. Wan et al., "FuseChat" (arXiv:2408.07990)',
    combine=erased,
    settings={"select_topk": SELECT_TOPK},
    survey=weighed,
)
