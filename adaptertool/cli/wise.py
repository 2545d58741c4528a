"""`wise`, and its curve."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from adaptertool.arguments import as_path
from adaptertool.cli.boundary import say
from adaptertool.cli.options import (
    LEAVE_OUT,
    TOKENIZER,
    Printing,
    execute,
    failed,
    records,
    say_notes,
    tell,
    with_options,
    writes,
)
from adaptertool.errors import UsageError
from adaptertool.output.options import Options
from adaptertool.planning.sources import Reading
from adaptertool.render.curve import curve_text, failures, point_text, title
from adaptertool.reports.curve import KEEP, CurvePoint
from adaptertool.scoring.run import score_curve
from adaptertool.scoring.scorer import Scorer, scorer_of
from adaptertool.scoring.settings import CurveSettings
from adaptertool.spec.plan import Plan
from adaptertool.tasks.curve import prepare_curve
from adaptertool.tasks.wise import WiseRecipe, prepare

_SCORES = with_options(
    click.option("--score", metavar="'CMD {}'", help="Run CMD on each checkpoint; it prints a number, or JSON."),
    click.option("--keep", type=click.Choice(KEEP), help="With --score: which checkpoints (default: all with -o)."),
    click.option("--target", metavar="NAME", help="The score to choose the best by; or mean (default: the first)."),
    click.option("--reference", metavar="NAME", help="The score to draw it against (default: the next)."),
    click.option("--minimise", is_flag=True, help="Lower scores are better."),
)


@click.command()
@click.argument("base", type=click.Path())
@click.argument("tuned", type=click.Path())
@click.option("--alpha", required=True, help="A number, a list 0,0.3,1 or a sweep START:STOP:STEP.")
@click.option("--as-adapter", is_flag=True, help="Write an adapter that, merged into BASE, gives the same.")
@click.option(
    "--fisher",
    nargs=2,
    type=click.Path(),
    metavar="F0 F1",
    help="Weigh each element by these: checkpoints of Fisher information, of BASE and of TUNED.",
)
@LEAVE_OUT
@TOKENIZER
@_SCORES
@click.option("-o", "--out", type=click.Path(), help="Where to write. With --score it may be left out.")
@writes
def wise(
    base: str,
    tuned: str,
    alpha: str,
    fisher: tuple[str, str] | None,
    score: str | None,
    keep: str | None,
    target: str | None,
    reference: str | None,
    minimise: bool,
    out: str | None,
    renames: tuple[str, ...],
    expert_layout: str | None,
    precision: str,
    as_adapter: bool,
    leave_out: tuple[str, ...],
    tokenizer: str | None,
    **options: Any,
) -> int:
    """Interpolate BASE towards TUNED: W + alpha·(T - W), for one alpha or many (Wise-FT).

    TUNED is an adapter or a fine-tuned checkpoint. Several alphas are written to OUT/alpha-0.300 and so on,
    with one read of the base. With --score the curve is measured: CMD is run (without a shell) with the path of each
    checkpoint in the place of {}, and prints a number, or a JSON object of named numbers. The same command goes on
    where it was interrupted, or where CMD failed.
    """
    recipe = WiseRecipe(precision, as_adapter, fisher, tokenizer)
    reading = Reading(renames, leave_out, expert_layout)
    how, printing = records(options)
    if score is None:
        if keep or target is not None or reference is not None or minimise:
            raise UsageError("--keep, --target, --reference and --minimise are for scores: give --score too")
        if out is None:
            raise UsageError("-o is missing: where to write (only with --score it may be left out)")
        execute(prepare(base, tuned, alpha, recipe, reading).plan, out, how, printing)
        return 0
    wishes = CurveSettings.of(keep, target, reference, minimise=minimise, published=out is not None)
    scorer = scorer_of(score)
    plan = prepare_curve(base, tuned, alpha, recipe, reading)
    return _curve(plan, None if out is None else as_path(out, "OUT"), scorer, wishes, how, printing)


def _curve(
    plan: Plan, out: Path | None, scorer: Scorer, wishes: CurveSettings, options: Options, printing: Printing
) -> int:
    if options.dry_run or printing.verbose:
        raise UsageError(
            "--dry-run and -v show the plan of a sweep, and nothing of scores: leave --score away for them"
        )
    if options.fail_if_unchanged:
        raise UsageError("--fail-if-unchanged is for one OUT that is made, not for scores")
    if options.provenance is not None:
        raise UsageError("--provenance is of one OUT that is made; make it with the alpha that is chosen by the scores")

    measured: list[CurvePoint] = []

    def progress(point: CurvePoint) -> None:
        measured.append(point)
        if not printing.quiet:
            say(point_text(point), sys.stderr)

    def note(text: str) -> None:
        say_notes([text], quiet=printing.quiet)

    report = score_curve(plan, out, scorer, wishes, dataclasses.replace(options, note=note), progress)
    tell(report, lambda: curve_text(report, len(measured)), as_json=printing.as_json, quiet=printing.quiet)
    if report.ok:
        return 0
    what = f"{title(report)}: {failures(report)} of {len(report.points)} points could not be scored"
    return failed(what, quiet=printing.quiet)
