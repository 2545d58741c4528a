"""The report of `wise --score` as text."""

from __future__ import annotations

from adaptertool.errors import shown
from adaptertool.render.scored import all_failures, cells, files_of, from_earlier
from adaptertool.render.text import table
from adaptertool.reports.curve import PAGE, CurveReport
from adaptertool.reports.scores import BEST, names_of


def curve_text(report: CurveReport, measured: int, width: int | None = None) -> str:
    """measured: how many of the points were measured now, and not taken from an earlier run."""
    names = names_of(report.points)
    direction = "lower" if report.minimise else "higher"
    lines = [f"{title(report)} -> {report.out or 'nothing is kept'}", f"  scored by {shown(report.scored_by)}"]
    lines += from_earlier(report, measured)
    if names:
        rows = [[*point.at.values(), *cells(point, names)] for point in report.points]
        rows.append([f"best alpha ({direction})", *(f"{best.alpha:.12g}" for best in report.best)])
        lines += ["", *table(["alpha", *names], rows, width), ""]
    lines += all_failures(report)
    if not names:
        lines.append("  nothing was published, since there is no score")
    elif report.out is not None:
        lines.append(f"  checkpoints  {_kept(report)}")
        lines.append(f"  results      {', '.join(files_of(report, PAGE))}")
    return "\n".join(lines).rstrip("\n")


def _kept(report: CurveReport) -> str:
    paths = [point.path for point in report.points if point.path]
    if report.keep == BEST:
        return f"{paths[0]}, the best by {shown(report.target)}"
    return f"{len(paths)} kept" if paths else "none kept"


def title(report: CurveReport) -> str:
    inputs = " + ".join(map(shown, (report.base, *report.sources)))
    return f"{report.command} {inputs} at {len(report.points)} alpha{'s' if len(report.points) > 1 else ''}"
