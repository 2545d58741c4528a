"""One pass over a candidate, then a closer look at what is wrong."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from adaptertool.arithmetic.workspace import Workspace
from adaptertool.engine.pool import Job, run_jobs
from adaptertool.engine.progress import expect_tensors
from adaptertool.reports.verify import TensorVerdict
from adaptertool.verification.code_faults import code_fault
from adaptertool.verification.codes import judge_codes, weight_of
from adaptertool.verification.examine import Finding, examine
from adaptertool.verification.faults import Fault, fault_of
from adaptertool.verification.hypotheses import Reading
from adaptertool.verification.misplaced import is_turned
from adaptertool.verification.pairing import Pairs
from adaptertool.verification.pooled import is_doubtful, pooled
from adaptertool.verification.sample import samples_of
from adaptertool.verification.stretches import jobs_of_all
from adaptertool.verification.subject import CHANGED, EXACT, ROUNDING, WRONG, Candidate
from adaptertool.verification.tolerance import RECIPES

_OTHERS = 256  # tensors of the same shape that are compared with one that is wrong
_LOOKED_AT = 1000  # wrong tensors that are looked at closely


class Verdicts(NamedTuple):
    tensors: list[TensorVerdict]  # in the order of the plan; what is missing and extra at the end
    problems: list[str]  # what all tensors together say, and none alone


def judge(
    pairs: Pairs,
    odd: Collection[Candidate],
    readings: Mapping[str, Reading],
    names: Sequence[str],
    threads: int,
    progress: Callable[[int], None],
) -> Verdicts:
    """Compare all; look closer at what is not exact; name what is wrong.

    odd: what is stored in another dtype than its like; names: of the adapters.
    """
    expect_tensors(progress, (subject.candidate for subject in (*pairs.subjects, *pairs.coded)))
    run_jobs(_all_jobs(pairs.subjects, progress), threads)
    findings: dict[str, Finding] = {}
    doubtful = [subject for subject in pairs.subjects if is_doubtful(subject)]
    run_jobs((functools.partial(_examine, subject, findings) for subject in doubtful), threads)
    faults: dict[str, Fault] = {}
    wrong = [subject for subject in pairs.subjects if subject.verdict()[0] in (WRONG, CHANGED)]
    look = functools.partial(_look, subjects=pairs.subjects, readings=readings, faults=faults, names=names)
    run_jobs((functools.partial(look, subject) for subject in wrong[:_LOOKED_AT]), threads)
    _by_majority(pairs.subjects, wrong, faults)
    coded: dict[str, TensorVerdict] = {}
    run_jobs((functools.partial(_decode, one, readings, names, coded, progress) for one in pairs.coded), threads)
    problems = list(pooled(pairs.subjects, findings, names, threads))
    verdicts = [_verdict(subject, faults.get(subject.name), odd=subject in odd) for subject in pairs.subjects]
    verdicts += [coded[subject.name] for subject in pairs.coded]
    for subject, code in pairs.misfits:
        turned = subject.candidate.spec.shape[::-1] == subject.step.spec.shape
        turned = turned and code == "shape-changed" and is_turned(subject, list(samples_of(subject)))
        detail = f"{subject.candidate.spec}, not {subject.step.spec}"
        code = "transposed" if turned else code
        verdicts.append(TensorVerdict(subject.name, WRONG, diagnosis=code, detail=detail))
    verdicts += [TensorVerdict(name, "missing") for name in pairs.missing]
    verdicts += [TensorVerdict(name, "extra") for name in pairs.extra]
    return Verdicts(verdicts, problems)


def _all_jobs(subjects: Sequence[Candidate], progress: Callable[[int], None]) -> Iterator[Job]:
    for some, jobs in jobs_of_all(subjects):
        yield from jobs
        progress(sum(subject.candidate.spec.nbytes for subject in some))


def _examine(subject: Candidate, findings: dict[str, Finding], _: Workspace) -> None:
    findings[subject.name] = finding = examine(subject)
    subject.explained = finding.recipe


def _look(
    subject: Candidate,
    _: Workspace,
    *,
    subjects: Sequence[Candidate],
    readings: Mapping[str, Reading],
    faults: dict[str, Fault],
    names: Sequence[str],
) -> None:
    shape, parts = subject.step.spec.shape, subject.name.split(".")
    alike = [other for other in subjects if other is not subject and other.step.spec.shape == shape]
    alike.sort(key=lambda other: -sum(map(str.__eq__, parts, other.name.split("."))))
    faults[subject.name] = fault_of(subject, readings, alike[:_OTHERS], names)


def _decode(
    subject: Candidate,
    readings: Mapping[str, Reading],
    names: Sequence[str],
    verdicts: dict[str, TensorVerdict],
    progress: Callable[[int], None],
    _: Workspace,
) -> None:
    """Judge a weight that is stored as codes."""
    found, name = judge_codes(subject), subject.name
    error = math.sqrt(found.error / found.size) if found.size > 0 and math.isfinite(found.error) else None
    if found.touched or (found.differ and found.recipe is None):
        status = WRONG if subject.step.edits or weight_of(subject.step.base) is None else CHANGED
        fault = code_fault(subject, readings, names)
        verdicts[name] = TensorVerdict(name, status, rel_error=error, diagnosis=fault.code, detail=fault.detail)
    elif found.coarse:
        detail = "each code is the nearest on its scale, and the scales are much larger than what they hold needs"
        verdicts[name] = TensorVerdict(name, WRONG, rel_error=error, diagnosis="scales-too-large", detail=detail)
    elif not found.differ:
        detail = "quantised anew, on other scales than the base's" if found.anew else ""
        verdicts[name] = TensorVerdict(name, ROUNDING if found.anew else EXACT, rel_error=error, detail=detail)
    else:
        detail = f"{RECIPES[found.recipe or 0]}, then quantised"
        verdicts[name] = TensorVerdict(name, ROUNDING, rel_error=error, detail=detail)
    progress(subject.candidate.spec.nbytes)


def _by_majority(subjects: Sequence[Candidate], wrong: Sequence[Candidate], faults: dict[str, Fault]) -> None:
    """Say that the candidate was made from another base where it shows in most of what it should: a fault that nothing
    explains, in all matrices, or in most of those that nothing should have changed."""
    matrices = [subject for subject in subjects if len(subject.step.spec.shape) > 1]
    copies = {subject for subject in matrices if not subject.step.edits}
    unexplained = [subject for subject in wrong if _code(faults, subject) in ("wrong-base", "unknown")]
    suspects = {subject for subject in unexplained if _code(faults, subject) == "wrong-base"}
    changed = [s for s in unexplained if s in copies and 2 * s.tally.differ > s.step.spec.numel]
    another = 2 * len(changed) > len(copies) if copies else 2 * len(suspects.intersection(matrices)) > len(matrices)
    for subject in unexplained:
        code = "wrong-base" if another and (changed or subject in suspects) else "unknown"
        faults[subject.name] = faults[subject.name]._replace(code=code)


def _code(faults: Mapping[str, Fault], subject: Candidate) -> str | None:
    fault = faults.get(subject.name)
    return None if fault is None else fault.code


def _verdict(subject: Candidate, fault: Fault | None, *, odd: bool) -> TensorVerdict:
    status, recipe = subject.verdict()
    tally = subject.tally
    error = math.sqrt(tally.error / tally.size) if tally.size > 0 else 0.0 if tally.error == 0 else None
    if error is not None and not math.isfinite(error):
        error = None
    if fault is None and odd:
        said = f"stored as {subject.dtype}, its like as {subject.step.spec.dtype}"
        return TensorVerdict(subject.name, status, tally.apart, error, diagnosis="dtype-changed", detail=said)
    if fault is None:
        return TensorVerdict(subject.name, status, tally.apart, error, subject.scale, detail=recipe or "")
    apart = None if tally.not_finite else tally.apart
    return TensorVerdict(subject.name, status, apart, error, fault.fitted_scale, fault.code, fault.detail)


def most_frequent(verdicts: Sequence[TensorVerdict], pooled: Sequence[str] = ()) -> tuple[str, ...]:
    wrong = (verdict for verdict in verdicts if verdict.status not in (EXACT, ROUNDING))
    counts = Counter(verdict.diagnosis for verdict in wrong if verdict.diagnosis)
    counts.update(["wrong-scale"] * len(pooled))
    return tuple(code for code, _ in counts.most_common())
