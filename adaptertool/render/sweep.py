"""The report of `apply --sweep` as text."""

from __future__ import annotations

from adaptertool.errors import shown
from adaptertool.render.scored import all_failures, at_text, cells, chosen, files_of, from_earlier, number
from adaptertool.render.text import counted, table
from adaptertool.reports.scores import names_of
from adaptertool.reports.sweep import COORDINATE, PAGE, SweepReport


def sweep_text(report: SweepReport, measured: int, width: int | None = None) -> str:
    """measured: how many of the points were measured now, and not taken from an earlier run."""
    if report.dry_run:
        return _planned(report, width)
    names = names_of(report.points)
    lines = [f"{sweep_title(report)} -> {report.out or 'nothing is kept'}", f"  scored by {shown(report.scored_by)}"]
    lines += from_earlier(report, measured)
    if names:
        rows = [[*point.at.values(), *cells(point, names)] for point in report.points]
        lines += ["", *table([*report.numbers, *names], rows, width), ""]
    lines += all_failures(report)
    if not names:
        return "\n".join([*lines, "  nothing was published, since there is no score"])
    direction = "lowest" if report.minimise else "highest"
    for best in report.best:
        lines.append(
            f"  {direction} {shown(best.score)}: {number(best.value)} at {at_text(best.at)}{chosen(report, best)}"
        )
    if report.results is not None:
        lines.append(f"  results in {shown(report.results)}: {', '.join(files_of(report, PAGE))}")
    return "\n".join(lines)


def sweep_title(report: SweepReport) -> str:
    count = f"{len(report.points):,} point{'' if len(report.points) == 1 else 's'}"
    return f"apply {shown(report.recipe)}: {count}, {report.search} search"


def _planned(report: SweepReport, width: int | None) -> str:
    """What a dry run would score; a coordinate search knows its first point alone."""
    rows = [list(point.at.values()) for point in report.points]
    heads = list(report.numbers)
    if report.search == COORDINATE:
        values = [f"  {name}: {', '.join(values)}" for name, values in report.numbers.items()]
        head = f"apply {shown(report.recipe)}: coordinate search, planned, from {at_text(report.start)}"
        return "\n".join([head, *values, *_measured(report), *_steps(report)])
    lines = ["", *table(heads, rows, width), "", *_measured(report), *_steps(report)]
    return "\n".join([f"{sweep_title(report)}, planned", *lines])


def _measured(report: SweepReport) -> list[str]:
    count = sum(1 for point in report.points if point.scores)
    return [f"  {counted(count, 'point')} measured already: taken over, and not made again"] if count else []


def _steps(report: SweepReport) -> list[str]:
    steps = [f"{number} {one.command} {one.state}" for number, one in enumerate(report.planned, 1)]
    return [f"  the first point: step {'; step '.join(steps)}"] if steps else []
