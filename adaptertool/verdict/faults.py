"""Names the fault in a tensor that is wrong: what is stored is compared with what known faults would have stored.

Most faults are other edits of the same base, so the engine computes what each would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.kinds import DORA, LORA
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.spec import COMPUTED, Edit
from adaptertool.verdict.elsewhere import elsewhere, is_turned
from adaptertool.verdict.judge import Subject, narrowed
from adaptertool.verdict.likeness import half_ulp
from adaptertool.verdict.sample import Sample, fitted, samples_of

Edits = tuple[Edit, ...]
Reading = Callable[[Edit], Edit]

_CLEAR = 0.25  # standard error of a fitted scale that is of use


class Fault(NamedTuple):
    code: str
    fitted_scale: float | None = None  # of the change: 1 is right
    detail: str = ""


def fault_of(subject: Subject, readings: Mapping[str, Reading], others: Sequence[Subject]) -> Fault:
    """What is wrong with a tensor of the right shape.

    readings: other ways to read the adapters' configs, by code: an edit -> as it would be then
    others:   tensors of the same shape, whose data it may hold
    """
    if subject.tally.not_finite:
        return Fault("nan", detail=f"{subject.tally.not_finite:,} elements are not finite")
    samples = list(samples_of(subject)) if subject.dtype in COMPUTED else []
    if not samples:
        return Fault("unknown")
    scale, error = fitted(samples) if subject.step.edits else (0.0, np.inf)
    shown = scale if error < _CLEAR else None
    for code, edits in _hypotheses(subject.step.edits, readings):
        if all(sample.nearer(sample.under(subject, edits)) for sample in samples):
            return Fault(code, shown)
    if _narrow_on_the_way(subject, samples):
        return Fault("dtype-changed", shown, "was rounded to a narrower dtype on the way")
    if is_turned(subject, samples):
        return Fault("transposed", shown)
    if shown is not None and all(s.nearer(s.base + scale * (s.exact - s.base), slack=0.05, most=0.99) for s in samples):
        return Fault("wrong-scale", scale)
    if detail := elsewhere(subject, samples, others):
        return Fault("row-shifted", shown, detail)
    if shown is not None and abs(scale - 1) <= 3 * error:
        return Fault("wrong-base", scale)
    near = not subject.step.edits and subject.tally.error < subject.tally.size / 4
    return Fault("wrong-base" if near else "unknown", shown)


def _hypotheses(edits: Edits, readings: Mapping[str, Reading]) -> Iterator[tuple[str, Edits]]:
    if not edits:
        return
    yield "not-applied", ()
    adapters = sorted({edit.adapter for edit in edits})
    for count in range(1, len(adapters)):
        yield "stale-tensor", tuple(edit for edit in edits if edit.adapter in adapters[:count])
    for left_out in adapters[:-1]:
        yield "not-applied", tuple(edit for edit in edits if edit.adapter != left_out)
    yield "applied-twice", edits + edits
    yield "negated", tuple(edit._replace(weight=-edit.weight) for edit in edits)
    if any(edit.kind == DORA.name for edit in edits):
        yield "magnitude-ignored", tuple(map(_without_magnitude, edits))
    for code, reading in readings.items():
        yield code, tuple(map(reading, edits))
    if all(edit.kind == LORA.name and edit.view is None for edit in edits) and _square(edits):
        yield "transposed", tuple(edit._replace(transposed=not edit.transposed) for edit in edits)


def _square(edits: Edits) -> bool:
    return all(len({max(ref.spec.shape) for ref in edit.factors.values()}) == 1 for edit in edits)


def _without_magnitude(edit: Edit) -> Edit:
    if edit.kind != DORA.name:
        return edit
    factors = {role: ref for role, ref in edit.factors.items() if role != MAGNITUDE}
    return edit._replace(kind=LORA.name, factors=factors)


def _narrow_on_the_way(subject: Subject, samples: Sequence[Sample]) -> bool:
    """Whether all that is stored are numbers of a narrower dtype, as near to the right ones as these can be."""
    for narrow in ("BF16", "F16"):
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
