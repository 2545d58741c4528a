"""The report of `wise --score` as text, and as the files in OUT."""

from __future__ import annotations

from adaptertool.errors import shown
from adaptertool.render.text import table
from adaptertool.reports.curve import BEST, PAGE, SCORES, TABLE, CurvePoint, CurveReport, names_of, value_of


def number(value: float) -> str:
    return f"{value:.4g}"


def curve_text(report: CurveReport, measured: int, width: int | None = None) -> str:
    """measured: how many of the points were measured now, and not taken from an earlier run."""
    names = names_of(report.points)
    direction = "lower" if report.minimise else "higher"
    lines = [f"{title(report)} -> {report.out or 'nothing is kept'}", f"  scored by {shown(report.scored_by)}"]
    if old := sum(bool(point.scores) for point in report.points) - measured + failures(report):
        lines.append(f"  {old} of {len(report.points)} points are from an earlier run")
    if names:
        rows = [[f"{point.alpha:.12g}", *cells(point, names)] for point in report.points]
        rows.append([f"best alpha ({direction})", *(f"{best.alpha:.12g}" for best in report.best)])
        lines += ["", *table(["alpha", *names], rows, width), ""]
    if not report.ok:
        lines.append(f"  {failures(report)} of {len(report.points)} points could not be scored:")
        for point in report.points:
            lines += failure_lines(point)
    if not names:
        lines.append("  nothing was published, since there is no score")
    elif report.out is not None:
        lines.append(f"  checkpoints  {_kept(report)}")
        lines.append(f"  results      {', '.join(_files(report))}")
    return "\n".join(lines).rstrip("\n")


def _kept(report: CurveReport) -> str:
    paths = [point.path for point in report.points if point.path]
    if report.keep == BEST:
        return f"{paths[0]}, the best by {shown(report.target)}"
    return f"{len(paths)} kept" if paths else "none kept"


def title(report: CurveReport) -> str:
    inputs = " + ".join(map(shown, (report.base, *report.sources)))
    return f"{report.command} {inputs} at {len(report.points)} alpha{'s' if len(report.points) > 1 else ''}"


def failures(report: CurveReport) -> int:
    return sum(point.failure is not None for point in report.points)


def point_text(point: CurvePoint) -> str:
    """One point, as it is told while the others are not measured yet."""
    if point.failure is not None:
        return "\n".join(line.strip() for line in failure_lines(point))
    scores = ", ".join(f"{shown(name)} {number(value)}" for name, value in point.scores.items())
    return f"alpha {point.alpha:.12g}: {scores}"


def failure_lines(point: CurvePoint) -> list[str]:
    first, *rest = map(shown, (point.failure or "").split("\n"))
    return [f"  alpha {point.alpha:.12g}: {first}", *(f"  {line}" for line in rest)] if point.failure else []


def _files(report: CurveReport) -> tuple[str, ...]:
    return (SCORES, TABLE) if any(PAGE in note for note in report.notes) else (SCORES, TABLE, PAGE)


def cells(point: CurvePoint, names: list[str]) -> list[str]:
    return [number(value_of(point, name)) if point.scores else "failed" for name in names]
