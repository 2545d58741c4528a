"""How far a merge is from a run on the dense base, where it was made for one on the base in 4 bits (--as-trained)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from adaptertool.arithmetic.before_after import changed, numbers
from adaptertool.arithmetic.block import Block
from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.tensors import read_stored
from adaptertool.engine.pool import run_jobs
from adaptertool.fidelity.measure import Measured, given_of, parts_of
from adaptertool.files.header import Header
from adaptertool.files.reader import Inputs
from adaptertool.spec.plan import Plan


def from_dense(plan: Plan, others: Iterable[Header], subjects: Sequence[Measured], threads: int) -> float | None:
    """‖W' − W − Δ‖ / ‖W + Δ‖ of all that adapters change, together, where W is the dense weight; None where that is 0.

    others: the files that are read beside those of the plan
    """
    found = [(0.0, 0.0)] * len(subjects)

    def one(inputs: Inputs, number: int, space: Workspace) -> None:
        found[number] = _squares(inputs, subjects[number], space)

    with Inputs({**plan.inputs, **{header.path: header.stamp for header in others}}) as inputs:
        run_jobs((functools.partial(one, inputs, number) for number in range(len(subjects))), threads)
    error, size = (math.fsum(each) for each in zip(*found, strict=True)) if found else (0.0, 0.0)
    return math.sqrt(error / size) if size > 0 else None


def _squares(inputs: Inputs, subject: Measured, space: Workspace) -> tuple[float, float]:
    step, dtype, made = subject.step, subject.step.spec.dtype, subject.step.base.made
    dense = step._replace(base=made.sources[0] if made is not None and made.decodes else step.base)
    chain, error, size = Chain(inputs, dense), 0.0, 0.0
    for block in parts_of(inputs, step):
        own = Block(dense, block.first, block.last, block.columns, chain)
        if subject.candidate is None:
            stored = doubles(changed(inputs, block, 1.0, space)[1], dtype).reshape(-1, block.columns)
        else:
            stored = given_of(inputs, subject.candidate, block)
        before = read_stored(inputs, dense.base, own.start, own.start + own.numel)
        exact = numbers(own, before, 1.0)[1]
        error, size = error + float(np.square(stored - exact).sum()), size + float(np.square(exact).sum())
    return error, size
