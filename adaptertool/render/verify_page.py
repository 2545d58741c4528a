"""The report of `verify` as a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adaptertool.render.layer_map import layer_map
from adaptertool.render.made import Made
from adaptertool.render.page import page
from adaptertool.render.sheet import RIGHT, WRONG, Cell, Figure, Row, Sheet, SheetTable, mix, tail, without_empty
from adaptertool.render.text import starred
from adaptertool.render.verify import good, statuses
from adaptertool.reports.verify import TensorVerdict, VerifyReport

_ORDER = ("wrong", "untouched_changed", "missing", "extra", "rounding", "exact")  # of what is told first


def verify_page(report: VerifyReport, made: Made | None = None) -> str:
    return page(dataclasses.replace(verify_sheet(report), figures=_figures(report)), made)


def verify_sheet(report: VerifyReport) -> Sheet:
    """What the page says, without its pictures."""
    bad = [verdict for verdict in report.tensors if not good(verdict, report)]
    summary = report.summary
    about = [("merged", report.merged), ("base", report.base)]
    if report.sources:
        about.append(("sources", mix(report.sources, report.weights)))
    about += [("weight", rule) for rule in report.weight_rules]
    if report.alpha != 1:
        about.append(("alpha", f"{report.alpha:g}"))
    facts = {
        "exact": summary.exact,
        "within rounding": summary.rounding,
        "wrong": summary.wrong,
        "untouched, but changed": summary.untouched_changed,
        "missing": summary.missing,
        "extra": summary.extra,
    }
    return Sheet(
        command="verify",
        heading=f"Is {tail(report.merged)} the merge of {mix(list(map(tail, (report.base, *report.sources))))}?",
        badge=("right", RIGHT) if report.ok else ("WRONG", WRONG),
        verdict=statuses(report) + (f"; found: {', '.join(summary.diagnosis)}" if summary.diagnosis else ""),
        about=about,
        facts=[(name, f"{count:,}") for name, count in facts.items() if count or name in ("exact", "wrong")],
        alerts=report.problems,
        tables=[*([_faults(bad)] if bad else []), _tensors(report)],
        notes=report.notes,
    )


def _faults(bad: Sequence[TensorVerdict]) -> SheetTable:
    """Tensors with one fault whose names differ in numbers only, together."""
    groups: dict[tuple[str, str, str], list[TensorVerdict]] = {}
    for one in bad:
        groups.setdefault((starred(one.name), one.status, one.diagnosis or ""), []).append(one)
    rows: list[Row] = []
    for (name, status, diagnosis), some in groups.items():
        worst = max(some, key=_error)
        told = (worst.detail,) if worst.detail else ()
        rows.append([Cell(name, lines=told, fold="why"), diagnosis or status, f"{len(some):,}", *_figures_of(worst)])
    names, cells = without_empty(("tensor", "fault", "tensors", "scale", "max ulp", "rel error"), rows)
    about = "Tensors with the same fault, whose names differ in numbers only, are told together; figures are the worst."
    return SheetTable(title="What is wrong", about=about, head=names, rows=cells, left=2)


def _tensors(report: VerifyReport) -> SheetTable:
    rows: list[Row] = [
        [
            Cell(one.name, soft=one.detail),
            Cell(one.status.replace("_", ", "), RIGHT if good(one, report) else WRONG),
            one.diagnosis or "",
            *_figures_of(one),
        ]
        for one in sorted(report.tensors, key=lambda one: (_ORDER.index(one.status), -_error(one)))
    ]
    names, cells = without_empty(("tensor", "status", "fault", "scale", "max ulp", "rel error"), rows)
    return SheetTable(title="Tensors, the worst first", head=names, rows=cells, left=3 if "fault" in names else 2)


def _figures_of(one: TensorVerdict) -> tuple[str, str, str]:
    return (
        "-" if one.fitted_scale is None else f"{one.fitted_scale:.4g}",
        f"{one.max_ulp:,}" if one.max_ulp else "-",
        f"{one.rel_error:.2e}" if one.rel_error else "-",
    )


def _error(one: TensorVerdict) -> float:
    return one.rel_error or 0.0


def _figures(report: VerifyReport) -> list[Figure]:
    if all(one.status == "exact" and good(one, report) for one in report.tensors):
        return []  # a picture of nothing
    cells = [(one.name, _error(one), not good(one, report)) for one in report.tensors]
    drawn = layer_map(cells, title="Error by layer and module", label="error (relative)")
    return [(drawn, "How far each tensor is from the exact merge. A cross is wrong.")]
