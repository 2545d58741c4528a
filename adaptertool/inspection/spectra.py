"""The spectrum of each low-rank change, and the norm of what it changes: one job for each module."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adaptertool.arithmetic.block import part
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs.numbers import energy
from adaptertool.codecs.tensors import held_as, read_rows, read_stored, read_tensor, require_finite
from adaptertool.engine.pool import run_jobs
from adaptertool.engine.progress import expect_tensors
from adaptertool.errors import NonFiniteError
from adaptertool.files.reader import Inputs
from adaptertool.inspection.described import Found
from adaptertool.kinds import BY_NAME
from adaptertool.numerics.lowrank import Factors, kept, singular_values
from adaptertool.numerics.ops import BLOCKS
from adaptertool.numerics.spectrum import MAX_VALUES, entropy_rank, profile, stable_rank
from adaptertool.reports.inspect import Spectrum
from adaptertool.spec.choices import RankChoice
from adaptertool.spec.tensors import Ref, Stamp, View

_PART = 1 << 19  # elements of a weight that are read at once

Places = Sequence[tuple[Ref, View | None]]  # where in the base what a module changes is stored


class Measured(NamedTuple):
    spectrum: Spectrum | None = None
    base_norm: float | None = None
    problem: str | None = None


def measure(
    modules: Sequence[Found],
    places: Mapping[int, Places],
    files: Mapping[Path, Stamp],
    cuts: tuple[RankChoice, RankChoice],
    threads: int,
    progress: Callable[[int], None],
) -> list[Measured]:
    """The spectrum of each module. places: by the number of a module; cuts: those that rank_energy and rank_error tell
    of."""
    found = [Measured()] * len(modules)
    most = max(1, MAX_VALUES // max(len(modules), 1))

    def one(inputs: Inputs, number: int, space: Workspace) -> None:
        measured, own = _measure(inputs, modules[number], cuts, most), places.get(number, ())
        if own and measured.problem is None:
            measured = measured._replace(base_norm=_norm(inputs, own, space))
        found[number] = measured
        progress(sum(ref.spec.nbytes for ref in modules[number].refs))

    def jobs(inputs: Inputs) -> Iterator[Callable[[Workspace], None]]:
        for number, module in enumerate(modules):
            if module.has_spectrum:
                yield functools.partial(one, inputs, number)

    expect_tensors(progress, (ref for module in modules if module.has_spectrum for ref in module.refs))
    with Inputs(files) as inputs:
        run_jobs(jobs(inputs), threads)
        inputs.check_unchanged()
    return found


def _measure(inputs: Inputs, module: Found, cuts: tuple[RankChoice, RankChoice], most: int) -> Measured:
    try:
        return Measured(_spectrum(inputs, module, cuts, most))
    except NonFiniteError as error:
        return Measured(problem=str(error))


def _spectrum(inputs: Inputs, module: Found, cuts: tuple[RankChoice, RankChoice], most: int) -> Spectrum:
    squares, needed, entropy, stable = 0.0, [0, 0], 0.0, 0.0
    widest, top = np.zeros(0), -1.0
    for expert in range(module.experts):
        values, exponent = singular_values(*_factors(inputs, module, expert))
        norm = _finite(float(np.linalg.norm(values)), exponent)
        squares = math.hypot(squares, norm)
        if values.any():
            needed = [max(old, kept(values, cut)) for old, cut in zip(needed, cuts, strict=True)]
        entropy, stable = max(entropy, entropy_rank(values)), max(stable, stable_rank(values))
        if norm > top:
            widest, top = values, norm
    length = squares * abs(module.scale) if module.scale is not None else math.inf
    known = length if math.isfinite(length) else None
    return Spectrum(known, entropy, stable, needed[0], needed[1], profile(widest, most))


def _finite(norm: float, exponent: int) -> float:
    try:
        return math.ldexp(norm, exponent)
    except OverflowError:
        return math.inf


def _factors(inputs: Inputs, module: Found, expert: int) -> Factors:
    """B (out, r) and A (r, in) of one expert: in A one follows the other, in B they take turns, unless it is grouped.
    Raises NonFiniteError."""
    if module.factors is not None:
        return _made(inputs, module.kind, module.factors)
    assert module.product is not None
    a, b = module.product
    wide, inner = a.shape[0], math.prod(a.shape[1:])
    rank = wide // module.experts
    first = read_rows(inputs, a, expert * rank, (expert + 1) * rank, inner)
    if module.experts == 1:
        second = read_tensor(inputs, b, 0, b.spec.numel).reshape(b.shape[0], wide)
    else:
        own = range(expert * rank, (expert + 1) * rank) if module.grouped else range(expert, wide, module.experts)
        columns = Ref(b.path, b.offset, b.spec, own)
        second = read_rows(inputs, columns, 0, b.shape[0], wide)
    for factor, ref in ((first, a), (second, b)):
        if not np.isfinite(factor).all():
            require_finite(inputs, ref)  # says where
    return second, first


def _made(inputs: Inputs, kind: str, refs: Mapping[str, Ref]) -> Factors:
    """B and A that a kind makes of its factors. Raises NonFiniteError."""
    factors = {}
    for role, ref in refs.items():
        factors[role] = read_tensor(inputs, ref, 0, ref.spec.numel).reshape(ref.shape[0], -1)
        if not np.isfinite(factors[role]).all():
            require_finite(inputs, ref)  # says where
    own = BY_NAME[kind]
    assert own.low_rank is not None
    some = {
        role: factor[:1] if role in own.by_row else factor[:, :1] if role in own.by_column else factor
        for role, factor in factors.items()
    }
    weight = own.weight_of({role: factor.shape for role, factor in factors.items()})
    if weight is None or own.low_rank(some)[0].shape[1] < min(weight) / 2:
        return own.low_rank(factors)
    change = np.zeros(weight)  # of a rank so high it is the smaller one
    own.apply(BLOCKS, change, factors, 1.0, 1.0)
    return (np.eye(weight[0]), change) if weight[0] <= weight[1] else (change, np.eye(weight[1]))


def _norm(inputs: Inputs, places: Places, space: Workspace) -> float | None:
    """The Frobenius norm of the weights at these places; None where it is not finite."""
    total = 0.0
    for ref, view in places:
        for square in _squares(inputs, ref, view, space):
            total = math.hypot(total, math.sqrt(square))
    return total if math.isfinite(total) else None


def _squares(inputs: Inputs, ref: Ref, view: View | None, space: Workspace) -> Iterator[float]:
    """The sum of squares of each part of a weight."""
    if view is None:
        space.fit(_PART)
        for first in range(0, ref.spec.numel, _PART):
            last = min(ref.spec.numel, first + _PART)
            stored = part(space.stored, held_as(ref.spec.dtype), last - first)
            yield energy(read_stored(inputs, ref, first, last, stored), ref.spec.dtype)
        return
    assert isinstance(view.rows, range)  # only what is saved acts on chosen rows
    step = max(1, _PART // view.width) * view.rows.step
    for first in range(view.rows.start, view.rows.stop, step):
        rows = read_rows(inputs, ref, first, min(view.rows.stop, first + step), view.width)
        some = rows[:: view.rows.step, view.columns.start : view.columns.stop : view.columns.step]
        yield energy(np.ascontiguousarray(some).reshape(-1), "F64")
