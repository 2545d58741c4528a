"""Factors that are made of stored ones, a few rows at a time when they are asked for, and what kinds make of them.

They are exact. Where a product of two stored numbers may need more bits than float64 has (one of them is stored as
F64), it is two terms, high + low, and a matrix product has a set of rows or columns for each.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from adaptertool.kinds.kind import Part, Shape
from adaptertool.kinds.loha import A1, A2, B1, B2, LOHA
from adaptertool.kinds.lora import LORA, A, B
from adaptertool.numerics.error_bound import Array
from adaptertool.numerics.error_free import two_product
from adaptertool.spec.tensors import Making, Near, ReadRows, Ref, Shortcut, TensorSpec

_Made = TypeVar("_Made")
_WIDE = 1 << 15  # elements of a row of which some are read by themselves
_DROPPED = 2.0**-49  # of a product of first terms: more than what it lacks, as the others are at most 2⁻⁵¹ of each
KEPT = 8  # of what is remembered, by all threads, each of which may be at another tensor
_kept: deque[tuple[object, Any]] = deque(maxlen=KEPT)
_lock = threading.Lock()

# (how to read, first row, last row) -> these rows of each term
Terms = Callable[[ReadRows, int, int], Sequence[Array]]


def made(
    sources: Iterable[Ref],
    shape: Shape,
    rows: Callable[[ReadRows, int, int], Any],
    columns: Callable[[ReadRows, int, int], Any] | None = None,
    *,
    plain: bool = False,
    costly: bool = False,
    finite: bool = False,
    few: Callable[[ReadRows], tuple[Any, Any]] | None = None,
) -> Ref:
    """A factor of that shape, float64, whose rows `rows` makes of `sources`, and the rows of whose transpose `columns`
    (spec.tensors.Making, which has `plain`, `costly`, `finite` and `few` too)."""
    some = tuple(sources)
    spec = TensorSpec(some[0].spec.name, "F64", shape, 8 * math.prod(shape))
    how = Making(some, rows, columns=columns, plain=plain, costly=costly, finite=finite, few=few)
    return Ref(some[0].path, some[0].offset, spec, made=how)


def turned(ref: Ref) -> Ref:
    """The transpose of a matrix, for a weight that is stored (in, out): what `columns` makes are its rows."""
    how, shape = ref.made, ref.shape[::-1]
    if how is None or how.columns is None:
        sources, plain = ((ref,), True) if how is None else (how.sources, how.plain)
        return made(sources, shape, lambda read, a, b: _columns(read, ref, a, b).T, plain=plain)
    return made(how.sources, shape, how.columns, plain=how.plain)


def _columns(read: ReadRows, ref: Ref, first: int, last: int) -> Array:
    """Columns first..last of a matrix, float64: where these are few of many, without reading the others."""
    (height, width), count = ref.shape, last - first
    if ref.made is not None or ref.columns is not None or width < _WIDE or count > width // 2:
        return whole(read, ref)[:, first:last]
    item = ref.spec.nbytes // ref.spec.numel
    spec = ref.spec._replace(shape=(1, count), nbytes=count * item)
    starts = (ref.offset + (row * width + first) * item for row in range(height))
    return np.concatenate([read(Ref(ref.path, start, spec), 0, 1) for start in starts])


def whole(read: ReadRows, ref: Ref) -> Array:
    """All of a stored tensor, float64, in its own shape."""
    return read(ref, 0, ref.shape[0]).reshape(ref.shape)


def remembered(make: Callable[[ReadRows], _Made]) -> Callable[[ReadRows], _Made]:
    """The same, for what many blocks of a tensor ask for, one after the other: what was made last is kept. What it is
    made of must not change while there is a plan with it."""
    own, making = object(), threading.Lock()

    def asked(read: ReadRows) -> _Made:
        with making:  # threads that are at one tensor wait for the one that makes it
            with _lock:
                found = next((value for key, value in _kept if key is own), None)
            if found is None:
                found = make(read)
                with _lock:
                    _kept.append((own, found))
        return found

    return asked


def terms_of(*refs: Ref) -> int:
    """How many float64 hold a product of elements of two of these exactly: 24 bits and 24 are within 53."""
    return 2 if any(ref.spec.dtype == "F64" for ref in refs) else 1


def products(x: Array, y: Array, terms: int) -> Sequence[Array]:
    """x·y, element by element, in so many terms."""
    return [x * y] if terms == 1 else two_product(*np.broadcast_arrays(x, y))


def product(
    sources: Iterable[Ref],
    shape: tuple[int, int, int],
    left: tuple[Terms, int],
    right: tuple[Terms, int],
    scale: float,
    *,
    plain: bool = True,
    shortcut: Callable[[ReadRows, int, int, bool], tuple[Array, float]] | None = None,
) -> Part:
    """The change scale·B·A as LoRA has it, from the terms of B (out, r) and of A (r, in), and how many these are.

    The first term has the others no larger than 2⁻⁵¹ of it beside it, together, but for what underflows.

    shape: out, r, in; plain: as spec.tensors.Making has it; shortcut: the rows of spec.tensors.Shortcut
    """
    some, (out, rank, wide) = tuple(sources), shape
    (b_terms, b_count), (a_terms, a_count) = left, right
    inner = rank * b_count * a_count

    def b_rows(read: ReadRows, first: int, last: int) -> Array:
        return np.concatenate([term for term in b_terms(read, first, last) for _ in range(a_count)], axis=1)

    def a_rows(read: ReadRows, first: int, last: int) -> Array:
        found = list(a_terms(read, 0, rank)) * b_count
        return (found[0] if len(found) == 1 else np.concatenate(found))[first:last]

    a, b = made(some, (inner, wide), a_rows, plain=plain), made(some, (out, inner), b_rows, plain=plain)
    if shortcut is not None:
        b = with_shortcut(b, a, shortcut)
    elif b_count * a_count > 1:

        def first_of_a(read: ReadRows) -> tuple[Array, float]:
            own = a_terms(read, 0, rank)[0]
            return own, rank * (float(abs(own).max(initial=0.0)) * _DROPPED + 2.0**-600)

        b = with_near(b, a, lambda read, first, last: b_terms(read, first, last)[0], first_of_a)
    return Part(LORA.name, {A: a, B: b}, scale)


def with_shortcut(b: Ref, a: Ref, rows: Callable[[ReadRows, int, int, bool], tuple[Array, float]]) -> Ref:
    """B with a shortcut to its product with A."""
    assert a.made is not None and b.made is not None
    return b._replace(made=b.made._replace(shortcut=Shortcut(rows, a.made.rows, (*b.shape, math.prod(a.shape[1:])))))


def with_near(
    b: Ref,
    a: Ref,
    left: Callable[[ReadRows, int, int], Array],
    right: Callable[[ReadRows], tuple[Array, float]],
) -> Ref:
    """B with fewer factors that serve in its place and A's (spec.tensors.Near)."""
    assert a.made is not None and b.made is not None
    near = Near(left, right, a.made.rows, (*b.shape, math.prod(a.shape[1:])))
    return b._replace(made=b.made._replace(near=near))


