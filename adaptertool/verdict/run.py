"""One pass over a candidate, then a closer look at what is wrong."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from adaptertool.blocks import Workspace
from adaptertool.reports import TensorVerdict
from adaptertool.verdict.elsewhere import is_turned
from adaptertool.verdict.faults import Fault, Reading, fault_of
from adaptertool.verdict.judge import CHANGED, WRONG, Subject, jobs_of
from adaptertool.verdict.pairs import Pairs
from adaptertool.verdict.sample import samples_of
from adaptertool.workers import Job, run_jobs

_OTHERS = 32  # tensors of the same shape that are compared with one that is wrong
_LOOKED_AT = 1000  # wrong tensors that are looked at closely


def judge(
    pairs: Pairs, readings: Mapping[str, Reading], threads: int, progress: Callable[[int], None]
) -> list[TensorVerdict]:
    """In the order of the plan; what is missing and extra at the end."""
    run_jobs(_all_jobs(pairs.subjects, progress), threads)
    faults: dict[str, Fault] = {}
    wrong = [subject for subject in pairs.subjects if subject.verdict()[0] in (WRONG, CHANGED)]
    run_jobs(
        (functools.partial(_look, subject, pairs.subjects, readings, faults) for subject in wrong[:_LOOKED_AT]), threads
    )
    _by_majority(pairs.subjects, wrong, faults)
    verdicts = [_verdict(subject, faults.get(subject.name)) for subject in pairs.subjects]
    for subject, code in pairs.misfits:
        turned = code == "shape-changed" and is_turned(subject, list(samples_of(subject)))
        detail = f"{subject.candidate.spec}, not {subject.step.spec}"
        code = "transposed" if turned else code
        verdicts.append(TensorVerdict(subject.name, WRONG, diagnosis=code, detail=detail))
    verdicts += [TensorVerdict(name, "missing") for name in pairs.missing]
    return verdicts + [TensorVerdict(name, "extra") for name in pairs.extra]


def _all_jobs(subjects: Sequence[Subject], progress: Callable[[int], None]) -> Iterator[Job]:
    for subject in subjects:
        yield from jobs_of(subject)
        progress(subject.candidate.spec.nbytes)


def _look(
    subject: Subject,
    subjects: Sequence[Subject],
    readings: Mapping[str, Reading],
    faults: dict[str, Fault],
    _: Workspace,
) -> None:
    shape = subject.step.spec.shape
    alike = (other for other in subjects if other is not subject and other.step.spec.shape == shape)
    faults[subject.name] = fault_of(subject, readings, list(itertools.islice(alike, _OTHERS)))


def _by_majority(subjects: Sequence[Subject], wrong: Sequence[Subject], faults: dict[str, Fault]) -> None:
    """That it was made from another base is said where it shows in most of what it should: a fault that nothing
    explains, in all matrices, or in most of those that nothing should have changed."""
    matrices = [subject for subject in subjects if len(subject.step.spec.shape) > 1]
    copies = {subject for subject in matrices if not subject.step.edits}
    unexplained = [subject for subject in wrong if _code(faults, subject) in ("wrong-base", "unknown")]
    suspects = {subject for subject in unexplained if _code(faults, subject) == "wrong-base"}
    changed = [s for s in unexplained if s in copies and 2 * s.tally.differ > s.step.spec.numel]
    another = 2 * len(changed) > len(copies) or 2 * len(suspects.intersection(matrices)) > len(matrices)
    for subject in unexplained:
        code = "wrong-base" if another and (changed or subject in suspects) else "unknown"
        faults[subject.name] = faults[subject.name]._replace(code=code)


def _code(faults: Mapping[str, Fault], subject: Subject) -> str | None:
    fault = faults.get(subject.name)
    return None if fault is None else fault.code


def _verdict(subject: Subject, fault: Fault | None) -> TensorVerdict:
    status, recipe = subject.verdict()
    tally = subject.tally
    error = math.sqrt(tally.error / tally.size) if tally.size > 0 else 0.0 if tally.error == 0 else None
    if error is not None and not math.isfinite(error):
        error = None
    if fault is None:
        return TensorVerdict(subject.name, status, tally.apart, error, detail=recipe or "")
    apart = None if tally.not_finite else tally.apart
    return TensorVerdict(subject.name, status, apart, error, fault.fitted_scale, fault.code, fault.detail)


def most_frequent(verdicts: Sequence[TensorVerdict]) -> tuple[str, ...]:
    counts = Counter(verdict.diagnosis for verdict in verdicts if verdict.diagnosis)
    return tuple(code for code, _ in counts.most_common())
