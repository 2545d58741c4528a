"""The report of `drift` as a page."""

from __future__ import annotations

from typing import Any

from adaptertool.render.drift import cost_table, number, share, verdict
from adaptertool.render.layer_map import layer_map
from adaptertool.render.page import ALARMING, NEUTRAL, figure, render, set_scale
from adaptertool.reports.drift import DriftReport, ModuleDrift

_HEIGHT = 3.4  # inches


def drift_page(report: DriftReport) -> str:
    facts = [
        ("largest drift", number(report.drift)),
        ("weights off W + Δ", number(report.rel_error)),
        ("update that survives", share(report.survival)),
        ("noise / update", share(report.noise)),
        ("updates that change nothing", share(report.unchanged)),
    ]
    cost = cost_table(report) if report.cost else None
    return render(
        "drift.html",
        filters={"number": number, "share": share},
        report=report,
        verdict=verdict(report).partition(": "),
        facts=facts,
        figures=_figures(report),
        cost=cost,
    )


def _figures(report: DriftReport) -> list[tuple[Any, str]]:
    cells = [(module.name, module.drift or 0.0, module.verdict == "suspect") for module in report.modules]
    heat = layer_map(cells, title="Drift by layer and module")
    found = [
        (
            heat,
            "Merged against unmerged outputs, or the weight where there are none. A cross is suspect.",
        )
    ]
    if any(module.weight.survival is not None and module.weight.delta_size for module in report.modules):
        dots = figure(lambda axes: _dots(axes, report.modules), _HEIGHT, title="Survival against size of the update")
        found.append((dots, "How much of each update is left after rounding; small ones lose more."))
    return found


def _dots(axes: Any, modules: tuple[ModuleDrift, ...]) -> None:
    for verdict_, colour, mark in (("expected", NEUTRAL, "o"), ("suspect", ALARMING, "X")):
        some = [m.weight for m in modules if m.verdict == verdict_]
        dots = [(w.delta_size, w.survival) for w in some if w.delta_size and w.survival is not None]
        if dots:
            axes.scatter(
                *zip(*dots, strict=True), s=22, c=colour, marker=mark, alpha=0.75, linewidths=0, label=verdict_
            )
    set_scale(axes.xaxis, [m.weight.delta_size for m in modules if m.weight.delta_size], "log")
    axes.axhline(1, color=NEUTRAL, linewidth=0.8, alpha=0.5)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.02), max(high, 1.1))
    axes.set_xlabel("|Δ| / |W|")
    axes.set_ylabel("survival")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