def on_points(part: Part, weight: Shape) -> Part:
    """The same product of a convolution (out, in, k, ...): A (r, in, k, ...) and B (out, r, 1, ...), as LoRA has them
    there."""
    a, b = part.factors[A], part.factors[B]
    shaped = {
        role: ref._replace(spec=ref.spec._replace(shape=(ref.shape[0], *rest)))
        for role, ref, rest in ((A, a, weight[1:]), (B, b, (b.shape[1], *[1] * (len(weight) - 2))))
    }
    return part._replace(factors=shaped)


class Side(NamedTuple):
    """One of the two products of a LoHa: B (out, rank) and A (rank, in), exact.

    b: (how to read, first row, last row) -> rows of B; a: (how to read) -> A
    """

    rank: int
    b: Callable[[ReadRows, int, int], Array]
    a: Callable[[ReadRows], Array]


def hadamard(sources: Iterable[Ref], weight: Shape, first: Side, second: Side, scale: float) -> Part:
    """The change scale·(B₁·A₁) ⊙ (B₂·A₂) of a weight (out, in, ...)."""
    some, wide = tuple(sources), math.prod(weight[1:])

    def a_of(side: Side) -> Ref:
        return made(some, (side.rank, wide), lambda read, begin, end: side.a(read)[begin:end], plain=True)

    def b_of(side: Side) -> Ref:
        return made(some, (weight[0], side.rank), side.b, plain=True)

    factors = {B1: b_of(first), A1: a_of(first), B2: b_of(second), A2: a_of(second)}
    return Part(LOHA.name, factors, scale)


def tucker(core: Ref, left: Ref, right: Ref, rows: Any, columns: Any) -> Side:
    """A product that is Σ core[i, j, t]·left[i, p]·right[j, q] for row o, with p = rows[o], and for a column with
    (q, t) as `columns` has them: two arrays of integers. core (r, r, ...), left (r, out), right (r, in).

    B[o, (i, j)] = left[i, p] and A[(i, j), x] = core[i, j, t]·right[j, q]: a product of two numbers, and no sum.
    """
    rank, terms = left.shape[0], terms_of(core, right)
    across, inside = columns

    def b(read: ReadRows, first: int, last: int) -> Array:
        some = whole(read, left)[:, rows[first:last]].T
        return np.concatenate([np.repeat(some, right.shape[0], axis=1)] * terms, axis=1)

    def a(read: ReadRows) -> Array:
        cores = whole(read, core).reshape(*core.shape[:2], -1)[:, :, inside]
        found = products(cores, whole(read, right)[None][:, :, across], terms)
        return np.concatenate([term.reshape(-1, len(across)) for term in found])

    return Side(rank * right.shape[0] * terms, b, a)
