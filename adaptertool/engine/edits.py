"""The jobs of one tensor: edits by blocks, codes that are kept, casts, copies, and what is made in a way of its own."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

from adaptertool.arithmetic.blend import Blended
from adaptertool.arithmetic.block import Block, blocks_of
from adaptertool.arithmetic.blocks import compute
from adaptertool.arithmetic.cast import Cast
from adaptertool.arithmetic.fisher import Weighted
from adaptertool.arithmetic.rescale import Rescaled
from adaptertool.arithmetic.verbatim import only_cast
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.engine.crew import Crew, Run, copies, replacements
from adaptertool.engine.kept import kept_jobs
from adaptertool.engine.pool import Job
from adaptertool.files.reader import Inputs
from adaptertool.files.writer import OutputFile
from adaptertool.spec.plan import Output, Step
from adaptertool.spec.tally import Tally
from adaptertool.spec.tensors import Ref


def edit_jobs(
    crew: Crew,
    step: Step,
    outputs: Sequence[Output],
    files: Sequence[OutputFile],
    sources: Sequence[Ref | None],
    kept: Mapping[str, int],
) -> Iterator[Job]:
    """kept: of the steps of this file that keep codes, or scales, the names and offsets"""
    computed = []
    for output, file, source in zip(outputs, files, sources, strict=True):
        if source is None:
            computed.append((file, step.at(output.alpha)))
        elif source is not step.stored and step.base.path in crew.base:
            yield from replacements(crew, step.base, source, step.offset, file)
        else:
            yield from copies(crew, Run(source.path, source.offset, step.offset, source.spec.nbytes), [file])
    only = [(file, alpha) for file, alpha in computed if only_cast(step, alpha)]
    computed = [(file, alpha) for file, alpha in computed if not only_cast(step, alpha)]
    if only:
        cast = Cast(crew.inputs, step)
        for first, last in cast.cuts():
            yield functools.partial(_make, crew, cast, first, last, only)
    if not computed:
        return
    if step.keeps is not None:
        yield from kept_jobs(crew, step, computed, kept)
        return
    if (tensor := _made_of_its_own(crew.inputs, step)) is not None:
        for first, last in tensor.cuts():
            yield functools.partial(_make, crew, tensor, first, last, computed)
    else:
        for block in blocks_of(crew.inputs, step):
            yield functools.partial(_edit, crew, block, computed)


def _made_of_its_own(inputs: Inputs, step: Step) -> Blended | Rescaled | Weighted | None:
    """A tensor that is not made by one edit after the other."""
    if step.blend is not None:
        return Blended(inputs, step)
    if step.makes is not None:
        return Rescaled(inputs, step)
    return Weighted(inputs, step) if step.fisher is not None else None


def _make(
    crew: Crew,
    tensor: Blended | Cast | Rescaled | Weighted,
    first: int,
    last: int,
    outputs: Sequence[tuple[OutputFile, float]],
    _: Workspace,
) -> None:
    tallies: list[Tally] = []
    results = tensor.compute(first, last, [alpha for _, alpha in outputs], tallies)
    for (file, _alpha), data in zip(outputs, results, strict=True):
        file.write(tensor.target(first), data)
        crew.progress(len(data))
    _tell(tallies, outputs)


def _edit(crew: Crew, block: Block, outputs: Sequence[tuple[OutputFile, float]], space: Workspace) -> None:
    tallies: list[Tally] = []
    alphas = [alpha for _, alpha in outputs]
    results = compute(crew.inputs, block, alphas, space, exact=crew.exact, tallies=tallies)
    for (file, _), data in zip(outputs, results, strict=True):
        file.write(block.target, data)
        crew.progress(len(data))
    if block.step.base.path not in crew.base:  # all of it is counted already, or nothing is
        tallies = [tally._replace(changed=0) for tally in tallies]
    _tell(tallies, outputs)


def _tell(tallies: Sequence[Tally], outputs: Sequence[tuple[OutputFile, float]]) -> None:
    for (file, _), tally in zip(outputs, tallies, strict=False):
        file.tallies.append(tally)
