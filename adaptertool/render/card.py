"""A report as a card for notebooks: the sheet of its page without pictures, tables folded. Where the extra `report` is
not installed, the text that the command line prints."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any

from adaptertool.errors import UsageError, shown
from adaptertool.render.adapters import convert_text, extract_text, sum_text, truncate_text
from adaptertool.render.apply import apply_text
from adaptertool.render.curve import curve_text
from adaptertool.render.curve_page import curve_sheet
from adaptertool.render.diff import diff_text
from adaptertool.render.diff_page import diff_sheet
from adaptertool.render.drift import drift_text
from adaptertool.render.drift_page import drift_sheet
from adaptertool.render.evaluation import evaluation_text
from adaptertool.render.inspect import inspect_text
from adaptertool.render.inspect_page import inspect_sheet
from adaptertool.render.page import render, require_libraries
from adaptertool.render.parts import part_text, parts_text
from adaptertool.render.run import plan_text, run_text
from adaptertool.render.sheet import Sheet
from adaptertool.render.sweep import sweep_text
from adaptertool.render.sweep_page import sweep_sheet
from adaptertool.render.truncate_page import truncate_sheet
from adaptertool.render.verify import files_text, verify_text
from adaptertool.render.verify_page import verify_sheet
from adaptertool.reports.adapters import ConvertReport, ExtractReport, SumReport, TruncateReport
from adaptertool.reports.apply import ApplyReport
from adaptertool.reports.curve import CurveReport
from adaptertool.reports.diff import DiffReport
from adaptertool.reports.drift import DriftReport
from adaptertool.reports.evaluate import EvaluationReport
from adaptertool.reports.inspect import InspectReport
from adaptertool.reports.parts import PartReport, PartsReport
from adaptertool.reports.run import PlanReport, RunReport
from adaptertool.reports.sweep import SweepReport
from adaptertool.reports.verify import FilesReport, VerifyReport

_ROWS = 20  # of a table in a card

_SHEETS: Mapping[type, Callable[[Any], Sheet]] = {
    CurveReport: curve_sheet,
    DiffReport: diff_sheet,
    DriftReport: drift_sheet,
    InspectReport: inspect_sheet,
    SweepReport: sweep_sheet,
    TruncateReport: truncate_sheet,
    VerifyReport: verify_sheet,
}
_TEXTS: Mapping[type, Callable[[Any], str]] = {
    ApplyReport: apply_text,
    ConvertReport: convert_text,
    CurveReport: lambda report: curve_text(report, len(report.points)),
    DiffReport: diff_text,
    DriftReport: lambda report: drift_text(report, every_module=False),
    EvaluationReport: evaluation_text,
    ExtractReport: extract_text,
    FilesReport: files_text,
    InspectReport: lambda report: inspect_text(report, every_module=False),
    PartReport: part_text,
    PartsReport: parts_text,
    PlanReport: lambda report: plan_text(report, every_tensor=False),
    RunReport: run_text,
    SumReport: sum_text,
    SweepReport: lambda report: sweep_text(report, len(report.points)),
    TruncateReport: truncate_text,
    VerifyReport: verify_text,
}


def card(report: object) -> str:
    """HTML that stands in a cell of a notebook, in the colours that are there. Reports that have no page are text."""
    sheet = _SHEETS.get(type(report))
    if sheet is not None and _can_render():
        return render("card.html", sheet(report), rows=_ROWS)
    text = "\n".join(map(shown, _TEXTS[type(report)](report).split("\n")))
    return f"<pre>{html.escape(text)}</pre>"


def _can_render() -> bool:
    try:
        require_libraries()
    except UsageError:
        return False
    return True
