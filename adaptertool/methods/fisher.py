"""Fisher-weighted interpolation: ((1 − α)·F₀·θ₀ + α·F₁·θ₁) / ((1 − α)·F₀ + α·F₁), for each element.

F₀ and F₁ say how sure each model is of each of its parameters: the diagonals of their Fisher information, or any other
weights ≥ 0. Where both are 0 nothing is known of either, and it is the plain (1 − α)·θ₀ + α·θ₁; so α = 0 is θ₀ and
α = 1 is θ₁ everywhere. It is no Method, since each of its two models comes with a second checkpoint, of F: plans would
have to say for every tensor of every source where that lies, which here are two references in a step.
Source: M. Matena, C. Raffel, "Merging Models with Fisher-Weighted Averaging" (arXiv:2111.09832).
"""

from __future__ import annotations

import numpy as np

from adaptertool.methods.method import Array


def between(base: Array, tuned: Array, ours: Array, theirs: Array, alpha: float) -> Array:
    """The interpolation of float64 arrays, for α in 0..1; ours and theirs: F₀ and F₁, finite and not negative.

    Of the ratios of F alone, so that neither their products with θ nor their sums leave the range of float64. Where
    θ₀ = θ₁, or nothing is added to θ₀, it is θ₀, sign of zero included.
    """
    if alpha in (0, 1):
        mixture: Array = tuned if alpha else base
    else:
        unknown = (ours == 0) & (theirs == 0)
        with np.errstate(all="ignore"):  # x/0 is infinite, and its weight then 0 or 1
            of_tuned = alpha / (alpha + (1 - alpha) * (abs(ours) / abs(theirs)))
            of_base = (1 - alpha) / ((1 - alpha) + alpha * (abs(theirs) / abs(ours)))
        of_tuned[unknown], of_base[unknown] = alpha, 1 - alpha
        mixture = of_base * base + of_tuned * tuned
    return np.where((base == tuned) | (mixture == base), base, mixture)
