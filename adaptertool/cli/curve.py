"""`wise --score`: the curve is measured, and its report printed. Loaded only then."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from adaptertool.arguments import as_path
from adaptertool.cli.boundary import ignore_signals, say
from adaptertool.cli.options import failed, say_notes, tell
from adaptertool.errors import UsageError
from adaptertool.render.curve import curve_text, failures, point_text, title
from adaptertool.reports.curve import CurvePoint
from adaptertool.scoring.run import score_curve
from adaptertool.scoring.scorer import scorer_of
from adaptertool.scoring.settings import CurveSettings
from adaptertool.tasks.curve import prepare_curve


def score_and_tell(
    base: str,
    tuned: str,
    alpha: str,
    recipe: Mapping[str, Any],
    score: str,
    wishes: Mapping[str, Any],
    out: str | None,
    *,
    force: bool,
    clean: bool,
    fail_if_unchanged: bool,
    verify: bool,
    sha256: bool,
    provenance: str | None,
    dry_run: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """The exit code. recipe: options of `prepare_curve`; wishes: of CurveSettings; the rest are those of the command"""
    settings = CurveSettings.of(**wishes, published=out is not None)
    scorer = scorer_of(score)
    plan = prepare_curve(base, tuned, alpha, **recipe)
    _refuse(plans=dry_run or verbose, fail_if_unchanged=fail_if_unchanged, provenance=provenance)

    measured: list[CurvePoint] = []

    def progress(point: CurvePoint) -> None:
        measured.append(point)
        if not quiet:
            say(point_text(point), sys.stderr)

    def note(text: str) -> None:
        say_notes([text], quiet=quiet)

    report = score_curve(
        plan,
        None if out is None else as_path(out, "OUT"),
        scorer,
        settings,
        force=force,
        verify=verify,
        sha256=sha256,
        threads=threads,
        progress=progress,
        before_publish=ignore_signals,
        clean=clean,
        note=note,
    )
    tell(report, lambda: curve_text(report, len(measured)), as_json=as_json, quiet=quiet)
    if report.ok:
        return 0
    return failed(
        f"{title(report)}: {failures(report)} of {len(report.points)} points could not be scored", quiet=quiet
    )


def _refuse(*, plans: bool, fail_if_unchanged: bool, provenance: str | None) -> None:
    """Raises UsageError for options that a curve has not."""
    if plans:
        raise UsageError(
            "--dry-run and -v show the plan of a sweep, and nothing of scores: leave --score away for them"
        )
    if fail_if_unchanged:
        raise UsageError("--fail-if-unchanged is for one OUT that is made, not for scores")
    if provenance is not None:
        raise UsageError("--provenance is of one OUT that is made; make it with the alpha that is chosen by the scores")
