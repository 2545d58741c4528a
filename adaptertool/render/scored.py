"""What is said of points that were scored, of curves and of sweeps alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from adaptertool.errors import shown
from adaptertool.reports.curve import CurveReport
from adaptertool.reports.scores import SCORES, TABLE, Scored, value_of
from adaptertool.reports.sweep import BestPoint, SweepReport

Report = CurveReport | SweepReport


def number(value: float) -> str:
    return f"{value:.4g}"


def at_text(numbers: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in numbers.items())


def chosen(report: SweepReport, best: BestPoint) -> str:
    """What is said behind the best that OUT is made of."""
    return ", chosen" if best.score == report.target and report.out is not None else ""


def point_text(point: Scored) -> str:
    """One point, as it is told while the others are not measured yet."""
    if point.failure is not None:
        return "\n".join(line.strip() for line in failure_lines(point))
    scores = ", ".join(f"{shown(name)} {number(value)}" for name, value in point.scores.items())
    return f"{at_text(point.at)}: {scores}"


def failures(report: Report) -> int:
    return sum(point.failure is not None for point in report.points)


def failure_lines(point: Scored) -> list[str]:
    first, *rest = map(shown, (point.failure or "").split("\n"))
    return [f"  {at_text(point.at)}: {first}", *(f"  {line}" for line in rest)] if point.failure else []


def all_failures(report: Report) -> list[str]:
    """How many points failed, and why; nothing where none did."""
    if report.ok or not failures(report):
        return []
    points: Iterable[Scored] = report.points
    lines = [f"  {failures(report)} of {len(report.points)} points could not be scored:"]
    return lines + [line for point in points for line in failure_lines(point)]


def from_earlier(report: Report, measured: int) -> list[str]:
    """How many points were not measured now. measured: those that were, and those that failed"""
    old = sum(bool(point.scores) for point in report.points) - measured + failures(report)
    return [f"  {old} of {len(report.points)} points are from an earlier run"] if old else []


def cells(point: Scored, names: Sequence[str]) -> list[str]:
    return [number(value_of(point, name)) if point.scores else "failed" for name in names]


def files_of(report: Report, page: str) -> tuple[str, ...]:
    return (SCORES, TABLE) if any(page in note for note in report.notes) else (SCORES, TABLE, page)
