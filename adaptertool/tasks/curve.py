"""`wise --score`: a Wise-FT curve, that is a sweep whose every checkpoint is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from adaptertool.arguments import Number, PathLike, as_path, parse_alphas
from adaptertool.output.options import Options
from adaptertool.planning.schedules import Given
from adaptertool.planning.sources import Reading
from adaptertool.planning.wise import in_folders
from adaptertool.reports.curve import CurvePoint, CurveReport
from adaptertool.scoring.run import score_curve
from adaptertool.scoring.scorer import Score, scorer_of
from adaptertool.scoring.settings import ScoreSettings
from adaptertool.spec.choices import EXACT
from adaptertool.spec.plan import Plan
from adaptertool.tasks.wise import WiseRecipe, prepare


def prepare_curve(
    base: PathLike, tuned: PathLike, alphas: Number | Sequence[Number], recipe: WiseRecipe, reading: Reading
) -> Plan:
    """The plan of `prepare_wise`, in which every alpha has a folder, also where there is one only."""
    plan = prepare(base, tuned, alphas, recipe, reading).plan
    named = in_folders(parse_alphas(alphas))
    outputs = (dataclasses.replace(own, folder=name.folder) for own, name in zip(plan.outputs, named, strict=True))
    return dataclasses.replace(plan, outputs=tuple(outputs))


def wise_curve(
    base: PathLike,
    tuned: PathLike,
    out: PathLike | None,
    alphas: Number | Sequence[Number],
    score: Score,
    *,
    keep: str | None = None,
    target: str | None = None,
    reference: str | None = None,
    minimise: bool = False,
    renames: Sequence[str] = (),
    expert_layout: str | None = None,
    precision: str = EXACT,
    as_adapter: bool = False,
    force: bool = False,
    verify: bool = False,
    threads: int | None = None,
    progress: Callable[[CurvePoint], None] | None = None,
    sha256: bool = False,
    fisher: tuple[PathLike, PathLike] | None = None,
    leave_out: Sequence[str] = (),
    weights: Sequence[Given] | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tokenizer: str | None = None,
    clean: bool = False,
) -> CurveReport:
    """Make W + α·(T − W) for each α, score it, and publish the scores with the checkpoints that are to be kept.

    base, tuned, alphas, as_adapter, and the rest: as for `wise`
    out:      for scores.json, scores.csv, curve.html (with the extra `report`), and alpha-0.300 and so on; None: only
              the report is returned, and while it works there is a hidden directory in the current one
    score:    a command, split as a shell would but run without one, with the checkpoint's path in the place of {}, so
              that nothing in a path needs quotes; the last line on stdout, or all of it, is a number or a JSON object
              of named numbers. For pipes and the like: `sh -c 'A "$1" | B' sh {}`; for a limit of time: `timeout 1h
              CMD {}`. Or a function that is given the path and returns a number, or numbers by name.
    keep:     "all" checkpoints (as where there is an `out`), the "best" by `target`, or "none". All are made with one
              read of the base if all are kept, or take at most half of the free space; else there is one at a time, or
              two with the best so far.
    target:   the score that the best is chosen by, or "mean"; the first unless given. `reference` stands against it
              in the picture; the next unless given.
    minimise: lower is better
    progress: told each point that was measured

    A point that cannot be scored is in the report, with the end of the output, and the others go on. What the same
    command measured on the same inputs, at the same α, is taken over from an interrupted run or from `out`, which is
    replaced then. It is the same command if its words are, the current directory, and by size and time the program and
    its script (files named before the first option and before {}). What else it reads is not looked at: force=True
    measures all anew. The scores of a function are never taken over. Raises UsageError, and what `wise` raises.
    Source: M. Wortsman et al., "Robust fine-tuning of zero-shot models" (arXiv:2109.01903).

    >>> tuned_tensors = lambda path: adaptertool.diff(path, "fixtures/tuned").same
    >>> adaptertool.wise_curve("fixtures/base", "fixtures/tuned", None, [0, 0.5, 1], tuned_tensors).best[0].alpha
    1.0
    """
    wishes = ScoreSettings.of(keep, target, reference, minimise=minimise, published=out is not None)
    scorer = scorer_of(score)
    recipe = WiseRecipe(precision, as_adapter, fisher, tokenizer, weights=weights)
    plan = prepare_curve(base, tuned, alphas, recipe, Reading(renames, leave_out, expert_layout, only, exclude))
    options = Options(force=force, verify=verify, threads=threads, sha256=sha256, clean=clean)
    place = None if out is None else as_path(out, "OUT")
    return score_curve(plan, place, scorer, wishes, options, progress or (lambda _: None))
