"""The report of `drift` as a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from adaptertool.render.colours import ALARMING, NEUTRAL
from adaptertool.render.drift import cost_table, number, share, verdict
from adaptertool.render.layer_map import layer_map
from adaptertool.render.made import Made
from adaptertool.render.page import figure, page, set_scale
from adaptertool.render.sheet import RIGHT, WRONG, Cell, Figure, Row, Sheet, SheetTable, mix, tail, without_empty
from adaptertool.render.text import starred
from adaptertool.reports.drift import DriftReport, ModuleDrift

_HEIGHT = 3.4  # inches
_WHOLE = 0.02  # survival that is no further from 1 is told, and not drawn


def drift_page(report: DriftReport, made: Made | None = None) -> str:
    return page(dataclasses.replace(drift_sheet(report), figures=_figures(report)), made)


def drift_sheet(report: DriftReport) -> Sheet:
    """What the page says, without its pictures."""
    suspect = [module for module in report.modules if module.reasons]
    tables = [_suspects(suspect)] if suspect else []
    if report.paths:
        tables.append(_paths(report))
    tables.append(_modules(report.modules))
    if report.cost:
        head, rows = cost_table(report)
        about = "Layers of these shapes, float32 on one core; the batch is in tokens."
        tables.append(SheetTable(title="Cost of staying unmerged", about=about, head=head, rows=rows))
    survived = [one.weight.survival for one in report.modules if one.weight.survival is not None]
    close = survived and max(abs(one - 1) for one in survived) <= _WHOLE
    said = (f"Each module keeps {_range(survived, 1)} of its update.",) if close else ()
    return Sheet(
        command="drift",
        heading=f"Drift of {mix(list(map(tail, report.sources)))} on {tail(report.base)}",
        badge=_badge(report),
        verdict=verdict(report).partition(": ")[2],
        about=_about(report),
        facts=[
            ("largest drift", number(report.drift)),
            ("weights off W + Δ", number(report.rel_error)),
            ("update that survives", share(report.survival)),
            ("noise / update", share(report.noise)),
            ("updates that change nothing", share(report.unchanged)),
        ],
        alerts=(*report.advice, *said),
        tables=tables,
        notes=report.notes,
    )


def _badge(report: DriftReport) -> tuple[str, str]:
    if report.verdict == "suspect":
        return "suspect", WRONG
    return ("expected", RIGHT) if report.ok else ("above the limit", WRONG)


def _about(report: DriftReport) -> list[tuple[str, str]]:
    found = [("adapters", mix(report.sources, report.weights)), ("base", report.base)]
    found += [("weight", rule) for rule in report.weight_rules]
    if report.merged:
        found.append(("merged", report.merged))
    found.append(("inputs", report.inputs))
    return found


def _suspects(modules: Sequence[ModuleDrift]) -> SheetTable:
    """Those whose names differ in numbers only, together."""
    groups: dict[str, list[ModuleDrift]] = {}
    for module in modules:
        groups.setdefault(starred(module.name), []).append(module)
    rows: list[Row] = []
    for name, some in groups.items():
        worst = max(some, key=lambda module: module.drift or 0)
        kept = [module.weight.survival for module in some if module.weight.survival is not None]
        cell = Cell(name, lines=worst.reasons, fold="why")
        rows.append([cell, f"{len(some)}", number(worst.drift), _range(kept, 0) if kept else "-"])
    return SheetTable(
        title="What is suspect",
        about="Modules whose names differ in numbers only are told together; the reasons are those of the worst.",
        head=("module", "modules", "drift", "survival"),
        rows=rows,
    )


def _range(shares: Sequence[float], digits: int) -> str:
    """The least and the most, or what they both are."""
    return "–".join(dict.fromkeys(f"{one:.{digits}%}" for one in (min(shares), max(shares))))


def _paths(report: DriftReport) -> SheetTable:
    return SheetTable(
        title="Paths",
        about="Relative error of outputs, over all modules; exact is the formula in float64.",
        head=("path", "against", "rel error", "worst", "max abs", "1 - cosine"),
        rows=[
            (
                path.path,
                path.against,
                number(path.rel_error),
                number(path.worst),
                number(path.max_abs),
                "-" if path.cosine is None else number(1 - path.cosine),
            )
            for path in report.paths
        ],
        left=2,
    )


def _modules(modules: Sequence[ModuleDrift]) -> SheetTable:
    head = ("module", "drift", "weight error", "max ulp", "|Δ| / |W|", "survival", "unchanged", "verdict")
    names, rows = without_empty(head, [_row(module) for module in modules])
    return SheetTable(title="Modules, the worst first", head=names, rows=rows)


def _row(module: ModuleDrift) -> Row:
    weight, reasons = module.weight, module.reasons
    fold = f"{len(reasons)} reason{'s' if len(reasons) > 1 else ''}"
    return [
        Cell(module.name, soft=module.no_outputs or "", lines=reasons, fold=fold),
        number(module.drift),
        number(weight.rel_error),
        f"{weight.max_ulp:.3g}",
        number(weight.delta_size),
        share(weight.survival),
        share(weight.unchanged),
        Cell(module.verdict, RIGHT if module.verdict == "expected" else WRONG),
    ]


def _figures(report: DriftReport) -> list[Figure]:
    cells = [(module.name, module.drift or 0.0, module.verdict == "suspect") for module in report.modules]
    heat = layer_map(cells, title="Drift by layer and module", label="drift (relative)")
    found = [(heat, "Merged against unmerged outputs, or the weight where there are none. A cross is suspect.")]
    survived = [one.weight.survival for one in report.modules if one.weight.survival is not None]
    if any(abs(one - 1) > _WHOLE for one in survived) and any(one.weight.delta_size for one in report.modules):
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
