"""The report of `diff` as a page."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from adaptertool.render.diff import STATUSES
from adaptertool.render.drift import number, share
from adaptertool.render.layer_map import layer_map
from adaptertool.render.made import Made
from adaptertool.render.page import page
from adaptertool.render.sheet import RIGHT, WRONG, Cell, Figure, Row, Sheet, SheetTable, tail, without_empty
from adaptertool.render.text import starred
from adaptertool.reports.diff import DiffReport, TensorDiff

_HEAD = (
    "tensor", "status", "elements", "rel error", "|B - A|", "max abs", "max ulp", "not finite", "stable", "effective",
)  # fmt: skip


def diff_page(report: DiffReport, made: Made | None = None) -> str:
    return page(dataclasses.replace(diff_sheet(report), figures=_figures(report)), made)


def diff_sheet(report: DiffReport) -> Sheet:
    """What the page says, without its pictures."""
    counts = Counter(STATUSES[one.status] for one in report.tensors)
    tables = []
    if report.tensors:
        groups: dict[tuple[str, str], list[TensorDiff]] = {}
        for one in report.tensors:
            groups.setdefault((starred(one.name), one.status), []).append(one)
        if len(groups) < len(report.tensors):
            tables.append(_alike(list(groups.items())))
        rows = [_row(one, one.name) for one in sorted(report.tensors, key=_moved, reverse=True)]
        names, cells = without_empty(_HEAD, rows)
        tables.append(
            SheetTable(title="Tensors that differ, those that moved most first", head=names, rows=cells, left=2)
        )
    return Sheet(
        command="diff",
        heading=f"{tail(report.a)} against {tail(report.b)}",
        badge=("equal", RIGHT) if report.equal else ("DIFFERENT", WRONG),
        verdict=f"{report.same:,} of {report.same + len(report.tensors):,} tensors hold the same bits",
        about=[("A", report.a), ("B", report.b)],
        facts=[("the same bits", f"{report.same:,}"), *((status, f"{count:,}") for status, count in counts.items())],
        tables=tables,
        notes=report.notes,
    )


def _alike(groups: Sequence[tuple[tuple[str, str], list[TensorDiff]]]) -> SheetTable:
    rows: list[Row] = []
    for (name, _), some in groups:
        row = _row(max(some, key=_moved), name)
        rows.append([*row[:2], f"{len(some):,}", *row[2:]])
    names, cells = without_empty((*_HEAD[:2], "tensors", *_HEAD[2:]), rows)
    about = "Tensors whose names differ in numbers only are told together; figures are of the one that moved most."
    return SheetTable(title="What differs", about=about, head=names, rows=cells, left=2)


def _moved(one: TensorDiff) -> tuple[float, float]:
    return one.rel_error or 0.0, one.share or 0.0


def _row(one: TensorDiff, name: str) -> Row:
    differ = f"{one.a or 'none'}, {one.b or 'none'}" if one.status in ("dtype-changed", "shape-changed") else ""
    return [
        Cell(name, soft=differ),
        STATUSES[one.status],
        share(one.share),
        number(one.rel_error),
        number(one.norm),
        number(one.max_abs),
        "-" if one.max_ulp is None else f"{one.max_ulp:,}",
        f"{one.not_finite:,}" if one.not_finite else "-",
        number(one.stable_rank),
        number(one.effective_rank),
    ]


def _figures(report: DiffReport) -> list[Figure]:
    cells = [(one.name, one.rel_error, False) for one in report.tensors if one.rel_error is not None]
    if not cells:
        return []
    drawn = layer_map(cells, title="Difference by layer and module", label="|B - A| / |A|")
    return [(drawn, "How far each tensor has moved; those that hold the same bits are left blank.")]
