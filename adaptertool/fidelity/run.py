"""All tensors of a plan, measured by threads: one job for each, since sums go block by block in order."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs import COMPUTED
from adaptertool.engine.pool import run_jobs
from adaptertool.engine.preflight import require_finite_factors
from adaptertool.engine.progress import expect_tensors
from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.fidelity.cost import layer_costs
from adaptertool.fidelity.measure import Measured, measure
from adaptertool.fidelity.paths import is_looked_up, why_no_outputs
from adaptertool.fidelity.probe import Probe, recorded
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.header import Header
from adaptertool.files.reader import Inputs
from adaptertool.kinds import kind_of
from adaptertool.reports.drift import LayerCost, ModuleDrift
from adaptertool.resolution.nearest import nearest
from adaptertool.spec.plan import Plan, Step


def subject_of(step: Step, adapters: int, candidate: Checkpoint | None) -> Measured:
    """Raises MismatchError where the candidate has no such tensor, or of another shape."""
    if candidate is None:
        return Measured(step, adapters, None)
    name = step.spec.name
    if (ref := candidate.tensors.get(name)) is None:
        near = nearest(name, candidate.tensors)
        raise MismatchError(
            f"{candidate.path} has no {shown(name)}, which the adapters change"
            + (f"; nearest there: {', '.join(map(shown, near))}" if near else "")
        )
    if ref.spec.shape != step.spec.shape:
        raise MismatchError(f"{ref.path}: {shown(name)} is {ref.spec}, but must be {step.spec}")
    if ref.spec.dtype not in COMPUTED:
        raise UnsupportedError(f"{ref.path}: {shown(name)} is {ref.spec}; only {', '.join(COMPUTED)} can be judged")
    if ref.made is not None:  # decoded: what it is computed with at inference is the dtype of the rest
        return Measured(step, adapters, ref)
    return Measured(step._replace(spec=ref.spec), adapters, ref)


def probe_of(rows: int, steps: Sequence[Step], header: Header | None) -> Probe:
    """So many Gaussian rows; or the inputs that a file has for these tensors."""
    if header is None:
        return Probe(rows)
    names = {}
    for step in steps:
        low = [edit for edit in step.edits if kind_of(edit).pair]
        if why_no_outputs(step) is None and not is_looked_up(low[0]):
            own = (step.spec.name.removesuffix(".weight"), step.spec.name, *(edit.module for edit in low))
            names[step.spec.name] = tuple(dict.fromkeys(own))
    return recorded(header, names)


def measure_all(
    plan: Plan,
    others: Iterable[Header],
    subjects: Sequence[Measured],
    probe: Probe,
    selected: frozenset[str],
    threads: int,
    progress: Callable[[int], None],
) -> list[ModuleDrift]:
    """others: the files that are read beside those of the plan."""
    found: list[ModuleDrift | None] = [None] * len(subjects)

    def one(inputs: Inputs, number: int, space: Workspace) -> None:
        found[number] = measure(inputs, subjects[number], probe, selected, space)
        progress(subjects[number].step.base.spec.nbytes)

    expect_tensors(progress, (subject.step.base for subject in subjects))
    with Inputs({**plan.inputs, **{header.path: header.stamp for header in others}}) as inputs:
        require_finite_factors(plan, inputs)
        run_jobs((functools.partial(one, inputs, number) for number in range(len(subjects))), threads)
        inputs.check_unchanged()
    return [module for module in found if module is not None]


def costs_of(subjects: Iterable[Measured]) -> tuple[LayerCost, ...]:
    return layer_costs(Counter(form for subject in subjects if (form := subject.form) is not None))


# TODO kind_of
