"""DoRA: V = W + s·B·A; W' = (m / ‖V‖)·V, with the norm over each output row. With a weight: W + w·(W' − W).

Sources: S. Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation" (arXiv:2402.09353); the norm has no epsilon,
as in PEFT 0.21.2, against which this is checked in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds import lora
from adaptertool.kinds.kind import NORM, PRODUCT, Change, Factors, Kind, Misreading, Norms, Part, Shape
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import made, turned, whole
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array, Bound, Factor, in_range, mixed, tiny
from adaptertool.numerics.error_free import UNIT
from adaptertool.numerics.ops import DIVIDE, TIMES, Ops
from adaptertool.numerics.product import roundings
from adaptertool.spec.tensors import ReadRows

MAGNITUDE = "lora_magnitude_vector"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """Factors as for LoRA; m (out,), or (1, out, 1, ...) for a convolution."""
    expected = lora.shapes(weight, factors)
    if expected is None:
        return None
    rest = len(weight) - 2
    return {**expected, MAGNITUDE: (1, weight[0], *[1] * rest) if rest else (weight[0],)}


def squares(ops: Ops, rows: Array, factors: Factors, scale: Any) -> Array:
    """‖V‖² of each row, for rows (n, columns), A (r, columns) and B (n, r), or their product, as far as the columns in
    `rows` go: (n, 1). Of blocks of float32, too, in float64."""
    if PRODUCT in factors:
        none = np.zeros((len(rows), 0)), np.zeros((0, rows.shape[1]))
        parts = [
            ops.squares(rows[part] + factors[PRODUCT][part] * scale, none[0][part], none[1]) for part in ops.parts(rows)
        ]
        return np.concatenate(parts)
    return ops.squares(rows, factors[B] * scale, factors[A])


def apply(ops: Ops, rows: Array, factors: Factors, scale: Any, weight: Any) -> None:
    """rows += weight·((m / ‖V‖)·V − rows), in place. rows (n, columns); A (r, columns); B (n, r); m and the norm
    (n, 1)."""
    assert ops.divide is not None
    ratio = ops.divide(factors[MAGNITUDE], factors[NORM])
    if weight == 1:
        role = PRODUCT if PRODUCT in factors else B
        for part in ops.parts(rows):
            some = rows[part]
            lora.apply(ops, some, {**factors, role: factors[role][part]}, scale, 1)
            some *= ratio[part]
        return
    _mix(rows, lora.combined(ops, rows, factors, scale), ratio, weight)


def at_once(ops: Ops, rows: Array, factors: Factors, scale: Any, weight: Any) -> None:
    """The same with the norms of V itself, which is made once for both; for whole rows."""
    if weight == 1:
        lora.apply(ops, rows, factors, scale, 1)
        rows *= _own_ratio(ops, rows, factors[MAGNITUDE])
    else:
        changed = lora.combined(ops, rows, factors, scale)
        _mix(rows, changed, _own_ratio(ops, changed, factors[MAGNITUDE]), weight)


def _own_ratio(ops: Ops, changed: Array, magnitude: Array) -> Array:
    """m / ‖V‖ of whole rows of V, (n, 1)."""
    assert ops.divide is not None and ops.root is not None
    nothing = (ops.array(np.zeros(shape)) for shape in ((changed.shape[0], 0), (0, changed.shape[1])))
    return ops.divide(magnitude, ops.root(ops.squares(changed, *nothing)))


def _mix(rows: Array, changed: Array, ratio: Array, weight: Any) -> None:
    """rows += weight·(ratio·changed − rows), in place; changed, too."""
    changed *= ratio
    changed -= rows
    changed *= weight
    rows += changed


def bound(size: Bound, factors: Mapping[str, Factor], scale: float, weight: float, unit: float, length: int) -> Bound:
    """The largest of `bound_by_row`."""
    return bound_by_row(size, factors, scale, weight, unit, length).of_all


def bound_by_row(
    size: Bound, factors: Mapping[str, Factor], scale: float, weight: float, unit: float, length: int
) -> Bound:
    """V as in LoRA; the sum of `length` squares, its root, a quotient; then the product with V, and the mixture.

    With f = m / ‖V‖ and its relative error e:  |x̂ − x| ≤ unit·|x̂| + f̂·|v̂ − v| + e·|x|, and ‖V̂ − V‖ is no larger than
    relative·‖V̂‖ + error·√length (`norm_error`). Norms are computed in float64, and from the base where the rest is not.
    Where V is next to nothing beside what it is the sum of, little more is known than |x| ≤ |m|.
    """
    combined, norms = lora.bound(size, factors, scale, 1.0, unit, length), factors[NORM].array
    unknown = Bound(math.inf, math.inf)
    if not combined.known or not (norms > 0).all():
        return unknown
    with np.errstate(all="ignore"):  # what overflows is no bound, and known as none
        off = norm_error(size if unit == UNIT else Bound(size.largest), factors, scale, length)
        off += 3 * unit  # of the ratio: its quotient, rounded; and of m, where it has more bits
        lost = off > 0.25
        ratio, slack = Factor(factors[MAGNITUDE].array / norms), 1 + 2.0**-10 + 4 * off
        ends = [ratio.extent, factors[MAGNITUDE].extent, factors[NORM].extent]
        if not in_range(ends, unit) or (lost.any() and unit != UNIT):
            return unknown
        times = abs(ratio.array)
        little = 2 * times * (combined.largest + combined.absolute) + abs(factors[MAGNITUDE].array)
        largest = np.where(lost, little, times * combined.largest * slack)
        error = np.where(lost, little, times * combined.error * slack + tiny(unit))
        relative = np.where(lost, 0.0, (unit + combined.relative + off) * slack)
        changed = Bound(largest, error=error, relative=relative, moved=size.moved + size.largest + largest)
        return changed if weight == 1 else mixed(size, changed, weight, unit)


def norm_error(size: Bound, factors: Mapping[str, Factor], scale: float, length: int) -> Array:
    """How far the norms may be off, (n, 1), relatively to what is computed, in float64: by V̂ − V, and by the roundings
    of the sum of `length` squares and of its root. Infinite where numbers may have been lost."""
    whole = factors[NORM].size
    if whole is None:
        whole = lora.bound(size, factors, scale, 1.0, UNIT, length)
    norms = factors[NORM].array
    return whole.relative + whole.error * math.sqrt(length) / norms + (roundings(length) + 8) * UNIT


def interpolated(magnitude: Array, norm: Array, alpha: float) -> tuple[Array, Array]:
    """(f, e) of the DoRA adapter that makes W + α·(W' − W): B' = diag(f)·B, and m' = e·‖W + s·B'·A‖, with the same A
    and s.

    With d = m/‖V‖:  e = 1 − α + α·d  and  f = α·d/e. For W + α·(d·V − W) = e·W + α·d·s·B·A = e·(W + s·B'·A): its
    direction is that of W + s·B'·A, and m' is its length. Source: this derivation; checked against PEFT in the tests.

    magnitude, norm: m and ‖V‖, one for each output row, of one shape; f and e have the same. float64.
    Raises nothing, but no length is e ≤ 0, and f is infinite or NaN where ‖V‖ or e is 0: for the caller to refuse.
    """
    ratio = magnitude / norm
    length = (1 - alpha) + alpha * ratio  # in this order it is exact at both ends
    return alpha * ratio / length, length


def widened(dtype: str) -> str:
    """What B' and m' are stored as: 16 bits would move the weight by more than it is rounded by."""
    return dtype if dtype == "F64" else "F32"


def without_magnitude(change: Change) -> Sequence[Part]:
    """LoRA."""
    return [Part(lora.LORA.name, {role: change.factors[role] for role in (A, B)}, change.scale)]


def by_norm_of_base(change: Change) -> Sequence[Part]:
    """m / ‖W‖ in the place of m / ‖V‖, as ComfyUI has merged it: DoRA with m·‖V‖/‖W‖."""
    base, (out, *_) = change.base, change.weight
    a, b, m = (change.factors[role] for role in (A, B, MAGNITUDE))
    if base is None:
        return []

    def rows(read: ReadRows, first: int, last: int) -> Array:
        own = read(base, first, last)
        combined = own + change.scale * read(b, first, last) @ read(a, 0, a.shape[0])
        norms = np.linalg.norm(own, axis=1)
        longer = np.linalg.norm(combined, axis=1) / np.where(norms, norms, 1.0)
        return whole(read, m).reshape(-1)[first:last] * longer

    return [Part(DORA.name, {A: a, B: b, MAGNITUDE: made([m, a, b, base], (out,), rows)}, change.scale)]


def by_column(change: Change) -> Sequence[Part]:
    """The norm over each column, and m for these."""
    a, b, m = (change.factors[role] for role in (A, B, MAGNITUDE))
    if len(change.weight) != 2 or change.weight[0] != change.weight[1]:
        return []
    return [Part(DORA.name, {A: turned(b), B: turned(a), MAGNITUDE: m}, change.scale, turned=True)]


DORA = Kind(
    name="dora",
    roles=frozenset({A, B, MAGNITUDE}),
    by_row=frozenset({B, MAGNITUDE}),
    by_column=frozenset({A}),
    shapes=shapes,
    apply=apply,
    bound=bound,
    bound_by_row=bound_by_row,
    operations=frozenset({TIMES, DIVIDE}),
    norms=Norms(
        squares=squares, bound=lora.bound, length=MAGNITUDE, of_product=True, error=norm_error, at_once=at_once
    ),
    single=True,
    pair=(B, A),
    anew=(B, MAGNITUDE),
    misreadings=(
        Misreading("magnitude-ignored", "", without_magnitude),
        Misreading("norm-of-base", "", by_norm_of_base),
        Misreading("norm-axis", "", by_column),
    ),
    spellings={
        "diffusers": Spelling(
            tag="DORA",
            keys={".lora_down.weight": A, ".lora_up.weight": B, ".lora_magnitude_vector": MAGNITUDE},
            rank_of=lambda shapes: shapes[A][0],
        ),
        "mlx": Spelling(tag="dora", keys={".lora_a": A, ".lora_b": B, ".m": MAGNITUDE}, alpha=None),
    },
)
