"""Rows of a matrix that is a sum of few waves: Σ c[k]·cos(2π(o·u[k]/rows + i·v[k]/columns)) at row o and column i.

Each row is a discrete Fourier transform. Of its spectrum the number at v is T[v] = Σ c[k]·exp(2πi·o·u[k]/rows) over the
waves with v[k] = v; and one with v beyond half of the columns is the conjugate of that at columns − v, since only
the real part counts. numpy transforms in float64; what the library does is known but for its order of sums:

Let u = 2⁻⁵³, S = Σ|c[k]|, m the most waves with one v, and t the length of the vector of Σ|c[k]| over those with v.
- Cosines and sines are within u/2, the products with c and with another turn add 5·u together, and a sum of m terms
  (m − 1)·u of the sum of magnitudes. So T is off by 2·(m + 3)·u·Σ|c[k]| in each v, and what becomes of that is no more
  than 2·(m + 3)·u·S in any column.
- A fast transform of n numbers takes for each prime factor p of n a stage, whose sums have p products with numbers of
  modulus 1. A sum is off by at most (p + 3)·u·Σ|xⱼ|, no more than (p + 3)·u·√p·‖x‖, where its exact length grows by
  √p; p such sums are a vector, so relatively that is (p + 3)·√p·u in length; and 4·u for the product with the twiddle
  factors between two stages, which are off by a unit. Stages keep relative errors of length, so the whole is off by
  η·√n·t in length, η = Σ((p + 3)·√p + 4)·u but for higher powers of u, and no element by more than that.
  We allow SAFE times as much: for stages that exploit symmetries, whose sums have twice the magnitudes, for twiddle
  factors of several units, and for a real transform as half a complex one.

Source: N. Higham, Accuracy and Stability of Numerical Algorithms (2002), section 24.1, for p = 2; the argument for
other radices is the same. Sizes for which libraries prefer a convolution to stages (L. Bluestein) are not transformed.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np

from adaptertool.numerics.circle import circle
from adaptertool.numerics.rounding import Array

UNIT = 2.0**-53
SAFE = 4
LEAST = 2.0**-1060  # more than what underflow takes away from a number, on the way
_FEW = 50  # numbers that are always transformed by stages
_PART = 1 << 15  # complex numbers that stay in the cache


def can_transform(count: int) -> bool:
    """Whether so many numbers are transformed by stages: no prime factor is larger than their root."""
    largest = max(_primes(count), default=1)
    return count > 0 and (count < _FEW or largest * largest <= count)


class Waves(NamedTuple):
    """Such waves, as rows are made of them."""

    shape: tuple[int, int]  # rows, columns
    down: Array  # u of each, integers (n,), in turn
    ends: list[int]  # where turns begin, and all end
    which: Array  # of each number of a spectrum: the place of its first wave, or the first that is none
    step: int  # rows that are transformed at once
    within: Array  # what the waves have in the first of these rows, complex (rows, n)
    error: float  # by how much an element may be off


def waves_of(numbers: Array, places: tuple[Array, Array], shape: tuple[int, int]) -> Waves:
    """The waves of c, float64 (n,), with u and v, integers (n,) each, `places`, below the sizes in `shape` (rows,
    columns), for both of which `can_transform` holds."""
    rows, columns = shape
    across, down = places[1] % columns, places[0] % rows
    beyond = across > columns // 2
    across, down = np.where(beyond, columns - across, across), np.where(beyond, -down % rows, down)
    order, ends, there = _in_turn(across)
    across, down, numbers = across[order], down[order], numbers[order]
    which = np.full(columns // 2 + 1, len(there))
    which[there] = np.arange(len(there))
    # What lies between is there twice in a real transform, as itself and as its conjugate
    own = np.where((across > 0) & (2 * across < columns), numbers / 2, numbers)
    step = max(1, _PART // max(columns, len(numbers), 1))
    within = _turns(rows)[np.arange(step)[:, None] * down % rows] * own
    together = np.bincount(across, abs(numbers))
    stages = sum(((p + 3) * p**0.5 + 4) * UNIT for p in _primes(columns))
    error = 2 * (len(ends) + 2) * UNIT * float(together.sum())
    error += SAFE * stages * columns**0.5 * float(np.sqrt((together * together).sum()))
    error = error * (1 + 2.0**-20) + LEAST * (columns + len(numbers))
    return Waves(shape, down, ends, which, step, within, error)


def wave_rows(waves: Waves, first: int, last: int) -> tuple[Array, float]:
    """Rows first..last, float64 (last − first, columns), and by how much an element may be off."""
    (rows, columns), count, turns = waves.shape, len(waves.down), _turns(waves.shape[0])
    found, several = np.empty((last - first, columns)), waves.ends[1] if count else 0
    for begin in range(first, last, waves.step):
        end = min(last, begin + waves.step)
        terms = np.empty((end - begin, count + 1), np.complex128)
        np.multiply(waves.within[: end - begin], turns[begin * waves.down % rows], out=terms[:, :-1])
        for low, high in itertools.pairwise(waves.ends[1:]):
            terms[:, : high - low] += terms[:, low:high]
        terms[:, several] = 0
        found[begin - first : end - first] = np.fft.irfft(terms.take(waves.which, axis=1), columns, norm="forward")
    return found, waves.error


def _in_turn(places: Array) -> tuple[Array, list[int], Array]:
    """An order in which those that are the first at their place come before those that are the second, and so on, in
    each turn the places with most of them first: so each turn has the first places of the one before. And where each
    turn begins, and all end; and the places, in the order of the first turn."""
    there, own, counts = np.unique(places, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-counts, kind="stable"), kind="stable")[own]
    by_place = np.argsort(rank, kind="stable")
    begins = np.diff(rank[by_place], prepend=-1) > 0
    turn = np.arange(len(places)) - np.maximum.accumulate(np.where(begins, np.arange(len(places)), 0))
    again = np.argsort(turn, kind="stable")
    order = by_place[again]
    return order, [0, *np.cumsum(np.bincount(turn)).tolist()], places[order][: len(there)]


@functools.lru_cache(maxsize=16)
def _turns(count: int) -> Array:
    """exp(2πi·j/count)"""
    cosines, sines = circle(count)
    turns: Array = cosines + 1j * sines
    turns.flags.writeable = False
    return turns


@functools.lru_cache(maxsize=64)
def _primes(count: int) -> tuple[int, ...]:
    """The prime factors, each as often as it is one."""
    found, p = [], 2
    while p * p <= count:
        while count % p == 0:
            found.append(p)
            count //= p
        p += 1
    return tuple([*found, count] if count > 1 else found)
