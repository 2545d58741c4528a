"""The jobs of a weight that stays codes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

from adaptertool.arithmetic.kept import Kept
from adaptertool.arithmetic.tiling import needs_columns
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.engine.crew import Crew
from adaptertool.engine.pool import Job
from adaptertool.errors import UnsupportedError, shown
from adaptertool.files.writer import OutputFile
from adaptertool.spec.plan import Step


def kept_jobs(
    crew: Crew, step: Step, outputs: Sequence[tuple[OutputFile, float]], targets: Mapping[str, int]
) -> Iterator[Job]:
    """Codes and their scales are made together, where both go to this file. targets: the names and offsets of all that
    go there. Raises UnsupportedError for changes of whole rows of what is stored in the other orientation."""
    codes, scales = (ref.spec.name for ref in step.base.stored[:2])
    if not outputs or (step.spec.name != codes and codes in targets):
        return  # by the step of the codes
    if step.keeps is not None and step.keeps.lattice.turned and needs_columns(step.edits):
        raise UnsupportedError(
            f"{step.base.path}: {shown(step.base.spec.name)} is stored as codes in the other orientation, and a change "
            "that needs whole rows of it (such as OFT) is not made to these: use --dtype bf16"
        )
    own = {name: targets[name] for name in (codes, scales) if name in targets}
    weight = Kept(crew.inputs, step, own, exact=crew.exact)
    for first, last in weight.cuts():
        yield functools.partial(_keep, crew, weight, first, last, outputs, counted=codes in own)


def _keep(
    crew: Crew,
    weight: Kept,
    first: int,
    last: int,
    outputs: Sequence[tuple[OutputFile, float]],
    space: Workspace,
    *,
    counted: bool,
) -> None:
    """counted: here, and not where the scales are made by themselves"""
    results = weight.compute(first, last, [alpha for _, alpha in outputs], space)
    for (file, _), (places, tally, fate) in zip(outputs, results, strict=True):
        for offset, data in places:
            file.write(offset, data)
            crew.progress(len(data))
        if counted:
            file.tallies.append(tally)
            file.fates.append((weight.family, fate))
