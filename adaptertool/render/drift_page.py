"""The report of `drift` as a page."""

from __future__ import annotations

from typing import Any

from adaptertool.errors import shown
from adaptertool.render.drift import cost_table, number, share, verdict
from adaptertool.render.page import ALARMING, NEUTRAL, figure, render
from adaptertool.reports import DriftReport, ModuleDrift

_OUTSIDE = "other"  # the row of what belongs to no layer
_HEIGHT = 3.4  # inches

Cells = dict[tuple[str, str], tuple[float, bool]]  # by layer and module: the largest drift, and whether it is suspect


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
    rows, columns, cells = _grid(report.modules)
    height = min(12.0, max(_HEIGHT, 1.6 + 0.2 * len(rows)))
    heat = figure(lambda axes: _heat(axes, rows, columns, cells), height, title="Drift by layer and module")
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


def _grid(modules: tuple[ModuleDrift, ...]) -> tuple[list[str], list[str], Cells]:
    """Layers, modules, and what there is of each."""
    cells: Cells = {}
    for module in modules:
        parts = module.name.removesuffix(".weight").split(".")
        layer = next((part for part in parts if part.isdecimal()), _OUTSIDE)
        after = parts[parts.index(layer) + 1 :] if layer != _OUTSIDE else parts[-2:]
        place = layer, shown(".".join("*" if part.isdecimal() else part for part in after) or parts[-1])
        drift, suspect = cells.get(place, (0.0, False))
        cells[place] = max(drift, module.drift or 0.0), suspect or module.verdict == "suspect"
    rows = sorted({row for row, _ in cells}, key=lambda row: (row == _OUTSIDE, int(row) if row.isdecimal() else 0))
    return rows, sorted({column for _, column in cells}), cells


def _heat(axes: Any, rows: list[str], columns: list[str], cells: Cells) -> None:
    import numpy as np  # noqa: PLC0415  # only pages need it here

    values = np.ma.masked_invalid(
        [[cells.get((row, column), (np.nan, False))[0] for column in columns] for row in rows]
    )
    mesh = axes.pcolormesh(values, cmap="cividis", edgecolors="face", linewidth=0.3)
    for (row, column), (_, suspect) in cells.items():
        if suspect:
            place = columns.index(column) + 0.5, rows.index(row) + 0.5
            axes.plot(*place, marker="X", color=ALARMING, markeredgecolor="white", markeredgewidth=0.5)
    step = max(1, len(rows) // 40)
    axes.set_xticks([n + 0.5 for n in range(len(columns))], columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks([n + 0.5 for n in range(0, len(rows), step)], rows[::step])
    axes.set_ylabel("layer")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(mesh, ax=axes, format="%.2g", pad=0.02)
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(False)


def _dots(axes: Any, modules: tuple[ModuleDrift, ...]) -> None:
    for verdict_, colour, mark in (("expected", NEUTRAL, "o"), ("suspect", ALARMING, "X")):
        some = [m.weight for m in modules if m.verdict == verdict_]
        dots = [(w.delta_size, w.survival) for w in some if w.delta_size and w.survival is not None]
        if dots:
            axes.scatter(
                *zip(*dots, strict=True), s=22, c=colour, marker=mark, alpha=0.75, linewidths=0, label=verdict_
            )
    axes.set_xscale("log")
    axes.axhline(1, color=NEUTRAL, linewidth=0.8, alpha=0.5)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.02), max(high, 1.1))
    axes.set_xlabel("|Δ| / |W|")
    axes.set_ylabel("survival")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
