"""adaptertool: adapter arithmetic on checkpoints, by streaming. Nothing silent.

The functions below are imported when first used, so that `import adaptertool` does not load numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptertool.errors import AdapterToolError as AdapterToolError
    from adaptertool.evaluation import evaluate as evaluate
    from adaptertool.live import applied as applied
    from adaptertool.live import attached as attached
    from adaptertool.live import scaled as scaled
    from adaptertool.live import sweep as sweep
    from adaptertool.reports import EvaluationReport as EvaluationReport
    from adaptertool.reports import PlanReport as PlanReport
    from adaptertool.reports import RunReport as RunReport
    from adaptertool.reports import VerifyReport as VerifyReport
    from adaptertool.tasks.merge import merge as merge
    from adaptertool.tasks.merge import prepare_merge as prepare_merge
    from adaptertool.tasks.preview import preview as preview
    from adaptertool.tasks.verify import verify as verify
    from adaptertool.tasks.wise import prepare_wise as prepare_wise
    from adaptertool.tasks.wise import wise as wise

__version__ = "0.1.0"

_HOMES = {
    "AdapterToolError": "adaptertool.errors",
    "EvaluationReport": "adaptertool.reports",
    "PlanReport": "adaptertool.reports",
    "RunReport": "adaptertool.reports",
    "VerifyReport": "adaptertool.reports",
    "applied": "adaptertool.live",
    "attached": "adaptertool.live",
    "evaluate": "adaptertool.evaluation",
    "merge": "adaptertool.tasks.merge",
    "prepare_merge": "adaptertool.tasks.merge",
    "preview": "adaptertool.tasks.preview",
    "prepare_wise": "adaptertool.tasks.wise",
    "scaled": "adaptertool.live",
    "sweep": "adaptertool.live",
    "verify": "adaptertool.tasks.verify",
    "wise": "adaptertool.tasks.wise",
}

__all__ = [
    "AdapterToolError",
    "EvaluationReport",
    "PlanReport",
    "RunReport",
    "VerifyReport",
    "__version__",
    "applied",
    "attached",
    "evaluate",
    "merge",
    "prepare_merge",
    "prepare_wise",
    "preview",
    "scaled",
    "sweep",
    "verify",
    "wise",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'adaptertool' has no attribute {name!r}")
