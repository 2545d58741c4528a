"""The files of scores: those of a curve stand in OUT, beside its checkpoints."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Sequence

from adaptertool.errors import UsageError
from adaptertool.render.curve_page import curve_page
from adaptertool.render.machine import to_json
from adaptertool.render.page import require_libraries
from adaptertool.render.scored import Report
from adaptertool.render.sweep_page import sweep_page
from adaptertool.reports import curve, sweep
from adaptertool.reports.curve import CurvePoint, CurveReport
from adaptertool.reports.scores import SCORES, TABLE, Scored, names_of, value_of


def without_page(page: str) -> tuple[str, ...]:
    """A note where no page can be made."""
    try:
        require_libraries()
    except UsageError as error:
        return (f"there is no {page}: {error}",)
    return ()


def result_files(report: Report) -> dict[str, bytes]:
    """What is written of the scores, by name."""
    if isinstance(report, CurveReport):
        heads, page, made = ["alpha"], curve.PAGE, functools.partial(curve_page, report)
    else:
        heads, page, made = list(report.numbers), sweep.PAGE, functools.partial(sweep_page, report)
    files = {SCORES: to_json(report, indent=2) + "\n", TABLE: _csv(heads, report.points)}
    if not without_page(page):
        files[page] = made()
    return {name: text.encode(errors="backslashreplace") for name, text in files.items()}


def _csv(heads: Sequence[str], points: Sequence[Scored]) -> str:
    """A line for each point, with all digits of its numbers; nothing where measuring failed."""
    names = names_of(points)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*heads, *names])
    for point in points:
        place = [point.alpha] if isinstance(point, CurvePoint) else point.at.values()
        writer.writerow([*place, *(value_of(point, name) if point.scores else "" for name in names)])
    return file.getvalue()
