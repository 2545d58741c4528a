"""adaptertool: adapter arithmetic on checkpoints, by streaming. Nothing silent.

The functions below are imported when first used, so that `import adaptertool` does not load numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adaptertool.reports.notebook import shows
from adaptertool.version import __version__ as __version__

if TYPE_CHECKING:
    from adaptertool.cli.apply import apply as apply
    from adaptertool.cli.sweep import apply_sweep as apply_sweep
    from adaptertool.errors import AdapterToolError as AdapterToolError
    from adaptertool.evaluation import evaluate as evaluate
    from adaptertool.live import applied as applied
    from adaptertool.live import attached as attached
    from adaptertool.live import scaled as scaled
    from adaptertool.live import sweep as sweep
    from adaptertool.output.integrity import check_files as check_files
    from adaptertool.output.preview import preview as preview
    from adaptertool.reports.adapters import ConvertReport as ConvertReport
    from adaptertool.reports.adapters import ExtractReport as ExtractReport
    from adaptertool.reports.adapters import SumReport as SumReport
    from adaptertool.reports.adapters import TruncateReport as TruncateReport
    from adaptertool.reports.apply import ApplyReport as ApplyReport
    from adaptertool.reports.curve import CurveReport as CurveReport
    from adaptertool.reports.diff import DiffReport as DiffReport
    from adaptertool.reports.drift import DriftReport as DriftReport
    from adaptertool.reports.evaluate import EvaluationReport as EvaluationReport
    from adaptertool.reports.inspect import InspectReport as InspectReport
    from adaptertool.reports.parts import PartReport as PartReport
    from adaptertool.reports.parts import PartsReport as PartsReport
    from adaptertool.reports.run import PlanReport as PlanReport
    from adaptertool.reports.run import RunReport as RunReport
    from adaptertool.reports.sweep import SweepReport as SweepReport
    from adaptertool.reports.verify import FilesReport as FilesReport
    from adaptertool.reports.verify import VerifyReport as VerifyReport
    from adaptertool.tasks.convert import convert as convert
    from adaptertool.tasks.curve import wise_curve as wise_curve
    from adaptertool.tasks.diff import diff as diff
    from adaptertool.tasks.drift import drift as drift
    from adaptertool.tasks.extract import extract as extract
    from adaptertool.tasks.inspect import inspect as inspect
    from adaptertool.tasks.merge import prepare_merge as prepare_merge
    from adaptertool.tasks.mergekit import layers as layers
    from adaptertool.tasks.mergekit import mergekit as mergekit
    from adaptertool.tasks.mergekit import prepare_layers as prepare_layers
    from adaptertool.tasks.mergekit import prepare_mergekit as prepare_mergekit
    from adaptertool.tasks.parts import finish as finish
    from adaptertool.tasks.parts import plan_merge as plan_merge
    from adaptertool.tasks.parts import plan_wise as plan_wise
    from adaptertool.tasks.parts import run_part as run_part
    from adaptertool.tasks.run import merge as merge
    from adaptertool.tasks.run import wise as wise
    from adaptertool.tasks.sum import sum_adapters as sum_adapters
    from adaptertool.tasks.truncate import truncate as truncate
    from adaptertool.tasks.verify import verify as verify
    from adaptertool.tasks.wise import prepare_wise as prepare_wise


_HOMES = {
    "AdapterToolError": "adaptertool.errors",
    "ApplyReport": "adaptertool.reports.apply",
    "ConvertReport": "adaptertool.reports.adapters",
    "CurveReport": "adaptertool.reports.curve",
    "DiffReport": "adaptertool.reports.diff",
    "DriftReport": "adaptertool.reports.drift",
    "EvaluationReport": "adaptertool.reports.evaluate",
    "ExtractReport": "adaptertool.reports.adapters",
    "FilesReport": "adaptertool.reports.verify",
    "InspectReport": "adaptertool.reports.inspect",
    "PartReport": "adaptertool.reports.parts",
    "PartsReport": "adaptertool.reports.parts",
    "PlanReport": "adaptertool.reports.run",
    "RunReport": "adaptertool.reports.run",
    "SumReport": "adaptertool.reports.adapters",
    "SweepReport": "adaptertool.reports.sweep",
    "TruncateReport": "adaptertool.reports.adapters",
    "VerifyReport": "adaptertool.reports.verify",
    "applied": "adaptertool.live",
    "apply": "adaptertool.cli.apply",
    "apply_sweep": "adaptertool.cli.sweep",
    "attached": "adaptertool.live",
    "check_files": "adaptertool.output.integrity",
    "convert": "adaptertool.tasks.convert",
    "diff": "adaptertool.tasks.diff",
    "drift": "adaptertool.tasks.drift",
    "evaluate": "adaptertool.evaluation",
    "extract": "adaptertool.tasks.extract",
    "finish": "adaptertool.tasks.parts",
    "inspect": "adaptertool.tasks.inspect",
    "layers": "adaptertool.tasks.mergekit",
    "merge": "adaptertool.tasks.run",
    "mergekit": "adaptertool.tasks.mergekit",
    "plan_merge": "adaptertool.tasks.parts",
    "plan_wise": "adaptertool.tasks.parts",
    "prepare_layers": "adaptertool.tasks.mergekit",
    "prepare_merge": "adaptertool.tasks.merge",
    "prepare_mergekit": "adaptertool.tasks.mergekit",
    "prepare_wise": "adaptertool.tasks.wise",
    "preview": "adaptertool.output.preview",
    "run_part": "adaptertool.tasks.parts",
    "scaled": "adaptertool.live",
    "sum_adapters": "adaptertool.tasks.sum",
    "sweep": "adaptertool.live",
    "truncate": "adaptertool.tasks.truncate",
    "verify": "adaptertool.tasks.verify",
    "wise": "adaptertool.tasks.run",
    "wise_curve": "adaptertool.tasks.curve",
}

__all__ = ["__version__", *_HOMES]


def _card(report: object) -> str:
    card: str = import_module("adaptertool.render.card").card(report)
    return card


shows(_card)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'adaptertool' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
