"""Small tensors that lie one after another in a shard, put together so that threads have them as one job."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from adaptertool.arithmetic.stretch import SMALL, Stretch, compute_stretch, small_of
from adaptertool.arithmetic.verbatim import verbatim
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.engine.crew import Crew
from adaptertool.files.writer import OutputFile
from adaptertool.spec.plan import Output, Step


def with_stretches(steps: Sequence[Step], alphas: Sequence[float], base: Collection[Path]) -> Iterator[Step | Stretch]:
    """The steps of a shard in their order, those together that can be.

    alphas: of the outputs; base: the files of the base
    """
    stretch: Stretch | None = None
    edited = any(alphas)
    for step in steps:
        small = small_of(step) if edited and step.edits and step.base.path in base else None
        if stretch is not None:
            stays = not step.edits and step.spec.nbytes <= SMALL and verbatim(step, 1) is step.stored
            if (small or stays) and stretch.takes(step, small):
                continue
            yield stretch
            stretch = None
        if small is not None and (begun := Stretch(step.base, step.offset)).takes(step, small):
            stretch = begun
        else:
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
