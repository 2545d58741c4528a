"""The report of `apply --sweep` as a page: the scores against each number, and target against reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from adaptertool.errors import shown
from adaptertool.render.colours import INK, NEUTRAL
from adaptertool.render.made import Made
from adaptertool.render.page import figure, page, set_scale
from adaptertool.render.score_pictures import AXES, TOO_LARGE, drawable, legend, scale_of, short, styles
from adaptertool.render.scored import at_text, chosen, failure_lines, failures, number
from adaptertool.render.sheet import RIGHT, WRONG, Cell, Figure, Row, Sheet, SheetTable, tail
from adaptertool.reports.scores import best_point, drawn, names_of, value_of
from adaptertool.reports.sweep import SweepPoint, SweepReport

_HEIGHT = 3.4  # inches
_PICTURES = 8  # numbers that have a picture each; of more, the table alone


def sweep_page(report: SweepReport, made: Made | None = None) -> str:
    return page(dataclasses.replace(sweep_sheet(report), figures=_figures(report, names_of(report.points))), made)


def sweep_sheet(report: SweepReport) -> Sheet:
    """What the page says, without its pictures."""
    names = names_of(report.points)
    scored = len(report.points) - failures(report)
    better = "lower" if report.minimise else "higher"
    numbers = [(name, f"{', '.join(own)} (the recipe: {report.start[name]})") for name, own in report.numbers.items()]
    return Sheet(
        command="apply",
        heading=f"Sweep over {tail(report.recipe)}",
        badge=("complete", RIGHT) if report.ok else ("incomplete", WRONG),
        verdict=f"{scored} of {len(report.points)} points were scored; {better} is better",
        about=[("recipe", report.recipe), ("scored by", report.scored_by), ("search", report.search), *numbers],
        facts=[
            (f"best for {one.score}", f"{at_text(one.at)} ({number(one.value)}){chosen(report, one)}")
            for one in report.best
        ],
        alerts=() if not names or drawable(report.points, names) else (TOO_LARGE,),
        tables=[
            SheetTable(
                title="Points", head=(*report.numbers, *names), rows=[_row(point, names) for point in report.points]
            )
        ],
        notes=(*report.notes, f"Key of inputs, recipe and what scores: {report.key}"),
    )


def _row(point: SweepPoint, names: list[str]) -> Row:
    first, *others = point.at.values()
    if not point.scores:
        lines = tuple(map(str.strip, failure_lines(point)))
        return [Cell(first, WRONG, fold="failed", lines=lines), *others, *("" for _ in names)]
    return [first, *others, *(number(value_of(point, name)) for name in names)]


def _figures(report: SweepReport, names: list[str]) -> list[Figure]:
    points = [point for point in report.points if point.scores]
    if not drawable(points, names):
        return []
    better = "lower is better" if report.minimise else "higher is better"
    found = []
    for name in list(report.numbers)[:_PICTURES]:
        draw = functools.partial(_by_number, report=report, where=name, names=names)
        drawing = figure(draw, _HEIGHT, title=f"Scores by {name}")
        line = "" if len(report.numbers) == 1 else "; the line goes through the best with each value"
        found.append((drawing, f"Scores against {name}, {better}{line}. A ring is the best of its score."))
    if report.target is not None and (reference := report.reference) is not None:
        target = drawn(points, report.target, reference)
        scale = scale_of([value_of(point, name) for point in points for name in (target, reference)])
        against = figure(
            lambda axes: _against(axes, report, target, reference, scale), _HEIGHT, title="Target against reference"
        )
        found.append((against, f"{shown(target)} against {shown(reference)}{AXES[scale]}. A ring is the best target."))
    return found


def _by_number(axes: Any, report: SweepReport, where: str, names: list[str]) -> None:
    points = [point for point in report.points if point.scores]
    drawn_so = styles(names, (report.target, report.reference), has_mean=points[0].mean is not None)
    for name, best, (colour, line, label) in zip(names, report.best, drawn_so, strict=True):
        at = [float(point.at[where]) for point in points]
        if len(report.numbers) > 1:
            axes.plot(at, [value_of(point, name) for point in points], ".", color=colour, alpha=0.4, markersize=4)
        across = sorted(set(at))
        up = [value_of(best_point(_with(points, where, x), name, minimise=report.minimise), name) for x in across]
        axes.plot(across, up, line, color=colour, marker=".", linewidth=1.5, label=label)
        ring = float(best.at[where]), best.value
        axes.plot(*ring, marker="o", markersize=9, fillstyle="none", color=colour)
    together = [value_of(point, name) for point in points for name in names]
    set_scale(axes.yaxis, together, scale_of(together))
    set_scale(axes.xaxis, [float(point.at[where]) for point in points], "linear")
    axes.set_xlabel(short(where))
    legend(axes)


def _with(points: Sequence[SweepPoint], where: str, value: float) -> list[SweepPoint]:
    return [point for point in points if float(point.at[where]) == value]


def _against(axes: Any, report: SweepReport, target: str, reference: str, scale: str) -> None:
    points = [point for point in report.points if point.scores]
    across = [value_of(point, reference) for point in points]
    up = [value_of(point, target) for point in points]
    axes.plot(across, up, ".", color=NEUTRAL, markersize=7)
    best = best_point(points, target, minimise=report.minimise)
    ring = value_of(best, reference), value_of(best, target)
    axes.plot(*ring, marker="o", markersize=10, fillstyle="none", color=INK)
    axes.margins(0.1)
    set_scale(axes.xaxis, across, scale)
    set_scale(axes.yaxis, up, scale)
    axes.set_xlabel(short(reference))
    axes.set_ylabel(short(target))
    legend(axes)
