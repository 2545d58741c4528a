"""`wise --score`: the curve is measured, and its report printed. Loaded only then."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from adaptertool.arguments import as_path
from adaptertool.cli.boundary import say
from adaptertool.cli.options import Printing, failed, say_notes, tell
from adaptertool.cli.terminal import room
from adaptertool.errors import UsageError
from adaptertool.output.options import Options
from adaptertool.planning.sources import Reading
from adaptertool.render.curve import curve_text, title
from adaptertool.render.scored import failures, point_text
from adaptertool.reports.curve import CurvePoint
from adaptertool.scoring.run import score_curve
from adaptertool.scoring.scorer import scorer_of
from adaptertool.scoring.settings import ScoreSettings
from adaptertool.tasks.curve import prepare_curve
from adaptertool.tasks.wise import WiseRecipe


def score_and_tell(
    inputs: tuple[str, str, str, WiseRecipe, Reading],
    score: str,
    wishes: Mapping[str, Any],
    out: str | None,
    options: Options,
    printing: Printing,
) -> int:
    """The exit code. inputs: the arguments of `prepare_curve`; wishes: those of ScoreSettings"""
    settings = ScoreSettings.of(**wishes, published=out is not None)
    scorer = scorer_of(score)
    plan = prepare_curve(*inputs)
    _refuse(options, printing)
    measured: list[CurvePoint] = []

    def progress(point: CurvePoint) -> None:
        measured.append(point)
        if not printing.quiet:
            say(point_text(point), sys.stderr)

    def note(text: str) -> None:
        say_notes([text], quiet=printing.quiet)

    target = None if out is None else as_path(out, "OUT")
    report = score_curve(plan, target, scorer, settings, dataclasses.replace(options, note=note), progress)
    tell(report, lambda: curve_text(report, len(measured), room()), as_json=printing.as_json, quiet=printing.quiet)
    if report.ok:
        return 0
    what = f"{title(report)}: {failures(report)} of {len(report.points)} points could not be scored"
    return failed(what, quiet=printing.quiet)


def _refuse(options: Options, printing: Printing) -> None:
    """Raises UsageError for options that a curve has not."""
    if options.dry_run or printing.verbose:
        raise UsageError(
            "--dry-run and -v show the plan of a sweep, and nothing of scores: leave --score away for them"
        )
    if printing.html is not None:
        raise UsageError("--html is for a run without --score: a curve has its page in OUT, curve.html")
    if options.fail_if_unchanged:
        raise UsageError("--fail-if-unchanged is for one OUT that is made, not for scores")
    if options.provenance is not None:
        raise UsageError("--provenance is of one OUT that is made; make it with the alpha that is chosen by the scores")
