"""How tensors are cut into blocks: the rule that budgets and arithmetic share."""

from __future__ import annotations

from adaptertool.kinds import kind_of
from adaptertool.spec.plan import Step

BLOCK_ELEMENTS = 1 << 20  # elements of a weight computed at once: smaller blocks cost more in calls


def matrix(step: Step) -> tuple[int, int]:
    """(rows, columns) of the tensor as it is cut into blocks; rows of one element where the edits allow it."""
    numel = step.base.spec.numel
    views = [edit.view for edit in step.edits if edit.view is not None]
    if not views and all(kind_of(edit).elementwise for edit in step.edits):
        return numel, 1
    rows = max(step.base.spec.shape[0], 1)
    width = views[0].width if views else numel // rows
    return numel // width if width else 0, width


def block_rows(columns: int) -> int:
    return max(1, BLOCK_ELEMENTS // max(columns, 1))
