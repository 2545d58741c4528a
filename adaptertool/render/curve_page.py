"""The report of `wise --score` as a page: scores against α, and target against reference, as the Wise-FT paper draws
them (M. Wortsman et al., arXiv:2109.01903, figure 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

from adaptertool.errors import shown
from adaptertool.render.colours import NEUTRAL
from adaptertool.render.made import Made
from adaptertool.render.page import figure, page, set_scale
from adaptertool.render.score_pictures import AXES, TOO_LARGE, drawable, legend, scale_of, short, styles
from adaptertool.render.scored import failure_lines, failures, number
from adaptertool.render.sheet import RIGHT, WRONG, Cell, Figure, Row, Sheet, SheetTable, tail
from adaptertool.reports.curve import CurvePoint, CurveReport
from adaptertool.reports.scores import MEAN, best_point, drawn, names_of, value_of

_HEIGHT = 3.4  # inches
_CARDS = 12  # best points that there is room for; of more, those in `most` are told
_ENDS = ("#2e9e6b", "#d9822b")  # as the paper marks the zero-shot model and the fine-tuned one: a star, a diamond


def curve_page(report: CurveReport, made: Made | None = None) -> str:
    return page(dataclasses.replace(curve_sheet(report), figures=_figures(report, names_of(report.points))), made)


def curve_sheet(report: CurveReport) -> Sheet:
    """What the page says, without its pictures."""
    names = names_of(report.points)
    best = [one for one in report.best if one.score in (report.target, report.reference, MEAN)]
    told = best if len(report.best) > _CARDS else report.best
    scored = len(report.points) - failures(report)
    better = "lower" if report.minimise else "higher"
    return Sheet(
        command=report.command,
        heading=f"Wise-FT curve from {tail(report.base)} to {tail(report.sources[0])}",
        badge=("complete", RIGHT) if report.ok else ("incomplete", WRONG),
        verdict=f"{scored} of {len(report.points)} points were scored; {better} is better",
        about=[("base", report.base), ("tuned", report.sources[0]), ("scored by", report.scored_by)],
        facts=[(f"best α for {one.score}", f"{one.alpha:.12g} ({number(one.value)})") for one in told],
        alerts=() if not names or drawable(report.points, names) else (TOO_LARGE,),
        tables=[
            SheetTable(
                title="Points",
                head=("alpha", *names),
                rows=[_row(report, point, names) for point in report.points],
                foot=("best α", *(f"{one.alpha:.12g}" for one in report.best)) if names else (),
            )
        ],
        notes=(*report.notes, f"Key of inputs, recipe and what scores: {report.key}") if report.key else report.notes,
    )


def _row(report: CurveReport, point: CurvePoint, names: list[str]) -> Row:
    alpha = f"{point.alpha:.12g}"
    if not point.scores:
        return [
            Cell(alpha, WRONG, fold="failed", lines=tuple(map(str.strip, failure_lines(point)))),
            *("" for _ in names),
        ]
    kept = "kept" if point.path and report.keep == "best" else ""
    return [Cell(alpha, soft=kept), *(number(value_of(point, name)) for name in names)]


def _figures(report: CurveReport, names: list[str]) -> list[Figure]:
    points = sorted((point for point in report.points if point.scores), key=lambda point: point.alpha)
    if not drawable(points, names):
        return []
    better = "lower is better" if report.minimise else "higher is better"
    by_alpha = figure(lambda axes: _by_alpha(axes, report, names, points), _HEIGHT, title="Scores against alpha")
    found = [(by_alpha, f"Scores against α, {better}. A ring is the best of its score.")]
    if report.target is not None and (reference := report.reference) is not None:
        target = drawn(points, report.target, reference)
        scale = scale_of([value_of(point, name) for point in points for name in (target, reference)])
        against = figure(
            lambda axes: _against(axes, points, target, reference, scale, minimise=report.minimise),
            _HEIGHT,
            title="Target against reference",
        )
        found.append((against, f"{shown(target)} against {shown(reference)}, from base to tuned{AXES[scale]}."))
    return found


def _by_alpha(axes: Any, report: CurveReport, names: list[str], points: list[CurvePoint]) -> None:
    drawn_so = styles(names, (report.target, report.reference), has_mean=points[0].mean is not None)
    for name, best, (colour, line, label) in zip(names, report.best, drawn_so, strict=True):
        values = [value_of(point, name) for point in points]
        axes.plot([p.alpha for p in points], values, line, color=colour, marker=".", linewidth=1.5, label=label)
        axes.plot(best.alpha, best.value, marker="o", markersize=9, fillstyle="none", color=colour)
    together = [value_of(point, name) for point in points for name in names]
    set_scale(axes.yaxis, together, scale_of(together))
    set_scale(axes.xaxis, [point.alpha for point in points], "linear")
    axes.set_xlabel("α")
    legend(axes)


def _against(axes: Any, points: list[CurvePoint], target: str, reference: str, scale: str, *, minimise: bool) -> None:
    across = [value_of(point, reference) for point in points]
    up = [value_of(point, target) for point in points]
    axes.plot(across, up, color=NEUTRAL, marker=".", markersize=7, linewidth=1.5, zorder=2)
    for alpha, mark, size, label in ((0, "*", 14, "base, α = 0"), (1, "D", 8, "tuned, α = 1")):
        for x, y in [(x, y) for point, x, y in zip(points, across, up, strict=True) if point.alpha == alpha]:
            axes.plot(x, y, mark, markersize=size, color=_ENDS[alpha], label=label, linestyle="none", zorder=3)
    axes.margins(0.1)
    set_scale(axes.xaxis, across, scale)
    set_scale(axes.yaxis, up, scale)
    axes.set_xlabel(short(reference))
    axes.set_ylabel(short(target))
    legend(axes)
    best = {best_point(points, name, minimise=minimise).alpha for name in (names_of(points)[-1], target)}
    line = list(zip(across, up, strict=True))
    for place, point in enumerate(points):
        if point.alpha in best - {0, 1}:
            _label(axes, f"α = {point.alpha:g}", place, line)


def _label(axes: Any, text: str, place: int, line: Sequence[tuple[float, float]]) -> None:
    """Beside a point of a curve, in that of eight places where it crosses neither the curve nor an edge of the picture,
    or by least."""
    axes.figure.draw_without_rendering()  # what comes from the layout is known then
    pixels = [tuple(axes.transData.transform(point)) for point in line]
    frame, best = axes.get_window_extent(), None
    for right, above in sorted(product((-1, 0, 1), repeat=2), key=lambda way: -abs(way[0] * way[1])):
        if not (right or above):
            continue
        label = axes.annotate(
            text,
            line[place],
            xytext=(9 * right, 9 * above),
            textcoords="offset points",
            fontsize=8,
            ha=("right", "center", "left")[right + 1],
            va=("top", "center", "bottom")[above + 1],
        )
        box = label.get_window_extent()
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        crossed = sum(_crosses(box, *ends) for ends in pairwise(pixels)) + (0 if inside else len(pixels))
        if best is None or crossed < best[0]:
            if best is not None:
                best[1].remove()
            best = crossed, label
        else:
            label.remove()


def _crosses(box: Any, one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether a line goes through a box, by a few of its points."""
    steps = 24
    points = ([a + (b - a) * step / steps for a, b in zip(one, other, strict=True)] for step in range(steps + 1))
    return any(box.x0 <= x <= box.x1 and box.y0 <= y <= box.y1 for x, y in points)
