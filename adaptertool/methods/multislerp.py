"""Interpolation between several directions on the sphere: from their mean direction along the mean of their tangents.

uᵢ = vᵢ/(‖vᵢ‖ + ε); m = Σ wᵢ·uᵢ over its norm; t = Σ wᵢ·(uᵢ − ⟨uᵢ, m⟩·m); with a = ‖t‖ + ε the result is
(cos a·m + sin a/a·t)·Σ wᵢ·‖vᵢ‖. vᵢ = Tᵢ − W, and W is added; `nuslerp` and this of whole models: `around_zero`.
Weights are divided by their sum with `normalize`. Where Σ wᵢ·uᵢ is shorter than ε: for two vᵢ w₀·v₀ + w₁·v₁; for more
there is no such point.

Source: "multislerp" of mergekit 0.1.5, against which it is checked in the tests.
"""

from __future__ import annotations

import numpy as np

from adaptertool.methods.geometry import Coefficients, combination, inner, norm, of_changes, of_models, products
from adaptertool.methods.method import Method, Survey, always
from adaptertool.methods.setting import NORMALIZE, Setting, no_sum, only, scales
from adaptertool.numerics.elementary import cos, sin

_EPSILON = 1e-8

AROUND_ZERO = Setting(
    number=bool,
    allowed="true or false",
    default=False,
    help="Of whole models, not of their changes.",
)


def between_all(survey: Survey) -> Coefficients:
    """The coefficients of the point; NaN where there is none."""
    models = bool(only(survey.settings, "around_zero"))
    put = of_models if models else of_changes
    weights = np.array(survey.weights)
    if len(weights) == 1:
        return put([1.0])
    gram = products(survey, of_changes=not models)
    if only(survey.settings, "normalize"):
        weights = weights / weights.sum()
    norms = np.sqrt(np.diag(gram))
    if not norms.any():  # nobody changes this tensor
        return put([0.0] * len(norms))
    unit = 1 / (norms + _EPSILON)
    mean = weights * unit
    if (length := norm(gram, mean)) < _EPSILON:
        return put(list(map(float, weights if len(weights) == 2 else np.full(len(weights), np.nan))))
    mean = mean / length
    tangent = weights * unit
    for number, weight in enumerate(weights):
        own = unit * (np.arange(len(unit)) == number)
        tangent = tangent - weight * inner(gram, own, mean) * mean
    angle = np.array(norm(gram, tangent) + _EPSILON)
    point = (cos(angle) * mean + sin(angle) / angle * tangent) * (norms * weights).sum()
    return put(list(map(float, point)))


MULTISLERP = Method(
    name="multislerp",
    source='C. Goddard, "Multi-SLERP" (mergekit)',
    combine=combination,
    settings={"normalize": NORMALIZE, "around_zero": AROUND_ZERO},
    defaults={"normalize": True},
    refuses=no_sum,
    moves=scales,
    survey=between_all,
    elementwise=always,
)
