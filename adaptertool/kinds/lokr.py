"""LoKr: W' = W + w·s·(W₁ ⊗ W₂), a Kronecker product, with s = alpha/r, also where no factor has a rank.

W₁ (a, c) and W₂ (b, d) are stored, or are products of rank r; W₂ of a convolution has its kernel as well, and may be in
Tucker form. Row o of the weight has row o/b of W₁ and row o mod b of W₂; the columns alike.

Sources: A. Edalati et al., "KronA" (arXiv:2212.10650); S. Yeh et al., "Navigating Text-To-Image Customization"
(LyCORIS, arXiv:2309.14859). Checked against PEFT 0.21.2 in the tests.

Of two stored matrices each element is one product: a difference. Else it is a LoHa, since an element is one of W₁ times
one of W₂: each of these two is a product, of a stored matrix with a selection of its rows or columns.

Nothing in a file tells W₁ from W₂ but their names: where the names are exchanged and the products of the sizes fit, it
is another adapter, and is merged as that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptertool.kinds.difference import DELTA, DIFFERENCE
from adaptertool.kinds.kind import Kind, Misreading, Part, Shape
from adaptertool.kinds.loha_tucker import kernel
from adaptertool.kinds.made import Side, hadamard, made, products, terms_of, tucker, whole
from adaptertool.kinds.misreadings import with_scale
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

W1, A1, B1 = "lokr_w1", "lokr_w1_a", "lokr_w1_b"
W2, A2, B2, T2 = "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"
_FIRST = (frozenset({W1}), frozenset({A1, B1}))
_SECOND = (frozenset({W2}), frozenset({A2, B2}), frozenset({A2, B2, T2}))


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """W₁ (a, c), or (a, r) and (r, c); W₂ (b, d, k, ...), or (b, r) and (r, d·k·...), or T (r, r, k, ...), (r, b) and
    (r, d); for a weight (a·b, c·d, k, ...)."""
    if len(weight) not in (2, 3, 4, 5) or not any(factors.keys() == one | two for one in _FIRST for two in _SECOND):
        return None
    if any(len(factors[role]) < 2 for role in factors):
        return None
    a, c = _size(factors)
    if not a or not c or weight[0] % a or weight[1] % c:  # no size that divides the weight's is another
        a, c = math.gcd(a, weight[0]) or 1, math.gcd(c, weight[1]) or 1
    b, d = weight[0] // a, weight[1] // c
    first = {W1: (a, c)}
    if W1 not in factors:
        rank = factors[B1][0]
        first = {A1: (a, rank), B1: (rank, c)}
    if W2 in factors:
        return {**first, W2: (b, d, *weight[2:])}
    rank = factors[B2][0]
    if T2 not in factors:
        return {**first, A2: (b, rank), B2: (rank, d * math.prod(weight[2:]))}
    if len(weight) == 2:
        return None
    return {**first, T2: (rank, rank, *kernel(weight, factors[T2])), A2: (rank, b), B2: (rank, d)}


def _size(factors: Mapping[str, Shape]) -> tuple[int, int]:
    """(a, c)"""
    return (factors[W1][0], factors[W1][1]) if W1 in factors else (factors[A1][0], factors[B1][1])


def size(factors: Mapping[str, Shape]) -> tuple[int, int] | None:
    """(out, in) of a matrix; None for a convolution in Tucker form, and where W₁ or W₂ is not there."""
    one, two = ((factors.get(whole), factors.get(a), factors.get(b)) for whole, a, b in ((W1, A1, B1), (W2, A2, B2)))
    sides = [whole or ((a[0], b[1]) if a and b and len(b) == 2 else None) for whole, a, b in (one, two)]
    if T2 in factors or any(side is None or len(side) != 2 for side in sides):
        return None
    (a, c), (b, d) = (side for side in sides if side is not None)
    return a * b, c * d


def kronecker(roles: Collection[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The roles of W₁ and of W₂ that are there: one where it is stored, B and A where it is a product."""
    return (W1,) if W1 in roles else (A1, B1), (W2,) if W2 in roles else (A2, B2)


class _Places(NamedTuple):
    """Where an element of the weight is in W₁ and W₂, whose kernel lies in its columns: integers, by row and by column
    of the weight as a matrix."""

    row1: Any
    column1: Any
    row2: Any
    column2: Any


