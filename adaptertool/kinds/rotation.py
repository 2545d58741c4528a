"""Rotation: W' = W + w·(W·R − W), where R = R₁·…·R_M multiplies blocks of columns by small matrices, stage after stage;
or g ⊙ (W·R) in the place of W·R, with a number g for each row.

Stage m takes the columns in an order of its own, multiplies every b of them by a matrix (b, b), and puts them back:
with v = W to begin with,

    x = v[:, order[m]];  y[:, block k] = x[:, block k] @ (high + low)[m, k];  v[:, order[m]] = y.

Nothing asks that R be orthogonal. What OFT, BOFT and HRA hold becomes such stages: Z. Qiu et al., "Controlling
Text-to-Image Diffusion by Orthogonal Finetuning" (arXiv:2306.07280); W. Liu et al., "BOFT" (arXiv:2311.06243).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds.kind import Change, Factors, Kind, Misreading, Neighbours, Part, Shape
from adaptertool.kinds.made import made
from adaptertool.kinds.misreadings import is_square
from adaptertool.numerics.error_bound import Array, Bound, Factor, may_overflow, mixed, tiny
from adaptertool.numerics.ops import BLOCKWISE, TIMES, Ops
from adaptertool.spec.tensors import ReadRows, Ref

HIGH, LOW, ORDER, ROWS = "high", "low", "order", "rows"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """high and low (M·in, b), order (M, in), for a weight (out, in), b a divisor of in; of a convolution (out, in, k,
    ...) for the matrix (out, in·k·...); g, `rows`, (out, 1), where there is one. Element (i, j) of block k of stage m
    stands in row m·in + k·b + i, column j."""
    if len(weight) < 2 or len(factors[HIGH]) != 2 or not factors[ORDER]:
        return None
    columns, stages, wide = math.prod(weight[1:]), factors[ORDER][0], factors[HIGH][1]
    if not wide or columns % wide or not stages:
        return None
    expected = {HIGH: (stages * columns, wide), LOW: (stages * columns, wide), ORDER: (stages, columns)}
    return expected | ({ROWS: (weight[0], 1)} if ROWS in factors else {})


def apply(ops: Ops, rows: Array, factors: Factors, scale: Any, weight: Any) -> None:  # noqa: ARG001
    """rows += weight·(v − rows), in place; v itself where the weight is 1. rows (n, columns); the factors as in
    `shapes`, floats in every number system. `scale` plays no part."""
    takes = _takes(np.array(factors[ORDER].tolist(), np.int64))  # also of torch, from any device
    for part in ops.parts(rows):
        some = rows[part]
        made = _turned(ops, some, factors, takes)
        if ROWS in factors:
            assert ops.times is not None
            made = ops.times(made, ops.array(factors[ROWS][part]))
        if weight == 1:
            some[...] = made
        else:
            made -= some
            made *= weight
            some += made


def _takes(orders: Array) -> Sequence[Array | None]:
    """Which columns are taken of what the stage before has left, for each stage, and after the last; None: all, as they
    are."""
    straight = np.arange(orders.shape[1])
    takes, at = [], straight  # column j of v is column at[j] of what is there
    for order in orders:
        takes.append(at[order])
        at = np.argsort(order)
    return [None if (columns == straight).all() else columns for columns in (*takes, at)]


def _turned(ops: Ops, rows: Array, factors: Factors, takes: Sequence[Array | None]) -> Array:
    """v, in an array of its own."""
    assert ops.blockwise is not None
    columns, made = rows.shape[1], rows
    for stage, some in enumerate(takes[:-1]):
        part = slice(stage * columns, (stage + 1) * columns)
        made = ops.blockwise(_taken(ops, made, some), factors[HIGH][part], factors[LOW][part])
    return _taken(ops, made, takes[-1])


def _taken(ops: Ops, rows: Array, columns: Array | None) -> Array:
    if columns is None:
        return rows
    return rows[:, columns] if ops.columns(rows) is None else rows.T[columns].T  # as they lie in memory


def count(factors: Mapping[str, Shape]) -> int:
    """b columns by each stage, for each of those of the next."""
    return math.prod((factors[HIGH][1],) * factors[ORDER][0])


def pick(
    ops: Ops, elements: Array, line: Callable[[Array], Array], factors: Factors, columns: Array, weight: Any
) -> None:
    """What `apply` makes of single elements: from the last stage to the first what each needs of the one before; and
    from the first to the last the sums of b products."""
    (total, wide), needed, cuts = factors[HIGH].shape, columns, []
    width = factors[ORDER].shape[1]
    for first in range(total - width, -1, -width):
        order = factors[ORDER][first // width].astype(np.int64)
        block, own = np.divmod(np.argsort(order)[needed], wide)
        inputs = (block[..., None] * wide + np.arange(wide)).reshape(len(columns), -1)
        cuts.append((first + inputs.reshape(-1, wide), own.reshape(-1, 1)))
        needed = order[inputs]
    made = line(needed)
    for cut in reversed(cuts):
        left, (high, low) = made.reshape(-1, 1, wide), (factors[role][cut][:, :, None] for role in (HIGH, LOW))
        made = left @ ops.array(high)
        if low.any():
            made = made + left @ ops.array(low)
    if ROWS in factors:
        assert ops.times is not None
        made = ops.times(made, factors[ROWS])
    elements[...] = made if weight == 1 else elements + (made - elements) * weight


def bound(size: Bound, factors: Mapping[str, Factor], scale: float, weight: float, unit: float, length: int) -> Bound:  # noqa: ARG001
    """A sum of b products for each element and stage, in any order; then the product with g; then the mixture.

    Let no |x| exceed X, |x̂ − x| ≤ e, and h and l be the largest sums of magnitudes of a column of high and of low.
    Then |y| ≤ X·(h + l). Floats take `high` alone, perhaps rounded to their unit, so that

        |ŷ − y| ≤ e·h + X·l + (b + 1)·unit / (1 − (b + 1)·unit)·(X + e)·h + underflow,

    where a product, and high itself, lose no more than `tiny` by underflow. g and the product with it are rounded, by
    2·unit of it together.
    Source: N. Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1.
    """
    high, low, wide = abs(factors[HIGH].array), abs(factors[LOW].array), factors[HIGH].array.shape[1]
    stages, slack = len(factors[ORDER].array), 1 + 2.0**-20
    heights, lows = (array.reshape(stages, -1, wide, wide).sum(2).max((1, 2)).tolist() for array in (high, low))
    relative, largest, error = (wide + 1) * unit / (1 - (wide + 1) * unit), size.largest, size.absolute
    numbers = [abs(weight), *heights, *lows, largest + error]
    for height, rest in zip(heights, lows, strict=True):
        underflow = (wide + 1) * (1 + largest + error) * tiny(unit)
        error = (error * height + largest * rest + relative * (largest + error) * height + underflow) * slack
        largest *= (height + rest) * slack
        numbers.append(largest + error)
    if ROWS in factors:
        gain = factors[ROWS].largest
        error = (error * gain + 2 * unit * (largest + error) * gain + (1 + largest + error) * tiny(unit)) * slack
        largest *= gain * slack
        numbers += [gain, largest + error]
    if may_overflow(unit, *numbers, abs(weight) * (size.largest + size.absolute + largest + error)):
        return Bound(math.inf, math.inf)
    if 0 in (weight, size.largest + size.absolute) or _is_identity(factors):
        return size
    changed = Bound(largest, error, moved=size.moved + size.largest + largest)
    return changed if weight == 1 else mixed(size, changed, weight, unit)


def _is_identity(factors: Mapping[str, Factor]) -> bool:
    high, wide = factors[HIGH].array, factors[HIGH].array.shape[1]
    if not (high[:wide] == np.eye(wide)).all():  # mostly that is enough
        return False
    straight = ROWS not in factors or bool((factors[ROWS].array == 1).all())
    return straight and bool((high.reshape(-1, wide, wide) == np.eye(wide)).all()) and not factors[LOW].array.any()


def _back(change: Change) -> Sequence[Part]:
    """Rᵀ in the place of R: the stages from the last to the first, with blocks that are transposed."""
    stages, columns = change.factors[ORDER].shape
    wide = change.factors[HIGH].shape[1]

    def reverse(role: str, wide: int, *, turns: bool) -> Ref:
        ref = change.factors[role]

        def rows(read: ReadRows, first: int, last: int) -> Array:
            own = read(ref, 0, ref.shape[0]).reshape(stages, -1, wide, wide if turns else 1)[::-1]
            return own.swapaxes(2, 3).reshape(ref.shape)[first:last]

        return made([ref], ref.shape, rows)

    factors = {
        HIGH: reverse(HIGH, wide, turns=True),
        LOW: reverse(LOW, wide, turns=True),
        ORDER: reverse(ORDER, columns, turns=False),
    }
    return [Part(ROTATION.name, {**change.factors, **factors}, change.scale)]


def _other_side(change: Change) -> Sequence[Part]:
    """R·W in the place of W·R, where the weight is square."""
    return [Part(ROTATION.name, change.factors, change.scale, turned=True)] if is_square(change) else []


# Not `single`: in float32 the bound leaves 3 to 7 of 100 elements open in BF16, and 18 to 34 in F16, of blocks of 32.
ROTATION = Kind(
    name="rotation",
    roles=frozenset({HIGH, LOW, ORDER, ROWS}),
    optional=frozenset({ROWS}),
    by_row=frozenset({ROWS}),
    places=frozenset({ORDER}),
    shapes=shapes,
    apply=apply,
    bound=bound,
    operations=frozenset({BLOCKWISE, TIMES}),
    neighbours=Neighbours(count=count, pick=pick),
    of_weight=True,
    misreadings=(
        Misreading("rotation-transposed", "it is turned the other way", _back),
        Misreading("other-side", "outputs are turned, not inputs, or the reverse", _other_side),
    ),
)
