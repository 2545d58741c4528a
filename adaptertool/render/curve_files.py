"""The files of a curve in OUT, beside its checkpoints."""

from __future__ import annotations

import csv
import io

from adaptertool.errors import UsageError
from adaptertool.render.curve_page import curve_page
from adaptertool.render.machine import to_json
from adaptertool.render.page import require_libraries
from adaptertool.reports.curve import PAGE, SCORES, TABLE, CurveReport, names_of, value_of


def without_page() -> tuple[str, ...]:
    """A note where no page can be made."""
    try:
        require_libraries()
    except UsageError as error:
        return (f"there is no {PAGE}: {error}",)
    return ()


def result_files(report: CurveReport) -> dict[str, bytes]:
    """What stands in OUT beside the checkpoints, by name."""
    files = {SCORES: to_json(report, indent=2) + "\n", TABLE: _csv(report)}
    if not without_page():
        files[PAGE] = curve_page(report)
    return {name: text.encode(errors="backslashreplace") for name, text in files.items()}


def _csv(report: CurveReport) -> str:
    """A line for each alpha; nothing where measuring failed."""
    names = names_of(report.points)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["alpha", *names])
    for point in report.points:
        writer.writerow([point.alpha, *(value_of(point, name) if point.scores else "" for name in names)])
    return file.getvalue()
