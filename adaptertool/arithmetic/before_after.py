"""What a plan changes, block by block, for those who look at it and write nothing: verify, drift."""

from __future__ import annotations

import dataclasses

import numpy as np

from adaptertool.arithmetic.block import Block, part
from adaptertool.arithmetic.blocks import compute
from adaptertool.arithmetic.stretch import Stretch, compute_stretch, small_of
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles
from adaptertool.files.reader import Inputs
from adaptertool.numerics.rounding import Array


def changed(
    inputs: Inputs, block: Block, alpha: float, space: Workspace, *, passes: bool = False
) -> tuple[Array, Array]:
    """(before, after): a block as the base has it, and as an exact run stores it; flat, held as its codec says.

    passes: not as the kernel makes it in one visit. Both are valid until `space` is used again. Raises NonFiniteError.
    """
    step = block.step
    if passes:
        block = dataclasses.replace(block, fused=None)
    before, after = (BY_DTYPE[spec.dtype].held for spec in (step.base.spec, step.spec))
    small = small_of(step) if alpha and block.numel == step.spec.numel and not passes else None
    if small is not None and (alone := Stretch(step.base, step.offset)).takes(step, small):
        # What a run makes of small tensors; a third of the calls, which cost more than the arithmetic
        for data, _ in compute_stretch(inputs, alone, [alpha], space, exact=True):
            result = np.frombuffer(data, after)
        return part(space.stored, before, block.numel), result
    for _ in compute(inputs, block, [alpha], space):
        pass
    return part(space.stored, before, block.numel), part(space.rounded, after, block.numel)


def numbers(block: Block, before: Array, alpha: float, space: Workspace | None = None) -> tuple[Array, Array]:
    """(W, W + alpha·(W' − W)) of a block in float64, not rounded to what is stored: (rows, columns) each; new arrays,
    or in buffers of a workspace, which `changed` takes as well."""
    dtype = block.step.base.spec.dtype
    base = doubles(before, dtype, None if space is None else part(space.before, np.float64, block.numel))
    after = np.empty(block.numel) if space is None else part(space.after, np.float64, block.numel)
    after[:] = base
    rows = base.reshape(-1, block.columns), after.reshape(-1, block.columns)
    block.chain.apply(rows[1], block.first, rows[0])
    return rows[0], rows[1] if alpha == 1 else rows[0] + alpha * (rows[1] - rows[0])
