"""Methods that see each tensor of each model as one vector: what they make is a linear combination of the models, whose
coefficients follow from the inner products of these. So two passes do, and a tensor is never held whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.methods.method import Array, Block, Survey
from adaptertool.methods.setting import Settings


class Coefficients(NamedTuple):
    """W·base + Σ sources[i]·(Tᵢ − W)."""

    base: float
    sources: Sequence[float]


def combination(
    base: Array, changes: Sequence[Array], _weights: Sequence[float], _settings: Settings, whole: Coefficients
) -> Array:
    """The linear combination of a block, in order."""
    result = whole.base * base
    for change, times in zip(changes, whole.sources, strict=True):
        result += times * change
    return result


def of_models(times: Sequence[float]) -> Coefficients:
    """Σ times[i]·Tᵢ."""
    return Coefficients(float(sum(times)), times)


def of_changes(times: Sequence[float]) -> Coefficients:
    """W + Σ times[i]·(Tᵢ − W)."""
    return Coefficients(1.0, times)


def products(survey: Survey, *, of_changes: bool) -> Array:
    """The inner products of all Tᵢ, or of all Tᵢ − W, float64 (n, n); added up block by block in order."""

    def pairs(block: Block) -> list[Array]:
        vectors = block.changes if of_changes else [block.base + change for change in block.changes]
        return [one * other for one, other in itertools.combinations_with_replacement(vectors, 2)]

    count = len(survey.weights)
    gram = np.zeros((count, count))
    gram[np.triu_indices(count)] = survey.sums(pairs)
    upper = np.triu(gram, 1)
    full: Array = upper + upper.T + np.diag(np.diag(gram))
    return full


def norm(gram: Array, times: Array) -> float:
    """‖Σ times[i]·vᵢ‖ for vectors of these inner products."""
    return float(np.sqrt(max(0.0, _quadratic(gram, times, times))))


def _quadratic(gram: Array, one: Array, other: Array) -> float:
    """Σ one[i]·gram[i, j]·other[j], in an order of its own: BLAS has another on every machine."""
    return float(
        sum(float(a * g * b) for a, row in zip(one, gram, strict=True) for g, b in zip(row, other, strict=True))
    )


def inner(gram: Array, one: Array, other: Array) -> float:
    """⟨Σ one[i]·vᵢ, Σ other[j]·vⱼ⟩."""
    return _quadratic(gram, one, other)


Weigh = Callable[[Array, Sequence[float], Settings], Coefficients]  # inner products, weights, settings
