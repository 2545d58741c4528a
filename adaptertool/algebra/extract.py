"""The tensors of an adapter, made from what a fine-tuned checkpoint changed: factors, or the tuned tensor itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from adaptertool.algebra.factors import Reduced, at_rank, made
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs.difference import Difference, differ
from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.tensors import require_finite
from adaptertool.engine.pool import run_jobs
from adaptertool.engine.produce import Job, Made
from adaptertool.engine.progress import expect_tensors
from adaptertool.errors import UnsupportedError, shown
from adaptertool.files.reader import Inputs, same_bytes
from adaptertool.formats import DEFAULT
from adaptertool.kinds.lora import A, B
from adaptertool.numerics.device import CPU, Device
from adaptertool.numerics.held import Products, Room
from adaptertool.numerics.lowrank import Factors, kept
from adaptertool.numerics.randomized_svd import Leading, leading, leading_of_rank
from adaptertool.planning.extract import FACTORS, LEFT_OUT, SAVED, Choice
from adaptertool.spec.choices import RankChoice
from adaptertool.spec.tensors import DTYPE_BITS, Ref, TensorSpec

_PREFIX = DEFAULT.files.prefix
_SMALLEST = 1e-140  # norm, whose square may still be added up; only float64 goes below


class Extracted(NamedTuple):
    """What became of the change of a tensor."""

    choice: Choice
    rank: int  # 0 where there are no factors
    norm: float  # ‖T − W‖, Frobenius
    error: float  # ‖T − W − B·A‖/‖T − W‖, with the factors as they are stored


def changed_of(
    inputs: Inputs,
    pairs: Sequence[tuple[Ref, Ref]],
    fixed: Sequence[tuple[Ref, Ref]],
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> frozenset[str]:
    """The names of the tensors that differ in a number; of `fixed` ones, in a byte. Reads each up to the first.
    progress: is told the bytes of tensors of the base that are compared"""
    told = progress or (lambda _: None)
    expect_tensors(told, (one for one, _ in pairs))
    found = [one.spec.name for one, other in fixed if not same_bytes(one, other)]

    def look_at(one: Ref, other: Ref, _: Workspace) -> None:
        if differ(inputs, one, other):
            found.append(one.spec.name)
        told(one.spec.nbytes)

    run_jobs((functools.partial(look_at, *pair) for pair in pairs), threads)
    return frozenset(found)


def specs_of(choice: Choice, cut: RankChoice, dtype: str) -> list[TensorSpec]:
    """The tensors of the adapter, as large as they may become: A and B, or the tuned tensor."""
    if choice.how == SAVED:
        return [choice.tuned.spec._replace(name=_PREFIX + key) for key in choice.keys]
    if choice.how == LEFT_OUT:
        return []
    out, inner = choice.base.shape[::-1] if choice.transposed else choice.base.shape
    rank = min(out, inner, cut.rank or out)
    return [
        TensorSpec(f"{_PREFIX}{choice.module}.{role}.weight", dtype, shape, math.prod(shape) * DTYPE_BITS[dtype] // 8)
        for role, shape in ((A, (rank, inner)), (B, (out, rank)))
    ]


def in_order(choices: Sequence[Choice], dtype: str) -> list[Choice]:
    """Wide dtypes first, so that all are aligned."""
    return sorted(choices, key=lambda one: -DTYPE_BITS[dtype if one.how == FACTORS else one.tuned.spec.dtype])


def jobs(
    choices: Sequence[Choice], cut: RankChoice, dtype: str, inputs: Inputs, device: Device = CPU
) -> Iterator[Job[Extracted]]:
    """The jobs that make the tensors, in the order of `choices`."""
    room = Room()

    def hold(choice: Choice) -> AbstractContextManager[Products]:
        return device.hold(_difference(choice, inputs), room)

    by_name: dict[str, Callable[[Choice], tuple[list[Made], Extracted]]] = {
        FACTORS: functools.partial(_factored, cut=cut, dtype=dtype, hold=hold),
        SAVED: functools.partial(_saved, inputs=inputs),
        LEFT_OUT: functools.partial(_lost, inputs=inputs),
    }
    for choice in choices:
        yield functools.partial(by_name[choice.how], choice)


def _saved(choice: Choice, inputs: Inputs) -> tuple[list[Made], Extracted]:
    require_finite(inputs, choice.tuned)
    parts = [Made(spec, choice.tuned) for spec in specs_of(choice, RankChoice(), "")]
    return parts, Extracted(choice, 0, _norm(choice, inputs), 0.0)


def _lost(choice: Choice, inputs: Inputs) -> tuple[list[Made], Extracted]:
    return [], Extracted(choice, 0, _norm(choice, inputs), 1.0)


def _norm(choice: Choice, inputs: Inputs) -> float:
    return math.sqrt(
        sum(float(rows.reshape(-1) @ rows.reshape(-1)) for _, rows in _difference(choice, inputs).blocks())
    )


def _difference(choice: Choice, inputs: Inputs) -> Difference:
    return Difference(inputs, choice.base, choice.tuned)


def _factored(
    choice: Choice, cut: RankChoice, dtype: str, hold: Callable[[Choice], AbstractContextManager[Products]]
) -> tuple[list[Made], Extracted]:
    name = choice.base.spec.name
    with hold(choice) as held:
        found = leading(held, cut, name)
        while (done := _within(held, found, cut, dtype)) is None:
            if found.reliable == min(held.matrix.shape):
                raise UnsupportedError(
                    f"{choice.tuned.path}: {shown(name)} cannot be had to within an error of {cut.max_error} by "
                    f"factors stored as {dtype}: allow more, or store wider"
                )
            found = leading_of_rank(held, 2 * found.reliable, name)
    reduced, rest, norm = done
    if norm < _SMALLEST:
        raise UnsupportedError(
            f"{choice.tuned.path}: {shown(name)} is so near to the base that the square of what was changed is no "
            "float64; leave it out with --leave-out"
        )
    ((b, a),) = reduced.pairs
    if choice.transposed:
        b, a = a.T, b.T
    specs = specs_of(choice, RankChoice(rank=reduced.rank), dtype)
    where = f"{choice.tuned.path}: the factors of {shown(name)}"
    parts = [made(spec, factor, where) for spec, factor in zip(specs, (a, b), strict=True)]
    return parts, Extracted(choice, reduced.rank, norm, rest / norm)


def _within(held: Products, found: Leading, cut: RankChoice, dtype: str) -> tuple[Reduced, float, float] | None:
    """Factors that are as near as `cut` asks for, as they are stored; and what they leave, measured, with ‖D‖.

    None where the leading part that was found does not reach so far.
    """
    for rank in range(min(kept(found.svd.values, cut), found.available), found.available + 1):
        reduced = at_rank([[found.svd]], rank, [(dtype, dtype)], balanced=True)
        if cut.max_error is None or reduced.error + reduced.storing <= cut.max_error:
            rest, norm = held.left_over(_stored(reduced, dtype))
            if cut.max_error is None or rest <= float(cut.max_error) * norm:
                return reduced, rest, norm
    return None


def _stored(reduced: Reduced, dtype: str) -> Factors:
    ((b, a),) = reduced.pairs
    return doubles(b, dtype), doubles(a, dtype)
