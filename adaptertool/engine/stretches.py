"""Small tensors that lie one after another in a shard, put together so that threads have them as one job."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from adaptertool.arithmetic.stretch import SMALL, Small, Stretch, compute_stretch, small_of
from adaptertool.arithmetic.verbatim import verbatim
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.engine.crew import Crew
from adaptertool.files.writer import OutputFile
from adaptertool.spec.plan import Output, Step


def with_stretches(
    members: Iterable[tuple[Step, int]], alphas: Sequence[float], base: Collection[Path]
) -> Iterator[Step | Stretch]:
    """The steps of a shard in their order, those together that can be.

    members: the steps, each with the number of its form; alphas: of the outputs; base: the files of the base
    """
    stretch: Stretch | None = None
    known, edited = dict[int, tuple[bool, Small | None]](), any(alphas)
    for step, form in members:
        if (found := known.get(form)) is None:
            small = small_of(step) if edited and step.edits else None
            stays = not step.edits and step.spec.nbytes <= SMALL and verbatim(step, 1) is step.stored
            found = known[form] = stays or small is not None, small
        may_be_part, small = found
        if stretch is not None:
            if may_be_part and stretch.takes(step, small):
                continue
            yield stretch
            stretch = None
        if small is not None and step.base.path in base:
            stretch = Stretch(step.base, step.offset)
            if stretch.takes(step, small):
                continue
            stretch = None
        yield step
    if stretch is not None:
        yield stretch


def make(
    crew: Crew, stretch: Stretch, outputs: Sequence[Output], files: Sequence[OutputFile], space: Workspace
) -> None:
    """Write all that lies in a stretch to each output: what the base has where α is 0."""
    both = list(zip(files, outputs, strict=True))
    edited = [(file, output.alpha) for file, output in both if output.alpha]
    results = compute_stretch(crew.inputs, stretch, [alpha for _, alpha in edited], space, exact=crew.exact)
    before = next(results)
    same = [(file, before) for file, output in both if not output.alpha]
    changed = ((file, result) for (file, _), result in zip(edited, results, strict=True))
    for file, (data, tallies) in itertools.chain(same, changed):
        file.write(stretch.target, data)
        file.tallies += tallies
        crew.progress(len(data))
