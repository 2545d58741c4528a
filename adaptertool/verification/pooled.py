"""What all tensors say together: a scale that is too little off to show in one."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from adaptertool.arithmetic.workspace import Workspace
from adaptertool.engine.pool import run_jobs
from adaptertool.verification.evidence import DEVIATIONS, interval, joined, most_common
from adaptertool.verification.examine import FLOOR, NARROW_FLOOR, Finding, examine
from adaptertool.verification.sample import samples_of
from adaptertool.verification.subject import ROUNDING, Candidate

_TENSORS = 64  # that a scale is fitted on
_ELEMENTS = 1 << 13  # of each part of these


def is_doubtful(subject: Candidate) -> bool:
    """Whether a tensor needs a closer look: each difference by itself may be rounding. Sets what needs none."""
    recipe = subject.tally.recipe
    if not subject.tally.differ or subject.source is not None or recipe is None:
        return False
    if recipe or subject.tally.leans:
        return True
    subject.explained = "float32"
    return False


def pooled(
    subjects: Sequence[Candidate], findings: dict[str, Finding], names: Sequence[str], threads: int
) -> Iterator[str]:
    """What is wrong with an adapter's change in all tensors that are right by themselves. Adds to `findings`."""
    for adapter in sorted({adapter for subject in subjects for adapter in subject.adapters}):
        own = [s for s in subjects if adapter in s.adapters and s.verdict()[0] == ROUNDING]
        if not _deviations(own, findings, adapter) > DEVIATIONS:
            continue
        run_jobs((functools.partial(_again, subject, findings) for subject in own), threads)
        deviations = _deviations(own, findings, adapter)
        narrow = any(findings[subject.name].recipe != "float32" for subject in own)
        scale = _fitted(own[:: math.ceil(len(own) / _TENSORS)], adapter)
        if deviations > DEVIATIONS and scale is not None and abs(scale - 1) > (NARROW_FLOOR if narrow else FLOOR):
            for subject in own:
                subject.scale = scale
            said = f" ({names[adapter]})" if adapter < len(names) else ""
            yield (
                f"adapter {adapter + 1}{said} is applied {scale:.6g} times: too little to show in one tensor, but all "
                f"{len(own)} together are {deviations:.0f} standard errors off"
            )


def _deviations(subjects: Sequence[Candidate], findings: Mapping[str, Finding], adapter: int) -> float:
    """How many standard errors what is left over lies along the change of the adapter, in all tensors together."""
    shift, variance = 0.0, 0.0
    for subject in subjects:
        place = subject.adapters.index(adapter)
        if subject.name in findings:
            if leans := findings[subject.name].leans:
                shift, variance = shift + leans[place].shift, variance + leans[place].variance
        elif len(subject.tally.shift):
            shift += float(subject.tally.shift[place])
            variance += float(subject.tally.spread[place])
    return abs(shift) / math.sqrt(variance) if variance > 0 else 0.0


def _again(subject: Candidate, findings: dict[str, Finding], _: Workspace) -> None:
    """Examine a tensor again, by the recipe that agrees best: in one tensor several may explain the few differences
    that there are."""
    findings[subject.name] = examine(subject, thorough=True)


def _fitted(subjects: Sequence[Candidate], adapter: int) -> float | None:
    parts = []
    for subject in subjects:
        for sample in samples_of(subject, _ELEMENTS):
            change = sample.directions[subject.adapters.index(adapter)]
            arrays = sample.found, sample.exact - change, change, sample.plain
            parts.append(interval(*(np.ravel(array) for array in arrays)))
    fit = most_common(*joined(parts)) if parts else None
    return None if fit is None else fit.scale
