"""The report of a run of `merge` or `wise` as a page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from adaptertool.errors import by
from adaptertool.render.drift import number, share
from adaptertool.render.made import Made
from adaptertool.render.page import page
from adaptertool.render.run import alike
from adaptertool.render.sheet import RIGHT, Cell, Row, Sheet, SheetTable, mix, tail, without_empty
from adaptertool.render.text import size
from adaptertool.reports.run import KeptReport, RunReport, TensorPlan

_DONE = {"copy": "copied", "edit": "edited", "cast": "cast"}


def run_page(report: RunReport, made: Made | None = None, tensors: Sequence[TensorPlan] = ()) -> str:
    """tensors: what became of each, where that is known"""
    return page(run_sheet(report, tensors), made)


def run_sheet(report: RunReport, tensors: Sequence[TensorPlan] = ()) -> Sheet:
    """What the page says."""
    tables = [_alphas(report)] if len(report.outputs) > 1 else []
    tables += [_kept(report.kept)] if report.kept else []
    tables += [_tensors(report, tensors)] if tensors else []
    about = [
        ("base", report.base),
        ("sources", mix(report.sources, report.weights)),
        ("method", report.method or ""),
        ("written to", report.out),
    ]
    about = [(name, value) for name, value in about if value]  # `layers` has no sources, most merges no method
    if report.command.startswith("wise"):
        about.insert(2, ("alpha", ", ".join(f"{alpha:g}" for alpha in report.alphas)))
    parts = (report.base, *report.sources)
    return Sheet(
        command=report.command,
        heading=f"{tail(report.out)}: {mix(list(map(tail, parts)), (1, *report.weights))}",
        badge=("verified" if report.verified else "written", RIGHT),
        verdict="read back from the disk, and as computed" if report.verified else "",
        about=about,
        facts=_facts(report),
        tables=tables,
        notes=report.notes,
    )


def _facts(report: RunReport) -> list[tuple[str, str]]:
    several = len(report.outputs) > 1
    facts = [("tensors edited", f"{report.tensors_edited:,}"), ("copied", f"{report.tensors_copied:,}")]
    facts += [("cast", f"{report.tensors_cast:,}")] if report.tensors_cast else []
    if report.elements_edited and report.elements_changed:
        most = max(report.elements_changed) / report.elements_edited
        facts.append((f"elements changed{', at most' if several else ''}", share(most)))
    left = [one for one in report.survival or () if one is not None]
    facts += [(f"update that survives{', at least' if several else ''}", share(min(left)))] if left else []
    facts += [
        ("read", size(report.bytes_read)),
        ("written", size(report.bytes_written)),
        ("time", f"{report.seconds:.2f} s"),
        ("memory at the peak", size(report.peak_memory)),
    ]
    return facts


def _alphas(report: RunReport) -> SheetTable:
    changed: Sequence[int | None] = report.elements_changed or [None] * len(report.outputs)
    survival = report.survival or list(repeat(None, len(report.outputs)))
    rows: list[Row] = [
        [
            f"{alpha:g}",
            out,
            "-" if count is None or not report.elements_edited else share(count / report.elements_edited),
            share(left),
        ]
        for alpha, out, count, left in zip(report.alphas, report.outputs, changed, survival, strict=True)
    ]
    head, cells = without_empty(("alpha", "written to", "elements changed", "survival"), rows)
    return SheetTable(title="Checkpoints", head=head, rows=cells, left=2)


def _kept(reports: Sequence[KeptReport]) -> SheetTable:
    rows: list[Row] = [
        [
            one.family or "all",
            f"{one.alpha:g}",
            share(one.survival),
            number(one.noise),
            f"{one.changed:,} of {one.elements:,}",
            f"{one.rescaled:,} of {one.blocks:,}",
        ]
        for one in reports
    ]
    head = ("family", "alpha", "survival", "noise / update", "codes changed", "blocks rescaled")
    about = "Weights that stay in the base's own format: what of the change survives the rounding to its codes."
    return SheetTable(title="Codes", about=about, head=head, rows=rows)


def _tensors(report: RunReport, tensors: Sequence[TensorPlan]) -> SheetTable:
    rows: list[Row] = [
        [
            Cell(one.name, soft=one.edits),
            _DONE[one.action],
            one.dtype,
            by(one.shape),
            f"{len(one.sizes):,}",
            size(sum(one.sizes)),
        ]
        for one in alike(tensors, report)
    ]
    about = "Those whose names differ in numbers only, and that the same was done to, are told together."
    head = ("tensor", "was", "stored as", "shape", "tensors", "size")
    return SheetTable(title="Tensors", about=about, head=head, rows=rows, left=3)