def _places(factors: Mapping[str, Ref], weight: Shape, *, reverse: bool) -> _Places:
    """The places of a Kronecker product. reverse: of W₂ ⊗ W₁ at each place of the kernel."""
    a, c = _size({role: ref.shape for role, ref in factors.items()})
    b, inner = weight[0] // a, math.prod(weight[2:])
    wide = weight[1] // c * inner
    rows, columns = np.arange(weight[0]), np.arange(weight[1] * inner)
    if reverse:
        inputs, place = np.divmod(columns, inner)
        return _Places(rows % a, inputs % c, rows // a, inputs // c * inner + place)
    return _Places(rows // b, columns // wide, rows % b, columns % wide)


def becomes(
    factors: Mapping[str, Ref],
    weight: Shape,
    scale: float,
    settings: Mapping[str, Any],  # noqa: ARG001
    *,
    as_peft: bool = True,
    swapped: bool = False,
) -> Sequence[Part]:
    """A difference where W₁ and W₂ are stored, else LoHa. For a convolution in one dimension, where W₂ (b, d, k) is
    stored, PEFT makes W₂ ⊗ W₁ at each place of the kernel: torch.kron pads the dimensions of W₁ from the left.

    swapped: what a tool makes that takes W₂ for W₁, where that is another product
    """
    reverse = as_peft and W2 in factors and len(weight) == 3
    at = _places(factors, weight, reverse=reverse != swapped)
    if W1 in factors and W2 in factors:
        return _of_stored(factors[W1], factors[W2], weight, at, scale)
    first = _stored(factors[W1], at.row1, at.column1) if W1 in factors else _pair(factors[A1], factors[B1], at, 1)
    if W2 in factors:
        second = _stored(factors[W2], at.row2, at.column2)
    elif T2 in factors:
        columns = np.divmod(at.column2, math.prod(weight[2:]))
        second = tucker(factors[T2], factors[A2], factors[B2], at.row2, columns)
    else:
        second = _pair(factors[A2], factors[B2], at, 2)
    return [hadamard(factors.values(), weight, first, second, scale)]


def _of_stored(w1: Ref, w2: Ref, weight: Shape, at: _Places, scale: float) -> Sequence[Part]:
    """One product for each element; of F64 its two terms, one after the other."""
    terms, wide = terms_of(w1, w2), math.prod(w2.shape[1:])
    in_order = bool((at.column1 * wide + at.column2 == np.arange(len(at.column1))).all())  # no gathers then

    def term(number: int) -> Callable[[ReadRows, int, int], Array]:
        def rows(read: ReadRows, first: int, last: int) -> Array:
            one = whole(read, w1)[at.row1[first:last]]
            two = whole(read, w2).reshape(w2.shape[0], -1)[at.row2[first:last]]
            if in_order:
                return products(one[:, :, None], two[:, None, :], terms)[number].reshape(last - first, -1)
            return products(one.take(at.column1, axis=1), two.take(at.column2, axis=1), terms)[number]

        return rows

    deltas = [made((w1, w2), weight, term(number), plain=True) for number in range(terms)]
    return [Part(DIFFERENCE.name, {DELTA: delta}, scale) for delta in deltas]


def _stored(matrix: Ref, rows: Any, columns: Any) -> Side:
    """A stored matrix, at these of its rows and columns: times a selection on its smaller side."""
    down, wide = matrix.shape[0], math.prod(matrix.shape[1:])

    def read_all(read: ReadRows) -> Array:
        return whole(read, matrix).reshape(down, wide)

    if wide <= down:
        return Side(
            wide,
            lambda read, first, last: read_all(read)[rows[first:last]],
            lambda _: (np.arange(wide)[:, None] == columns).astype(np.float64),
        )
    return Side(
        down,
        lambda _, first, last: (rows[first:last, None] == np.arange(down)).astype(np.float64),
        lambda read: read_all(read)[:, columns],
    )


def _pair(left: Ref, right: Ref, at: _Places, number: int) -> Side:
    """A product of two stored matrices."""
    rows, columns = (at.row1, at.column1) if number == 1 else (at.row2, at.column2)
    return Side(
        right.shape[0],
        lambda read, first, last: whole(read, left)[rows[first:last]],
        lambda read: whole(read, right)[:, columns],
    )


def _rank(shapes: Mapping[str, Shape]) -> int | None:
    """That of W₂, or of W₁; None where both are stored, and LyCORIS has no scale."""
    return next((shapes[role][0] for role in (B2, B1) if shapes.get(role)), None)


def _misreadings(*, as_peft: bool) -> Sequence[Misreading]:
    own, swapped = (functools.partial(becomes, as_peft=as_peft, swapped=swapped) for swapped in (False, True))
    return (
        with_scale(own, "alpha-squared", "alpha/r is in it twice", lambda scale: scale**2),
        with_scale(own, "alpha-ignored", "", lambda _: 1.0),
        with_scale(swapped, "factors-swapped", "the second is multiplied with the first, block by block", float),
    )


_ROLES = (W1, A1, B1, W2, A2, B2, T2)
LYCORIS_LOKR = Kind(
    name="lokr_lycoris",
    roles=frozenset(_ROLES),
    optional=frozenset(_ROLES),
    shapes=shapes,
    becomes=functools.partial(becomes, as_peft=False),
    linear=True,
    size=size,
    kronecker=kronecker,
    misreadings=_misreadings(as_peft=False),
    spellings={"kohya": Spelling(tag="LOKR", keys={f".{role}": role for role in _ROLES}, rank_of=_rank)},
)
LOKR = Kind(
    name="lokr",
    roles=frozenset(_ROLES),
    optional=frozenset(_ROLES),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    size=size,
    kronecker=kronecker,
    misreadings=_misreadings(as_peft=True),
    spellings={
        "peft": Spelling(
            tag="LOKR",
            keys={f".{role}": role for role in _ROLES},
            ranked=frozenset({B1, B2}),
            harmless=frozenset(
                {"rank_dropout", "module_dropout", "rank_dropout_scale", "init_weights", "use_effective_conv2d"}
                | {"decompose_both", "decompose_factor"}
            ),
        )
    },
)
