"""`apply --sweep`: the sweep is run, and its report printed. Loaded only then."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.cli.apply import opened
from adaptertool.cli.boundary import ignore_signals, say
from adaptertool.cli.options import failed, say_notes, tell
from adaptertool.cli.steps import How
from adaptertool.cli.sweep import asked_for, planned, swept
from adaptertool.cli.terminal import room
from adaptertool.errors import UsageError, shown
from adaptertool.render.scored import failures, point_text
from adaptertool.render.sweep import sweep_text, sweep_title
from adaptertool.reports.sweep import SweepPoint


def sweep_and_tell(
    recipe: str,
    out: str | None,
    search: tuple[Sequence[str], str, str],
    wishes: Mapping[str, Any],
    how: How,
    **more: Any,
) -> int:
    """The exit code. search: texts of --sweep, how to search, and what scores; more: the other options of `apply`"""
    quiet, measured = how.quiet, list[SweepPoint]()
    typed, way, score = search
    asked = asked_for(opened(recipe, {}), out, (_typed(typed), way, score), wishes, how, more["results"])

    def progress(point: SweepPoint) -> None:
        measured.append(point)
        if not quiet:
            say(point_text(point), sys.stderr)

    def note(text: str) -> None:
        say_notes([text], quiet=quiet)

    def text() -> str:
        sound = f"apply {shown(asked.recipe.file)}: sound"
        return sound if more["check"] else sweep_text(report, len(measured), room())

    if more["check"] or more["dry_run"]:
        report = planned(asked, steps=not more["check"])
    else:
        report = swept(asked, progress, note, ignore_signals)
    if more["write"] is not None:
        more["write"](report)
    tell(report, text, as_json=more["as_json"], quiet=quiet)
    if report.ok:
        return 0
    return failed(
        f"{sweep_title(report)}: {failures(report)} of {len(report.points)} points could not be scored", quiet=quiet
    )


def _typed(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        place, equals, values = text.partition("=")
        if not (place and equals and values):
            raise UsageError(f"--sweep {text}: it is PLACE=VALUES, such as weights.0=0:1:0.25 or density=0.3,0.5")
        if place in found:
            raise UsageError(f"--sweep {place} is given twice: give all its values in one")
        found[place] = values
    return found
