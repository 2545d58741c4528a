"""What `apply` has to say."""

from __future__ import annotations

from typing import Any, ClassVar

from adaptertool.records import dataclass
from adaptertool.reports.notebook import InNotebook


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What became of a step."""

    name: str  # of the recipe; empty where it has none
    command: str
    out: str | None  # where it was written; None for a step that writes nothing, or whose output was temporary
    state: str  # "made"; "there": an earlier run of the same had made it; "planned" or "to plan", of a dry run
    ok: bool
    seconds: float
    report: dict[str, Any] | None  # its own, with its schema; None where it was not run
    why: str | None = None  # a dry run has not planned it


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyReport(InNotebook):
    """What a recipe made, or with dry_run would make."""

    schema: ClassVar[str] = "apply/1"
    ok: bool  # whether every step is; those after one that is not are not run
    recipe: str
    out: str | None  # of the last step that writes
    steps: tuple[StepReport, ...]
    same: bool | None  # of a manifest that was replayed: whether the same bytes came out
    differing: tuple[str, ...]  # the files that have other bytes, or are there on one side only
    seconds: float
    dry_run: bool
    notes: tuple[str, ...]
