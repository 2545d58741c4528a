"""How much of the change of each adapter a tensor holds: the scale by which most elements round to what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.numerics.rounding import Array
from adaptertool.verification.evidence import Fit, interval, joined, lean, most_common
from adaptertool.verification.recipes import through
from adaptertool.verification.sample import Sample
from adaptertool.verification.subject import Candidate

_ROUNDS = 6  # of a fit of several scales, one after the other
_BETTER = 0.5  # of what the right numbers leave over, or lean: at most this is much less
_NEAR = 0.03  # of a scale that may be 1: what is else wrong is as large
_CLEAR = 0.25  # half the width of a fit that is of use
_LEAST = 0.3  # share of the elements that agree with a fit that is of use


class Scaled(NamedTuple):
    scale: float | None  # of the whole change; of several adapters that which is the farthest from 1; None: not clear
    detail: str  # where there are several
    explains: bool  # whether what is stored is W + Σ c·Δ, rounded

    @property
    def near_one(self) -> bool:
        return self.scale is not None and abs(self.scale - 1) <= _NEAR


def scales_of(subject: Candidate, samples: Sequence[Sample], bad: Sequence[Sample]) -> Scaled:
    """The fit on all rows; where it explains nothing, on the bad ones alone: the rest may be right."""
    first = _scales(subject, samples, whole=True)
    if first.explains or not bad:
        return first
    second = _scales(subject, [_only_bad(sample) for sample in bad], whole=False)
    return second if second.explains or first.scale is None else first._replace(scale=second.scale)


def _only_bad(sample: Sample) -> Sample:
    own = sample.bad
    base, exact, found, plain, limit = (
        array[own] for array in (sample.base, sample.exact, sample.found, sample.plain, sample.limit)
    )
    along = [direction[own] for direction in sample.directions]
    return Sample(sample.block, np.arange(len(own)), base, exact, found, plain, limit, along)


def _scales(subject: Candidate, samples: Sequence[Sample], *, whole: bool) -> Scaled:
    common = _fit([(s.found, s.base, s.exact - s.base, s.plain) for s in samples])
    clear = common is not None and _is_clear(samples, common)
    if (
        common is not None
        and clear
        and _explains(subject, samples, [s.base + common.scale * (s.exact - s.base) for s in samples])
    ):
        return Scaled(common.scale, "", True)
    if subject.turns and whole:
        turned = _fit([(s.found, np.zeros_like(s.base), s.exact, s.plain) for s in samples])
        if turned is not None and _explains(subject, samples, [turned.scale * s.exact for s in samples]):
            return Scaled(turned.scale, f"the whole weight is {turned.scale:.5g} times what it should be", True)
    if len(subject.adapters) > 1:
        scales = _one_by_one(samples, len(subject.adapters))
        meant = [_combined(sample, scales) for sample in samples]
        if _explains(subject, samples, meant):
            said = ", ".join(
                f"adapter {number + 1}: {c:.4g}" for number, c in zip(subject.adapters, scales, strict=True)
            )
            return Scaled(max(scales, key=lambda c: abs(c - 1)), said, True)
    return Scaled(common.scale if common is not None and clear else None, "", False)


def _fit(parts: Sequence[tuple[Array, Array, Array, Array]]) -> Fit | None:
    return most_common(*joined([interval(*(array.ravel() for array in part)) for part in parts]))


def _is_clear(samples: Sequence[Sample], fit: Fit) -> bool:
    within = [abs(s.found - s.base - fit.scale * (s.exact - s.base)) <= s.plain * (1 + 2.0**-10) for s in samples]
    return fit.error < _CLEAR and sum(part.sum() for part in within) >= _LEAST * sum(part.size for part in within)


def _combined(sample: Sample, scales: Sequence[float]) -> Array:
    total = sample.base
    for c, change in zip(scales, sample.directions, strict=False):
        total = total + c * change
    return total


def _one_by_one(samples: Sequence[Sample], count: int) -> list[float]:
    changes = np.stack([np.concatenate([s.directions[n].ravel() for s in samples]) for n in range(count)])
    moved = np.concatenate([(s.found - s.base).ravel() for s in samples])
    scales: list[float] = np.linalg.lstsq(changes @ changes.T, changes @ moved, rcond=None)[0].tolist()  # to begin with
    for _ in range(_ROUNDS):
        for number in range(count):
            others = [0.0 if other == number else c for other, c in enumerate(scales)]
            parts = [(s.found, _combined(s, others), s.directions[number], s.plain) for s in samples]
            fit = _fit(parts)
            scales[number] = scales[number] if fit is None else fit.scale
    return scales


def _explains(subject: Candidate, samples: Sequence[Sample], meant: Sequence[Array]) -> bool:
    """Whether these numbers leave much less over than the right ones do: beyond one rounding, or, where each element is
    within what rounding may do, along the change."""
    pairs = list(zip(samples, meant, strict=True))
    if any(len(sample.bad) for sample in samples):
        left, own = (
            sum(float(s.excess(numbers).sum()) for s, numbers in those)
            for those in ([(s, s.exact) for s in samples], pairs)
        )
        if all(sample.may_be(numbers, most=0.99) for sample, numbers in pairs if len(sample.bad)):
            return own <= _BETTER * left
        return False
    to = through(subject.dtype)
    found = np.concatenate([s.found for s in samples])
    off, rest = (found - to(np.concatenate(list(each))) for each in ([s.exact for s in samples], meant))
    for number in range(len(samples[0].directions)):
        direction = np.concatenate([s.directions[number] for s in samples])
        before, after = lean(off, direction), lean(rest, direction)
        if before.significant and abs(after.shift) > _BETTER * abs(before.shift):
            return False
    return True
