"""Many small factors, read at once: whether they are finite, and how many of their rows are zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptertool.files.reader import Inputs
from adaptertool.numerics.small import FACTOR, STORED, Factor, zero_rows
from adaptertool.spec.tensors import DTYPE_BITS, Ref


def zero_rows_of(inputs: Inputs, refs: Sequence[Ref]) -> list[int] | None:
    """What `tensors.require_finite` returns, for many small factors, read at once; None where a number is not finite,
    or they must be read one by one."""
    # Each combination of dtype and shape, of which there are few, is looked at once
    specs = [ref.spec[1:] for ref in refs]
    forms = {form: number for number, form in enumerate(dict.fromkeys(specs))}
    if any(ref.made for ref in refs) or not all(nbytes and dtype in STORED for dtype, _, nbytes in forms):
        return None
    content, begins = inputs.read_parts(refs)
    factors = np.array([_rows_of(*form) for form in forms], FACTOR)[[forms[spec] for spec in specs]]
    factors["at"] = begins
    return zero_rows(np.frombuffer(content, np.uint8), factors)


def _rows_of(dtype: str, shape: tuple[int, ...], nbytes: int) -> Factor:
    """Rows, columns and how they are stored of a factor, which begins wherever."""
    rows = shape[0] if shape else 1
    return 0, rows, nbytes * 8 // DTYPE_BITS[dtype] // rows, STORED[dtype]
