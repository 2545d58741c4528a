"""How tensors are cut into blocks: the rule that budgets and arithmetic share."""

from __future__ import annotations

from collections.abc import Sequence

from adaptertool.kinds import kind_of
from adaptertool.spec.plan import Edit, Step

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


def rows_at_once(step: Step) -> int:
    """The rows of a block: all of them where the rows of a weight are needed whole, and are stored as columns."""
    rows, columns = matrix(step)
    return max(1, rows) if needs_columns(step.edits) else block_rows(columns)


def needs_columns(edits: Sequence[Edit]) -> bool:
    """Whether an edit needs whole rows of a weight that is stored transposed."""
    return any(edit.transposed and kind_of(edit).neighbours for edit in edits)
