"""What other factors in an adapter do to the weights that it makes: ‖W'' − W'‖ / ‖W' − W‖, Frobenius, in float64.

W' is the weight with the adapter as it is, W'' that with the other factors, and W that without the change of the layer.
Of LoRA, W'' − W' = s·(B''·A'' − B·A) is found from factors alone; of DoRA, whose norms are those of whole rows of
W + s·B·A, from the base, in blocks of rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.region import choose
from adaptertool.arithmetic.tiling import matrix
from adaptertool.codecs.tensors import elements_between, read_rows
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.kinds import kind_of
from adaptertool.kinds.lora import A, B
from adaptertool.numerics.device import CPU, Device
from adaptertool.numerics.lowrank import Factors, Qr, singular_values
from adaptertool.numerics.rounding import Array
from adaptertool.spec.layers import key_of
from adaptertool.spec.plan import Edit, Plan, Step
from adaptertool.spec.tensors import Ref

_SMALLEST = 2.0**-500  # norm whose squares are known: smaller ones, or larger than its inverse, are not

_PART = 1 << 17  # elements of a block, for all that is made of one to stay in the cache

Steps = Mapping[str, Sequence[Step]]


class Other(NamedTuple):
    """What takes the place of a factor: as many numbers, in the same order."""

    ref: Ref  # all of the factor, as it is stored
    numbers: Array  # float64


class _Other(Chain):
    """A chain with other factors, by their keys, in the place of those in the file."""

    def __init__(self, inputs: Inputs, step: Step, others: Mapping[str, Other]) -> None:
        super().__init__(inputs, step)
        self._others = others

    def read(self, ref: Ref, first: int, last: int, width: int) -> Array:
        if (other := self._others.get(ref.spec.name)) is None:
            return super().read(ref, first, last, width)
        begin = elements_between(other.ref, ref)  # it may be some rows of the factor
        flat = other.numbers.reshape(-1)[begin + first * width : begin + last * width]
        rows = flat.reshape(last - first, width)
        return rows if ref.columns is None else rows[:, ref.columns.start : ref.columns.stop : ref.columns.step]


def steps_of(plan: Plan) -> Steps:
    """The tensors that each change but a saved tensor acts on, by its keys: with its edits, and those of saved tensors
    and biases."""
    found: dict[str, list[Step]] = {}
    for made in plan.steps():
        step = made._replace(edits=tuple(map(_as_stored, made.edits)))
        keys = [_keys(edit) for edit in step.edits]
        for key in dict.fromkeys(key for own in keys for key in own):
            edits = (edit for edit, own in zip(step.edits, keys, strict=True) if not own or key in own)
            found.setdefault(key, []).append(step._replace(edits=tuple(edits)))
    return found


def _as_stored(edit: Edit) -> Edit:
    """The edit with the keys that its file has for both factors of a product, if they are in it, whatever kind it came
    down from (kohya's DoRA): so the layers have them."""
    if edit.part_of is None or not {A, B} <= edit.factors.keys() or any(edit.factors[role].made for role in (A, B)):
        return edit
    keys = {(ref.path, ref.offset): ref.spec.name for ref in edit.part_of.factors.values() if ref.made is None}
    own = {role: edit.factors[role] for role in (A, B)}
    named = {role: ref.renamed(keys.get((ref.path, ref.offset), ref.spec.name)) for role, ref in own.items()}
    return edit._replace(factors={**edit.factors, **named})


def _keys(edit: Edit) -> Sequence[str]:
    """The keys of the layer of an edit, as in spec.layers.Layer: of a pair, and of what is made of none. None for what
    belongs to no such layer."""
    kind = kind_of(edit)
    if kind.replaces or kind.follows:
        return ()
    return (edit.factors[A].spec.name if kind.pair else key_of(edit.factors)), edit.module


def needs_base(step: Step) -> bool:
    """Whether more than factors is read."""
    return any(kind_of(edit).norms for edit in step.edits)


def effect(inputs: Inputs, steps: Sequence[Step], others: Mapping[str, Other], device: Device = CPU) -> float | None:
    """The share ‖W'' − W'‖ / ‖W' − W‖ of the tensors of all `steps` together; None where W' is W, and W'' is not.

    others: what takes the place of the factors, by their keys

    Raises NonFiniteError where a merged weight, or a norm that DoRA divides by, is not finite.
    """
    apart = change = 0.0
    for step in steps:
        old, new = Chain(inputs, step), _Other(inputs, step, others)
        measured = _from_base if needs_base(step) else functools.partial(_from_factors, by=device.qr)
        for distance, length in measured(old, new):
            if not math.isfinite(distance + length):
                raise _not_finite(step)
            apart, change = math.hypot(apart, distance), math.hypot(change, length)
    if not change:
        return None if apart else 0.0
    return apart / change


def _not_finite(step: Step) -> NonFiniteError:
    return NonFiniteError(
        f"{step.base.path}: {shown(step.spec.name)}: the merged weight is no finite number, or the norm of a row "
        "that DoRA divides by is 0 or beyond 2^±500; without --base no weights are needed"
    )


def _from_factors(old: Chain, new: Chain, by: Qr) -> Iterator[tuple[float, float]]:
    """‖W'' − W'‖ and ‖W' − W‖, of each edit."""
    for number, edit in enumerate(old.step.edits):
        chosen = choose(edit, 0, old.rows)
        if chosen is None or A not in edit.factors:
            continue
        (b, a), (other_b, other_a) = (_product(chain, number, chosen.places) for chain in (old, new))
        times = abs(edit.scale)
        apart = np.concatenate([other_b, -b], axis=1), np.concatenate([other_a, a])
        yield times * _length_of(*apart, by), times * _length_of(b, a, by)


def _product(chain: Chain, number: int, places: slice | list[int]) -> Factors:
    factors = chain.factors(number, chain.step.edits[number], places)
    return factors[B], factors[A]


def _length_of(b: Array, a: Array, by: Qr) -> float:
    """‖B·A‖"""
    values, exponent = singular_values(b, a, by)
    return float(np.ldexp(np.linalg.norm(values), exponent))


def _from_base(old: Chain, new: Chain) -> Iterator[tuple[float, float]]:
    """‖W'' − W'‖ and the length of what the factors change in W', of each block of rows."""
    step, cut = old.step, matrix(old.step)
    without = Chain(old.inputs, step._replace(edits=tuple(e for e in step.edits if A not in e.factors)), cut)
    rows, columns = cut
    at_once = max(1, _PART // max(columns, 1))
    for first in range(0, rows, at_once):
        before = read_rows(old.inputs, step.base, first, min(rows, first + at_once), columns)
        weight, other, plain = (_applied(chain, before, first) for chain in (old, new, without))
        other -= weight
        weight -= plain
        yield _length(other), _length(weight)


def _applied(chain: Chain, before: Array, first: int) -> Array:
    rows = before.copy()
    norms = chain.apply(rows, first, before)
    if all(((norm > _SMALLEST) & (norm < 1 / _SMALLEST)).all() for norm in norms.values()):
        return rows
    raise _not_finite(chain.step)


def _length(rows: Array) -> float:
    """‖rows‖; where a square may be beyond float64, without the largest first."""
    length = float(np.linalg.norm(rows))
    if _SMALLEST < length < 1 / _SMALLEST:
        return length
    largest = float(abs(rows).max(initial=0.0))
    return largest * float(np.linalg.norm(rows / largest)) if largest else 0.0
