"""Numbers that hold fewer bits than their dtype: of a merge that went through FP8, INT8 and the like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.numerics.rounding import Array
from adaptertool.verification.sample import Sample
from adaptertool.verification.scales import Scaled
from adaptertool.verification.subject import Candidate

_FEW = 0.4  # of the distinct magnitudes that the right numbers have
_ENOUGH = 64  # distinct magnitudes that the right numbers have at least
_EIGHT_BITS = 2.0**-4  # the roundoff of F8_E4M3
_NEARLY_ALL = 0.999  # share of the elements
_NEAR = 0.03  # of a scale
_MANY = 0.02  # share of the elements of rows that are wrong


def has_few_bits(samples: Sequence[Sample], dtype: str) -> bool:
    """Whether far fewer magnitudes occur than the right numbers have: in all rows together, or in most rows, which may
    have a scale each."""
    found = [abs(sample.found) for sample in samples]
    right = [abs(doubles(rounded(sample.exact, dtype), dtype)) for sample in samples]
    if _few(np.concatenate([part.ravel() for part in found]), np.concatenate([part.ravel() for part in right])):
        return True
    if found[0].shape[1] < 2 * _ENOUGH:
        return False
    rows = [
        _few(row, other) for one, two in zip(found, right, strict=True) for row, other in zip(one, two, strict=True)
    ]
    return float(np.mean(rows)) > 0.9


def _few(found: Array, right: Array) -> bool:
    own, wanted = len(np.unique(found)), len(np.unique(right))
    return wanted >= _ENOUGH and 2 < own < _FEW * wanted


def lost_precision(bad: Sequence[Sample], subject: Candidate, scaled: Scaled) -> bool:
    """Whether the change is there with the right scale, but as far off as eight bits make it."""
    times = _EIGHT_BITS / subject.manner.roundoff
    within = [abs(s.found - s.exact) <= s.plain + times * (s.limit - s.plain) for s in bad]
    size = sum(part.size for part in within)
    share = sum(part.sum() for part in within) / size
    off = sum(np.count_nonzero(sample.excess(sample.exact)) for sample in bad) / size
    change, moved = (
        np.concatenate([(a - s.base).ravel() for a, s in zip(arrays, bad, strict=True)])
        for arrays in ([s.exact for s in bad], [s.found for s in bad])
    )
    scale = float(change @ moved) / max(float(change @ change), np.finfo(float).tiny)
    near_one = scaled.near_one or abs(scale - 1) <= _NEAR
    return near_one and bool(share >= _NEARLY_ALL and off >= _MANY)
