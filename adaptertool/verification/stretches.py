"""Small tensors that lie one after another, compared with what a run makes of them all at once. Most are exact; what is
not is judged by itself, as large ones are."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

from adaptertool.arithmetic.block import blocks_of
from adaptertool.arithmetic.stretch import Stretch, compute_stretch
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.engine.forms import forms_among
from adaptertool.engine.pool import Job
from adaptertool.engine.stretches import with_stretches
from adaptertool.errors import NonFiniteError
from adaptertool.verification.judge import in_passes, jobs_of
from adaptertool.verification.subject import Candidate, Tally

_TWICE = 1 << 12  # elements of a stretch that are made in two ways,
_EVERY = 8  # of the first stretch, and of every n-th after it: it takes half as long as all else


def jobs_of_all(subjects: Sequence[Candidate]) -> Iterator[tuple[list[Candidate], Iterable[Job]]]:
    """The jobs that judge tensors, with the tensors that they judge."""
    base, numbers = {subject.step.base.path for subject in subjects}, itertools.count()
    for alpha, some in itertools.groupby(subjects, lambda subject: subject.alpha):
        own = list(some)
        rest = iter(own)
        steps = [subject.step for subject in own]
        for found in with_stretches(zip(steps, forms_among(steps).numbers, strict=True), [alpha], base):
            if isinstance(found, Stretch):
                members = list(itertools.islice(rest, len(found.steps)))
                twice = next(numbers) % _EVERY == 0
                yield members, [functools.partial(_judge_all, found, members, twice=twice)]
            else:
                subject = next(rest)
                yield [subject], jobs_of(subject)


def _judge_all(stretch: Stretch, subjects: Sequence[Candidate], space: Workspace, *, twice: bool) -> None:
    for subject, same in zip(subjects, _same(stretch, subjects, space, twice=twice), strict=True):
        if same:
            subject.add(0, Tally())
        else:
            for job in jobs_of(subject):
                job(space)


def _same(stretch: Stretch, subjects: Sequence[Candidate], space: Workspace, *, twice: bool) -> list[bool]:
    """Whether each holds the very bytes that a run makes, in the same dtype; twice: and passes too."""
    inputs, alpha = subjects[0].inputs, subjects[0].alpha
    refs = [subject.candidate for subject in subjects]
    found, begins = inputs.read_parts(refs)
    try:
        _, (made, _) = compute_stretch(inputs, stretch, [alpha], space, exact=True)
        if twice and not _is_as_in_passes(stretch, subjects, made):
            return [False] * len(refs)
    except NonFiniteError:  # of one of them, which is judged by itself
        return [False] * len(refs)
    places = (subject.step.base.offset - stretch.ref.offset for subject in subjects)
    return [
        subject.dtype == subject.step.spec.dtype
        and made[place : place + ref.spec.nbytes].tobytes() == found[begin : begin + ref.spec.nbytes].tobytes()
        for subject, ref, place, begin in zip(subjects, refs, places, begins, strict=True)
    ]


def _is_as_in_passes(stretch: Stretch, subjects: Sequence[Candidate], made: memoryview) -> bool:
    """Whether some rows of one of the tensors are so without the kernel, by which the merge was made too."""
    step, _ = stretch.edited[len(stretch.edited) // 2]
    subject = next(subject for subject in subjects if subject.step is step)
    (block,) = blocks_of(subject.inputs, step)
    place, passes = in_passes(subject, block, _TWICE)
    begin, item = step.base.offset - stretch.ref.offset, passes.itemsize
    return made[begin + place.start * item : begin + place.stop * item].tobytes() == passes.tobytes()
