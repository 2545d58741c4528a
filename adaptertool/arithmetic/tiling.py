"""How tensors are cut into blocks: the rule that budgets and arithmetic share."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from adaptertool.kinds import kind_of
from adaptertool.methods import METHOD_BY_NAME
from adaptertool.spec.plan import Edit, Step

BLOCK_ELEMENTS = 1 << 20  # elements of a weight computed at once: smaller blocks cost more in calls


def matrix(step: Step) -> tuple[int, int]:
    """(rows, columns) of the tensor as it is cut into blocks; rows of one element where the edits allow it."""
    numel = step.base.spec.numel
    if step.keeps is not None and step.base.made is not None:
        return numel // step.base.made.width, step.base.made.width
    views = [edit.view for edit in step.edits if edit.view is not None]
    if not views and all(kind_of(edit).elementwise for edit in step.edits):
        columns = last_axis(step) if step.blend is not None and METHOD_BY_NAME[step.blend.method].rows else 1
        return numel // columns if columns else 0, columns
    if not views:
        return matrix_of(step.base.spec.shape)
    width = views[0].width
    return numel // width if width else 0, width


@functools.lru_cache(1024)  # most tensors have the shape of another
def matrix_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of a tensor whose rows are its first dimension."""
    numel = math.prod(shape)
    width = numel // max(shape[0], 1)
    return numel // width if width else 0, width


def last_axis(step: Step) -> int:
    """The elements of a row of the tensor as it is stored; of a vector all."""
    return step.base.spec.shape[-1] if step.base.spec.shape else 1


def block_rows(columns: int) -> int:
    return max(1, BLOCK_ELEMENTS // max(columns, 1))


_LARGEST_BLOCK = 1 << 22  # elements with one scale, or in rows of such, that are computed at once


def kept_rows(step: Step) -> int:
    """The rows of a weight that stays codes: whole blocks of those that have a scale in common; but where these are too
    large (a scale for all of it)."""
    assert step.keeps is not None and step.base.made is not None
    columns, own = step.base.made.width, step.keeps.lattice.grid.block[0]
    rows = step.base.spec.numel // columns
    if needs_columns(step.edits):
        return rows
    return max(1, block_rows(columns) // own) * own if own * columns <= _LARGEST_BLOCK else block_rows(columns)


def rows_at_once(step: Step) -> int:
    """The rows of a block: all of them where the rows of a weight are needed whole, and are stored as columns."""
    if step.keeps is not None:
        return kept_rows(step)
    rows, columns = matrix(step)
    return max(1, rows) if needs_columns(step.edits) else block_rows(columns)


def needs_columns(edits: Sequence[Edit]) -> bool:
    """Whether an edit needs whole rows of a weight that is stored transposed."""
    return any(edit.transposed and kind_of(edit).neighbours for edit in edits)
