"""The Karcher mean: the point on the sphere from which the directions of all models are nearest, times their mean norm.

uᵢ = Tᵢ/‖Tᵢ‖. From the mean direction u on: t = Σ a·θᵢ/sin θᵢ·(uᵢ − cos θᵢ·u), cos θᵢ = ⟨u, uᵢ⟩, a = 1/n over those
that are not 0; u ← cos ‖t‖·u + sin ‖t‖·t/‖t‖; until ‖t‖ < tol, or max_iter times. The result is u·Σ ‖Tᵢ‖/n.

Source: "karcher" of mergekit 0.1.5, against which it is checked in the tests. The base takes part only as one
of the Tᵢ.
"""

from __future__ import annotations

import math

import numpy as np

from adaptertool.methods.geometry import Coefficients, combination, inner, norm, of_models, products
from adaptertool.methods.method import Array, Method, Survey, always
from adaptertool.methods.setting import Setting, only
from adaptertool.numerics.elementary import acos, cos, sin

MAX_ITER = Setting(number=int, least=1, allowed="a whole number from 1 on", default=10, help="Steps at most.")
TOL = Setting(number=float, above=0, most=1, allowed="a number over 0, up to 1", default=1e-5, help="Where to stop.")

_NONE = 1e-7  # a length of what may be nothing but roundings: these are relative to its square
_OPPOSITE = math.pi - 1e-7  # an angle; beyond it, uᵢ − cos θ·u is what rounding has left


def center(survey: Survey) -> Coefficients:
    """The coefficients of the mean; weights are equal, whatever is given."""
    gram, count = products(survey, of_changes=False), len(survey.weights)
    norms, tol = np.sqrt(np.diag(gram)), float(only(survey.settings, "tol"))
    valid = norms > tol
    if not valid.any():
        return of_models([0.0] * count)
    unit = np.where(valid, 1 / np.where(valid, norms, 1), 0.0)
    mean = unit / valid.sum()
    length = norm(gram, mean)
    u = mean / length if length >= max(tol, _NONE) else unit * (np.arange(count) == np.flatnonzero(valid)[0])
    for _ in range(int(only(survey.settings, "max_iter"))):
        step = _tangent(gram, u, unit, valid, tol)
        length = norm(gram, step)
        if length < tol:
            break
        u = cos(np.array(length)) * u + sin(np.array(length)) / length * step
        if (size := norm(gram, u)) > tol:
            u = u / size
    return of_models([float(norms.sum() / count * one) for one in u])


def _tangent(gram: Array, u: Array, unit: Array, valid: Array, tol: float) -> Array:
    """Σ a·θ/sin θ·(uᵢ − cos θ·u), as coefficients of the models; opposite directions pull to no side."""
    step = np.zeros(len(u))
    for number in np.flatnonzero(valid):
        own = unit * (np.arange(len(u)) == number)
        cosine = min(1.0, max(-1.0, inner(gram, u, own)))
        angle = acos(np.array(cosine))
        if tol <= angle <= _OPPOSITE:
            step += angle / sin(angle) / valid.sum() * (own - cosine * u)
    return step


KARCHER = Method(
    name="karcher",
    source='H. Karcher, "Riemannian center of mass and mollifier smoothing" (1977)',
    combine=combination,
    settings={"max_iter": MAX_ITER, "tol": TOL},
    survey=center,
    elementwise=always,
    least=2,
)
