"""Roundings to storage that are not to nearest, and how they are told."""

from __future__ import annotations

import numpy as np

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.numerics.rounding import Array

_NEARLY_ALL = 0.999  # share of the elements
_ENOUGH = 64  # elements
_FEW = 0.01  # share of differences that one rounding in the place of another makes at least, where it can be told


def neighbours(exact: Array, dtype: str) -> tuple[Array, Array]:
    """The numbers of `dtype` on both sides of each value, that nearer to 0 first; twice itself where it is one."""
    near = rounded(exact, dtype)
    codec = BY_DTYPE[dtype]
    back, word = abs(doubles(near, dtype)), codec.words(near)
    inner = np.where(back > abs(exact), word - word.dtype.type(1), word).astype(word.dtype)
    outer = np.where(back < abs(exact), word + word.dtype.type(1), word).astype(word.dtype)
    return doubles(inner.view(codec.held), dtype), doubles(outer.view(codec.held), dtype)


def is_truncated(found: Array, exact: Array, dtype: str) -> bool:
    """Whether what is stored was cut off towards 0, not rounded to nearest."""
    inner, outer = neighbours(exact, dtype)
    up = abs(exact - inner) > abs(outer - exact)  # where it makes a difference
    return bool(np.mean(found == inner) >= _NEARLY_ALL and np.mean(up) >= _FEW)


def is_stochastic(found: Array, exact: Array, dtype: str) -> bool:
    """Whether values were rounded to either side by chance, to the nearer one more often (stochastic rounding).

    With f the place of a value between its neighbours, 0 to 1, the outer one is taken with probability f, so the
    farther one in Σ min(f, 1 − f) elements.
    """
    inner, outer = neighbours(exact, dtype)
    gap = outer - inner
    between = np.flatnonzero(gap)
    if len(between) < _ENOUGH or np.mean((found == inner) | (found == outer)) < _NEARLY_ALL:
        return False
    place = ((exact - inner).ravel()[between] / gap.ravel()[between]).clip(0, 1)
    far = (found == outer).ravel()[between] != (place > 0.5)
    expected = np.minimum(place, 1 - place)
    deviation = 4 * np.sqrt(np.sum(expected * (1 - expected))) + 0.05 * expected.sum()
    return bool(np.mean(far) >= _FEW and abs(far.sum() - expected.sum()) <= deviation)
