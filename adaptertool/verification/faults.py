"""Names the fault in a tensor that is wrong: what is stored is compared with what known faults would have stored.

Most faults are other edits of the same base, so what each would give is computed as in a run (arithmetic.chain).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.codecs import CODECS, COMPUTED, F32
from adaptertool.numerics.rounding import Array
from adaptertool.verification.hypotheses import Reading, hypotheses
from adaptertool.verification.judge import narrowed
from adaptertool.verification.misplaced import elsewhere, is_turned
from adaptertool.verification.other_base import on_other_bases
from adaptertool.verification.precision import has_few_bits, lost_precision
from adaptertool.verification.recipes import through
from adaptertool.verification.roundings import is_stochastic, is_truncated
from adaptertool.verification.sample import Sample, all_made, samples_of
from adaptertool.verification.scales import scales_of
from adaptertool.verification.subject import Candidate
from adaptertool.verification.tolerance import half_ulp

_BETTER = 0.5  # what a fault leaves over of the differences, at most
_ALIKE = 1.05  # of several faults that leave about as much over the first is named


class Fault(NamedTuple):
    code: str
    fitted_scale: float | None = None  # of the change: 1 is right
    detail: str = ""


def fault_of(
    subject: Candidate, readings: Mapping[str, Reading], others: Sequence[Candidate], names: Sequence[str] = ()
) -> Fault:
    """What is wrong with a tensor of the right shape.

    readings: other ways to read the adapters' configs, by code: an edit -> as it would be then
    others:   tensors of the same shape, whose data it may hold
    names:    of the adapters
    """
    tally = subject.tally
    if tally.beyond and tally.beyond == tally.not_finite:
        return Fault("overflow", detail=f"{tally.beyond:,} numbers are beyond the range of {subject.dtype}")
    if tally.not_finite:
        return Fault("nan", detail=f"{tally.not_finite:,} elements are not finite")
    samples = list(samples_of(subject)) if subject.dtype in COMPUTED else []
    if not samples:
        return Fault("unknown")
    bad = [sample for sample in samples if len(sample.bad)]
    looked_at = bad or [sample._replace(bad=np.arange(len(sample.found))) for sample in samples]
    scaled = scales_of(subject, samples, bad) if subject.step.edits else None
    scale = None if scaled is None else scaled.scale
    if found := _by_other_edits(subject, looked_at, readings, names):
        return Fault(found[0], scale, found[1])
    if found := _by_rounding(subject, samples, bad):
        return Fault(found[0], scale, found[1])
    if bad and is_turned(subject, bad):
        return Fault("transposed", scale)
    if scaled is not None and scaled.explains:
        return Fault("wrong-scale", scale, scaled.detail)
    if bad and (detail := elsewhere(subject, bad, others)):
        return Fault("row-shifted", scale, detail)
    if bad and scaled is not None and lost_precision(bad, subject, scaled):
        return Fault("lower-precision", scale, "the change was computed in fewer bits")
    near = not subject.step.edits and tally.error < tally.size / 4
    return Fault("wrong-base" if near or (scaled is not None and scaled.near_one) else "unknown", scale)


def _by_other_edits(
    subject: Candidate, bad: Sequence[Sample], readings: Mapping[str, Reading], names: Sequence[str]
) -> tuple[str, str] | None:
    """The known fault that leaves the least over, if that is much less than the right edits do."""
    left = _excess(subject, bad, [sample.exact for sample in bad])
    found: list[tuple[float, str, str]] = []
    for code, edits, detail in hypotheses(subject, readings, names) if left else ():
        own = functools.partial(Sample.under, subject=subject, edits=edits)
        if (meant := all_made(bad, own)) is not None:
            found.append((_excess(subject, bad, meant), code, detail))
    exactly = any(excess == 0 for excess, *_ in found)  # another base would not store all of that too
    for other in on_other_bases(subject, bad) if left and not exactly else ():
        found.append((_excess(subject, bad, other.numbers), other.code, other.detail))
    least = min((excess for excess, *_ in found), default=np.inf)
    if not least <= _BETTER * left:
        return None
    likely = [(code, detail) for excess, code, detail in found if excess <= _ALIKE * least + 1e-9]
    code, detail = likely[0]
    others = sorted({other for other, _ in likely} - {code})
    return code, "; or ".join(
        [detail] * bool(detail) + others
    ) if detail or not others else f"or {'; or '.join(others)}"


def _excess(subject: Candidate, samples: Sequence[Sample], meant: Sequence[Array]) -> float:
    """What numbers leave over of bad rows, beyond one rounding; and how many elements they do not store as they are,
    which counts where rounding may explain each."""
    to, total = through(subject.dtype), 0.0
    for sample, numbers in zip(samples, meant, strict=True):
        with np.errstate(all="ignore"):
            apart = to(numbers[sample.bad]) != sample.found[sample.bad]
        total += float(sample.excess(numbers).sum()) + 1e-3 * np.count_nonzero(apart)
    return total


def _by_rounding(subject: Candidate, samples: Sequence[Sample], bad: Sequence[Sample]) -> tuple[str, str] | None:
    """Whether the right numbers were stored by another rounding than to nearest, or through another dtype."""
    found, exact = (np.concatenate([getattr(s, name).ravel() for s in samples]) for name in ("found", "exact"))
    if is_truncated(found, exact, subject.dtype):
        return "truncated", "cut off towards 0, not rounded to nearest"
    if is_stochastic(found, exact, subject.dtype):
        return "stochastic", "rounded to either side by chance, not to nearest"
    if bad and _narrow_on_the_way(subject, bad):
        return "dtype-changed", "was rounded to a narrower dtype on the way"
    if bad and has_few_bits(samples, subject.dtype):
        return "lower-precision", "holds numbers of fewer bits than its dtype has"
    return None


def _narrow_on_the_way(subject: Candidate, samples: Sequence[Sample]) -> bool:
    """Whether all that is stored are numbers of a narrower dtype, as near to the right ones as these can be."""
    for narrow in (codec.name for codec in CODECS if codec.roundoff > F32.roundoff):
        if narrow == subject.dtype:
            continue
        for sample in samples:
            block = sample.block
            stored = subject.read(block.start, block.start + block.numel)
            off = abs(sample.found - sample.exact)
            if (
                narrowed(stored, subject.dtype, narrow) is None
                or not (off <= sample.limit + half_ulp(abs(sample.exact), narrow) * (1 + 2.0**-10)).all()
            ):
                break
        else:
            return True
    return False
