"""adaptertool: adapter arithmetic on checkpoints, by streaming. Nothing silent.

The functions below are imported when first used, so that `import adaptertool` does not load numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptertool.adapter_reports import ExtractReport as ExtractReport
    from adaptertool.adapter_reports import SumReport as SumReport
    from adaptertool.adapter_reports import TruncateReport as TruncateReport
    from adaptertool.comparison_report import DiffReport as DiffReport
    from adaptertool.curve import CurveReport as CurveReport
    from adaptertool.errors import AdapterToolError as AdapterToolError
    from adaptertool.evaluation import evaluate as evaluate
    from adaptertool.evaluation_reports import EvaluationReport as EvaluationReport
    from adaptertool.inspect_reports import InspectReport as InspectReport
    from adaptertool.live import applied as applied
    from adaptertool.live import attached as attached
    from adaptertool.live import scaled as scaled
    from adaptertool.live import sweep as sweep
    from adaptertool.reports import DriftReport as DriftReport
    from adaptertool.reports import FilesReport as FilesReport
    from adaptertool.reports import PlanReport as PlanReport
    from adaptertool.reports import RunReport as RunReport
    from adaptertool.reports import VerifyReport as VerifyReport
    from adaptertool.tasks.curve import wise_curve as wise_curve
    from adaptertool.tasks.diff import diff as diff
    from adaptertool.tasks.drift import drift as drift
    from adaptertool.tasks.extract import extract as extract
    from adaptertool.tasks.inspect import inspect as inspect
    from adaptertool.tasks.integrity import check_files as check_files
    from adaptertool.tasks.merge import merge as merge
    from adaptertool.tasks.merge import prepare_merge as prepare_merge
    from adaptertool.tasks.preview import preview as preview
    from adaptertool.tasks.sum import sum_adapters as sum_adapters
    from adaptertool.tasks.truncate import truncate as truncate
    from adaptertool.tasks.verify import verify as verify
    from adaptertool.tasks.wise import prepare_wise as prepare_wise
    from adaptertool.tasks.wise import wise as wise

__version__ = "0.1.0"

_HOMES = {
    "AdapterToolError": "adaptertool.errors",
    "CurveReport": "adaptertool.curve",
    "DiffReport": "adaptertool.comparison_report",
    "DriftReport": "adaptertool.reports",
    "EvaluationReport": "adaptertool.evaluation_reports",
    "ExtractReport": "adaptertool.adapter_reports",
    "FilesReport": "adaptertool.reports",
    "InspectReport": "adaptertool.inspect_reports",
    "PlanReport": "adaptertool.reports",
    "RunReport": "adaptertool.reports",
    "SumReport": "adaptertool.adapter_reports",
    "TruncateReport": "adaptertool.adapter_reports",
    "VerifyReport": "adaptertool.reports",
    "applied": "adaptertool.live",
    "attached": "adaptertool.live",
    "check_files": "adaptertool.tasks.integrity",
    "diff": "adaptertool.tasks.diff",
    "drift": "adaptertool.tasks.drift",
    "evaluate": "adaptertool.evaluation",
    "extract": "adaptertool.tasks.extract",
    "inspect": "adaptertool.tasks.inspect",
    "merge": "adaptertool.tasks.merge",
    "prepare_merge": "adaptertool.tasks.merge",
    "preview": "adaptertool.tasks.preview",
    "prepare_wise": "adaptertool.tasks.wise",
    "scaled": "adaptertool.live",
    "sum_adapters": "adaptertool.tasks.sum",
    "sweep": "adaptertool.live",
    "truncate": "adaptertool.tasks.truncate",
    "verify": "adaptertool.tasks.verify",
    "wise": "adaptertool.tasks.wise",
    "wise_curve": "adaptertool.tasks.curve",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'adaptertool' has no attribute {name!r}")
