"""Small tensors that lie one after another, compared with what a run makes of them all at once. Most are exact; what is
not is judged by itself, as large ones are."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

from adaptertool.arithmetic.stretch import Stretch, compute_stretch
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.engine.pool import Job
from adaptertool.engine.stretches import with_stretches
from adaptertool.errors import NonFiniteError
from adaptertool.verification.judge import jobs_of
from adaptertool.verification.subject import Candidate, Tally


def jobs_of_all(subjects: Sequence[Candidate]) -> Iterator[tuple[list[Candidate], Iterable[Job]]]:
    """The jobs that judge tensors, with the tensors that they judge."""
    base = {subject.step.base.path for subject in subjects}
    for alpha, some in itertools.groupby(subjects, lambda subject: subject.alpha):
        own = list(some)
        rest = iter(own)
        for found in with_stretches([subject.step for subject in own], [alpha], base):
            if isinstance(found, Stretch):
                members = list(itertools.islice(rest, len(found.steps)))
                yield members, [functools.partial(_judge_all, found, members)]
            else:
                subject = next(rest)
                yield [subject], jobs_of(subject)


def _judge_all(stretch: Stretch, subjects: Sequence[Candidate], space: Workspace) -> None:
    for subject, same in zip(subjects, _same(stretch, subjects, space), strict=True):
        if same:
            subject.add(0, Tally())
        else:
            for job in jobs_of(subject):
                job(space)


def _same(stretch: Stretch, subjects: Sequence[Candidate], space: Workspace) -> list[bool]:
    """Whether each holds the very bytes that a run makes, in the same dtype."""
    inputs, alpha = subjects[0].inputs, subjects[0].alpha
    refs = [subject.candidate for subject in subjects]
    found, begins = inputs.read_parts([(ref.path, ref.offset, ref.spec.nbytes) for ref in refs])
    try:
        _, (made, _) = compute_stretch(inputs, stretch, [alpha], space, exact=True)
    except NonFiniteError:  # of one of them, which is judged by itself
        return [False] * len(refs)
    places = (subject.step.base.offset - stretch.ref.offset for subject in subjects)
    return [
        subject.dtype == subject.step.spec.dtype
        and made[place : place + ref.spec.nbytes].tobytes() == found[begin : begin + ref.spec.nbytes].tobytes()
        for subject, ref, place, begin in zip(subjects, refs, places, begins, strict=True)
    ]
