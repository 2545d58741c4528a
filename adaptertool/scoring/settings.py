"""What is to become of the scores, and of the checkpoints, of a curve."""

from __future__ import annotations

from adaptertool.errors import UsageError, argument
from adaptertool.records import dataclass
from adaptertool.reports.scores import ALL, KEEP, NONE


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """What is to become of the scores, and of the checkpoints."""

    keep: str
    target: str | None
    reference: str | None
    minimise: bool

    @staticmethod
    def of(
        keep: str | None, target: str | None, reference: str | None, *, minimise: bool, published: bool
    ) -> ScoreSettings:
        """Raises UsageError. Where nothing is published nothing is kept."""
        if keep is None:
            keep = ALL if published else NONE
        if keep not in KEEP:
            raise UsageError(f"keep is {', '.join(KEEP)}, not {keep!r}")
        if keep != NONE and not published:
            raise UsageError(f"to keep {keep} there must be an OUT to keep it in")
        if target is not None and target == reference:
            raise UsageError(f"{argument('target')} and {argument('reference')} are the same score, {target!r}")
        return ScoreSettings(keep, target, reference, minimise)
