"""The report of `wise --score` as a page: scores against α, and target against reference, as the Wise-FT paper draws
them (M. Wortsman et al., arXiv:2109.01903, figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptertool.errors import shown
from adaptertool.render.curve import number
from adaptertool.render.page import INK, NEUTRAL, WIDE, figure, render, set_scale
from adaptertool.reports.curve import MEAN, CurvePoint, CurveReport, best_point, drawn, names_of, value_of

_HEIGHT = 3.4  # inches
_LEAST, _MOST = 1e-99, 1e99  # of what is drawn; beyond, what is computed for the axes may overflow
_CARDS = 12  # best points that there is room for; of more, those in `most` are told
_LONGEST = 28  # letters of a name in a picture
_COLOURS = (NEUTRAL, "#d9822b", "#2e9e6b", "#9a5fd0", "#0fa3b1", "#c2528b")  # readable on white and on black
_OTHER = "#8b949e"  # of scores for which there is no colour, and of what is beside the curve
_ENDS = ("#2e9e6b", "#d9822b")  # as the paper marks the zero-shot model and the fine-tuned one: a star, a diamond
_AXES = {"logit": ", on logit axes", "log": ", on logarithmic axes", "linear": ""}


def curve_page(report: CurveReport) -> str:
    names = names_of(report.points)
    most = {report.target, report.reference, MEAN}  # what there is room for
    return render(
        "curve.html",
        filters={"number": number},
        report=report,
        names=names,
        most=most,
        told=[best for best in report.best if best.score in most] if len(report.best) > _CARDS else report.best,
        value_of=value_of,
        figures=_figures(report, names),
    )


def scale_of(values: Sequence[float]) -> str:
    """The scale of an axis: logit where all values lie in (0, 1), as shares do; else by how far apart they are."""
    if all(0 < value < 1 for value in values):
        return "logit"
    return "log" if min(values) > 0 and max(values) >= WIDE * min(values) else "linear"


def _figures(report: CurveReport, names: list[str]) -> list[tuple[Any, str]]:
    points = sorted((point for point in report.points if point.scores), key=lambda point: point.alpha)
    sizes = [abs(value_of(point, name)) for point in points for name in names]
    if not points or any(size and not _LEAST <= size <= _MOST for size in sizes):
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
        found.append((against, f"{shown(target)} against {shown(reference)}, from base to tuned{_AXES[scale]}."))
    return found


def _by_alpha(axes: Any, report: CurveReport, names: list[str], points: list[CurvePoint]) -> None:
    has_mean = points[0].mean is not None
    real = names[:-1] if has_mean else names
    first = [name for name in real if name in (report.target, report.reference)]  # they get a colour if any does
    colours = dict(zip(dict.fromkeys([*first, *real]), _COLOURS, strict=False))
    for name, best in zip(names, report.best, strict=True):
        mean = has_mean and name == MEAN
        colour = INK if mean else colours.get(name, _OTHER)
        label = _short(name) if mean or name in colours else None
        values = [value_of(point, name) for point in points]
        style = "--" if mean else "-"
        axes.plot([p.alpha for p in points], values, style, color=colour, marker=".", linewidth=1.5, label=label)
        axes.plot(best.alpha, best.value, marker="o", markersize=9, fillstyle="none", color=colour)
    together = [value_of(point, name) for point in points for name in names]
    set_scale(axes.yaxis, together, scale_of(together))
    set_scale(axes.xaxis, [point.alpha for point in points], "linear")
    axes.set_xlabel("α")
    _legend(axes)


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
    best = {best_point(points, name, minimise=minimise).alpha for name in (names_of(points)[-1], target)}
    for place, point in enumerate(points):
        if point.alpha in best - {0, 1}:
            near = slice(max(place - 1, 0), place + 2)
            _label(
                axes, f"α = {point.alpha:g}", (across[place], up[place]), list(zip(across[near], up[near], strict=True))
            )
    axes.set_xlabel(_short(reference))
    axes.set_ylabel(_short(target))
    _legend(axes)


def _label(axes: Any, text: str, at: tuple[float, float], near: list[tuple[float, float]]) -> None:
    """Beside a point of a curve, where the curve is not: it bends towards the middle of the points that are near."""
    right, above = axes.transData.transform(at) >= axes.transData.transform(near).mean(axis=0)
    place = {"xytext": (7 if right else -7, 7 if above else -7), "ha": "left" if right else "right"}
    axes.annotate(text, at, textcoords="offset points", fontsize=8, va="bottom" if above else "top", **place)


def _legend(axes: Any) -> None:
    axes.grid(color=_OTHER, alpha=0.25, linewidth=0.6)
    if labels := axes.get_legend_handles_labels()[1]:
        columns = 4 if max(map(len, labels)) <= _LONGEST // 2 else 2
        axes.legend(
            frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2
        )


def _short(name: str) -> str:
    """The beginning and the end of a name: names that are long differ there."""
    half = _LONGEST // 2
    return text if len(text := shown(name)) <= _LONGEST else f"{text[: half - 1]}…{text[-half:]}"
