"""`verify`: is a checkpoint what the merge, or the interpolation, of these inputs should give? Whatever made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from adaptertool.architectures.decoded_beside import alike
from adaptertool.arguments import Number, PathLike, as_input, check_as_trained
from adaptertool.errors import UsageError
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.formats import misreadings
from adaptertool.formats.checkpoints import as_asked, open_checkpoint
from adaptertool.planning.merge import plan_merge
from adaptertool.planning.schedules import Given
from adaptertool.planning.sources import COMPOSITIONS, Prepared, Reading, base_of
from adaptertool.planning.tokenizer import BASE
from adaptertool.reports.verify import VerifyReport
from adaptertool.resolution.renaming import renaming
from adaptertool.resolution.resolve import open_base
from adaptertool.tasks import merge, wise
from adaptertool.verification.check import check


class VerifyRecipe(NamedTuple):
    """What a checkpoint should have been made of. The fields are those of `verify`."""

    sources: Sequence[PathLike] = ()
    weights: Sequence[Given] | None = None
    alpha: Number | None = None
    compose: str = COMPOSITIONS[0]


def prepare_verify(base: PathLike | Checkpoint, recipe: VerifyRecipe, reading: Reading) -> Prepared:
    """The plan of what a checkpoint should be. Raises UsageError, and what planning raises."""
    if recipe.alpha is not None:
        if len(recipe.sources) != 1:
            raise UsageError("with an alpha there is one adapter, or one tuned checkpoint")
        between = wise.WiseRecipe(tokenizer=BASE, weights=recipe.weights)
        return wise.prepare(base, recipe.sources[0], [recipe.alpha], between, reading)
    if not recipe.sources:
        subject = open_base(base_of(base, None))
        return Prepared(plan_merge(subject, [], []), subject.base, subject, [])
    summed = merge.MergeRecipe(compose=recipe.compose, tokenizer=BASE)
    return merge.prepare(base, recipe.sources, recipe.weights, summed, reading)


def verify(
    merged: PathLike,
    base: PathLike,
    sources: Sequence[PathLike] = (),
    *,
    weights: Sequence[Given] | None = None,
    alpha: Number | None = None,
    compose: str = "sequential",
    renames: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    expert_layout: str | None = None,
    as_trained: str | None = None,
    strict: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Judge every tensor of the checkpoint `merged`, made by any tool, against the exact merge. One pass, streaming.

    base, sources, weights, compose, leave_out, only, exclude, expert_layout: what it should have been made of, as for
            `merge`; with an alpha, as for `wise`
    renames: on the names of sources and of `merged`; each must change a name of one of them
    as_trained: as for `merge`; of a merge into the other base the fault is dense-base, or nf4-base (or fp4-base)
    alpha:  where it should be an interpolation, as by `wise`: of an adapter or of a tuned checkpoint
    strict: what rounding explains counts as wrong too

    A tensor is "exact" (the bits of the exact merge), "rounding" (what an honest recipe explains:
    verification.examine), "wrong", "untouched_changed", "missing" or "extra". Of what is wrong the fault is named:
    not-applied, applied-twice, wrong-scale (with the fitted scale), rslora-ignored, alpha-pattern-ignored, transposed,
    magnitude-ignored, negated, wrong-base, row-shifted (other rows', or another tensor's data), truncated, stochastic,
    lower-precision, nan, overflow, dtype-changed, shape-changed, unknown, and those of kinds (Kind.misreadings):
    alpha-squared, alpha-ignored, alpha-of-others, factors-swapped, factor-ignored, norm-of-base, norm-axis, one-added,
    one-missing, other-side, rotation-transposed, setting-ignored, taken-for-lora; across GGUF: rows-not-reordered; of
    layers that the base has in another order, or in one: halves-not-swapped, cut-in-thirds; of MLX's scale:
    scale-as-alpha, scale-ignored, scale-default. `problems` has what is wrong beside single tensors:
    fields of config.json, and a scale that shows in all tensors together only.

    Both may be quantised, or one: weights that are codes are decoded, and those of `merged` must each be the nearest on
    the scale beside it; of the base whatever no change touches must stay. Their faults: codes-transposed,
    nibbles-swapped, zero-point, scales-of-others, scales-inverted, scales-too-large, cut-off, not-nearest; and in
    `problems` scales-missing, config-says-dense, codes-do-not-fit.

    Raises InputError where something cannot be read, or the merge itself is refused.

    >>> report = adaptertool.verify("fixtures/base", "fixtures/base", ["fixtures/lora"])
    >>> report.ok, report.summary.diagnosis
    (False, ('not-applied',))
    """
    recipe = VerifyRecipe(sources, weights, alpha, compose)
    with renaming(renames) as own:
        candidate = open_checkpoint(as_input(merged, "MERGED"))
        pair = alike(open_checkpoint(as_input(base, "BASE")), candidate)
        asked = as_asked(pair.base, as_trained=check_as_trained(as_trained))
        made = prepare_verify(asked, recipe, Reading(own, leave_out, expert_layout, only, exclude))
        candidate = own.checkpoint(pair.candidate, made.base)
    subject, readings = made.subject or open_base(made.base), misreadings(made.sources)
    report = check(made.plan, subject, candidate, readings, strict=strict, threads=threads, progress=progress)
    if not pair.problems:
        return report
    return dataclasses.replace(report, ok=False, problems=(*pair.problems, *report.problems))
