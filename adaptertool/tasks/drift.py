"""`drift`: how far merged and unmerged adapters drift apart in floating point, without a model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from adaptertool.architectures.decoded_beside import alike, as_numbers
from adaptertool.arguments import PathLike, as_input, as_path, check_as_trained
from adaptertool.engine.resources import thread_count
from adaptertool.errors import UsageError, argument
from adaptertool.fidelity import run
from adaptertool.fidelity.dense import from_dense
from adaptertool.fidelity.summary import summary
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.header import read_header
from adaptertool.files.hub import called
from adaptertool.formats.checkpoints import as_asked, open_checkpoint
from adaptertool.kinds import kind_of
from adaptertool.planning.schedules import Given
from adaptertool.planning.sources import Reading
from adaptertool.planning.tokenizer import BASE
from adaptertool.reports.drift import DriftReport
from adaptertool.reports.run import PATHS
from adaptertool.resolution.correspondence import aligned
from adaptertool.spec.plan import Plan, Step
from adaptertool.tasks.merge import MergeRecipe, prepare

MAX_PROBE = 1024  # inputs for each layer
PROBE = 16  # inputs for each layer, where the caller does not say


def drift(
    base: PathLike,
    adapters: Sequence[PathLike],
    *,
    weights: Sequence[Given] | None = None,
    compose: str = "sequential",
    renames: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    expert_layout: str | None = None,
    as_trained: str | None = None,
    merged: PathLike | None = None,
    paths: Sequence[str] = PATHS,
    probe: int = PROBE,
    activations: PathLike | None = None,
    fail_above: float | None = None,
    cost: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> DriftReport:
    """Measure, for every tensor that `adapters` change, what rounding does to the merged weight and to its outputs.

    Of the stored weight W': ‖W' − W − Δ‖ / ‖W + Δ‖, and what survives of the update, ⟨W' − W, Δ⟩ / ⟨Δ, Δ⟩. Of outputs
    y = x·W'ᵀ (merged) and y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ (unmerged, rounded as at inference in the storage dtype): relative
    error, largest difference and cosine, to the value in float64 and to each other. fidelity/model.py judges them.

    base, adapters, weights, compose, renames, leave_out, only, exclude, expert_layout: as for `merge`
    as_trained:  as for `merge`: unmerged is the QLoRA run; the distance to a run on the dense base is told too
    merged:      a checkpoint that another tool made of them: its W' is judged in the place of our own
    paths:       which to compare, of those in adaptertool.fidelity.paths
    probe:       so many Gaussian inputs of unit variance for each layer, the same in every run
    activations: a .safetensors file with inputs (..., in) by module name, instead of the probe
    fail_above:  `ok` is False where the drift of any module is above this relative error
    cost:        also time layers of these shapes
    threads:     the available cores, up to 8, where None; the result does not depend on it
    progress:    called with the number of bytes of the base that were just measured, from several threads
    Raises AdapterToolError (see `adaptertool.errors`).

    >>> adaptertool.drift("fixtures/base", ["fixtures/lora"], probe=2).verdict
    'expected'
    """
    start, threads = time.perf_counter(), thread_count(threads)
    _check(paths, probe, fail_above, recorded=activations is not None)
    threads = thread_count(threads)
    recipe = MergeRecipe(compose=compose, tokenizer=BASE)
    subject, other, of_codes = _numbers(
        as_input(base, "BASE"), None if merged is None else as_input(merged, "--merged")
    )
    subject = as_asked(subject, as_trained=check_as_trained(as_trained))
    made = prepare(subject, adapters, weights, recipe, Reading(renames, leave_out, expert_layout, only, exclude))
    plan = made.plan
    steps = [step for step in plan.steps() if step.edits and step.spec.numel]
    candidate, found = (None, []) if other is None else _aligned(other, plan, made.base)
    header = None if activations is None else read_header(as_path(activations, "--activations"))

    others = [*(candidate.headers if candidate else ()), *([header] if header else ())]
    subjects = [run.subject_of(step, len(plan.sources), candidate) for step in steps]
    source = run.probe_of(probe, steps, header)
    modules = run.measure_all(plan, others, subjects, source, frozenset(paths), threads, progress or (lambda _: None))
    return DriftReport(
        base=called(plan.base),
        sources=tuple(map(called, plan.sources)),
        weights=plan.weights,
        weight_rules=plan.weight_rules,
        merged=None if merged is None else str(merged),
        compose=compose,
        inputs=f"{probe} Gaussian rows" if activations is None else str(activations),
        cost=run.costs_of(subjects) if cost else (),
        as_trained=as_trained,
        from_dense=None if as_trained is None else from_dense(plan, others, subjects, threads),
        notes=(*plan.notes, *of_codes, *found, *source.notes, *_notes(plan, steps)),
        threads=threads,
        seconds=time.perf_counter() - start,
        **summary(modules, fail_above),
    )


def _numbers(base: Path, merged: Path | None) -> tuple[Checkpoint, Checkpoint | None, list[str]]:
    """The base, and the merged checkpoint, with their weights decoded where they are codes; and what there is to say of
    those of the second."""
    opened = open_checkpoint(base)
    if merged is None:
        return as_numbers(opened), None, []
    stored = open_checkpoint(merged)
    pair = alike(opened, numbers := as_numbers(stored))
    if numbers is stored:
        return pair.base, pair.candidate, []
    note = (
        f"{merged} is quantised, and the rounding to its codes counts as drift here, as rounding to numbers does not "
        "explain it; whether each code is the right one `adaptertool verify` says"
    )
    return pair.base, pair.candidate, [note]


def _aligned(merged: Checkpoint, plan: Plan, base: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """The checkpoint with the names of the plan, and a note of that."""
    names = dict.fromkeys(step.spec.name for step in plan.steps())
    return aligned(names, base.config, merged)


def _check(paths: Sequence[str], probe: int, fail_above: float | None, *, recorded: bool) -> None:
    if unknown := set(paths) - set(PATHS):
        given = ", ".join(map(repr, sorted(unknown)))
        raise UsageError(f"{argument('paths')} are {', '.join(PATHS)}, and not {given}")
    if not recorded and not 1 <= probe <= MAX_PROBE:
        raise UsageError(f"{argument('probe')} must be 1 to {MAX_PROBE} rows, not {probe}")
    if fail_above is not None and not (math.isfinite(fail_above) and fail_above >= 0):
        raise UsageError(f"{argument('fail_above')} is a number from 0 on, not {fail_above}")


def _notes(plan: Plan, steps: Iterable[Step]) -> Iterator[str]:
    if len(plan.sources) > 1 and any(kind_of(edit).norms for step in steps for edit in step.edits):
        yield (
            "with DoRA, adapters together (unmerged) and in turn (stacked, stepwise) are different formulas; where "
            "they meet in one tensor their distance is more than rounding, and is not judged"
        )
