"""What a kind of adapter is: a name, the roles of its factors, and pure functions over them.

The functions are given the operations of a number system (numerics.ops), so one formula serves them all: float32 and
float64 blocks, tensors of torch, and the exact systems that settle the elements which floats leave open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from adaptertool.errors import InternalError
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array, Bound, Factor
from adaptertool.numerics.ops import Ops
from adaptertool.spec.tensors import Ref

Shape = tuple[int, ...]
Factors = Mapping[str, Array]  # by role
NORM = "norm"
PRODUCT = "product"

# (bound, factors, scale, weight, unit, length) -> the bound after a step, in arithmetic whose roundings are each of at
# most `unit`, relatively; `length` elements make a row of the weight.
BoundAfter = Callable[[Bound, Mapping[str, Factor], float, float, float, int], Bound]


@dataclass(frozen=True, slots=True, kw_only=True)
class Norms:
    """The norms of whole rows that a kind divides by.

    squares: (ops, rows, factors, scale) -> (n, 1), the sum of squares of each row, as far as the columns in `rows` go
    bound:   of the numbers whose squares these are
    length:  the role of the vector, one number for each output row, that stands over the norm
    of_product: the rows are those of V = W + scale·B·A, of the kind's `pair`, and W' = length / norm·V
    together: the role of a factor with as many numbers as rows, one after the other, have one norm
    error:   (bound of the weight, factors, scale, length of a row) -> (n, 1): by how much of itself each norm, that is
             among the factors, may be off in float64; where there is a `bound_by_row`
    at_once: as the kind's `apply`, for whole rows that are divided by their own norms, which it finds itself: where
             that saves a part of the work
    """

    squares: Callable[[Ops, Array, Factors, Any], Array]
    bound: BoundAfter
    length: str
    of_product: bool = False
    together: str | None = None
    error: Callable[[Bound, Mapping[str, Factor], float, int], Array] | None = None
    at_once: Callable[[Ops, Array, Factors, Any, Any], None] | None = None

    def joined(self, squares: Any, factors: Mapping[str, Any]) -> Any:
        """The squares of all rows (n, 1), each summed with those of the same norm. factors: tensors, or arrays"""
        if self.together is None:
            return squares
        count, every = squares.shape[0], factors[self.together].shape[0]
        total = squares[0::every]
        for first in range(1, every):
            total = total + squares[first::every]
        return total[np.arange(count) // every]


class Part(NamedTuple):
    """One of the changes that a change comes down to: by another kind, with factors that are made of its own."""

    kind: str
    factors: Mapping[str, Ref]
    scale: float
    turned: bool = False  # of the weight (in, out) that is the transpose of what is changed
    rows: range | None = None  # of the weight, where it changes these alone


# (factors, the shape (out, in, ...) of the weight, scale, settings) -> the changes that are the same, one after another
Becomes = Callable[[Mapping[str, Ref], Shape, float, Mapping[str, Any]], Sequence[Part]]


class Change(NamedTuple):
    """What a tool that merges has before it: what `Becomes` is given, and the weight itself."""

    factors: Mapping[str, Ref]
    weight: Shape  # (out, in, ...)
    scale: float
    settings: Mapping[str, Any]
    base: Ref | None  # None: it is a part of a tensor


class Misreading(NamedTuple):
    """What another tool may take a change for.

    code, detail: what verify calls that fault, and says beside it
    parts: what it would change then, by kinds that are applied; empty where nobody can take it so
    """

    code: str
    detail: str
    parts: Callable[[Change], Sequence[Part]]


def _comes_down(*_: Any) -> Any:
    raise InternalError("a kind that comes down to others was to be applied")


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """What each element depends on beside itself: others of its row of the weight.

    count: (shapes of the factors) -> how many, at most, counted as often as `pick` needs them
    pick:  (ops, elements, line, factors, columns, weight) changes n single elements (n, 1, 1), in these columns (n,)
           of the weight, in place. line: columns (n, c) -> elements of the same n rows there, before the change,
           (n·c, 1, 1). The factors are float64 matrices, whole; but of those that go by row the elements' own, as a
           batch of the number system.
    """

    count: Callable[[Mapping[str, Shape]], int]
    pick: Callable[[Ops, Array, Callable[[Array], Array], Factors, Array, Any], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How factors change a weight. What a kind cannot do is None or empty: callers refuse it by name.

    A kind has either `apply` and `bound`, or `becomes`: then no edit is of it.

    roles:       the roles of its factors; all must be there, but those that are optional
    optional:    roles that may be missing: `shapes` has the last word
    by_row:      roles whose rows go with the output rows of the weight
    by_column:   roles whose columns go with the input columns of the weight. Roles that are in neither are needed whole
                 A block of a weight (out, in) is made of rows, and needs only those rows of the factors that go
                 by row. Of a weight that is stored transposed, a block is made of columns.
    undivided:   some rows of the factors that go by row do not tell what becomes of these rows of the weight
    places:      roles whose numbers are positions: integers, which are never rounded
    shapes:      shapes of the weight (out, in, ...) and of the factors -> the shapes that the factors must have,
                 or None where this kind cannot change a weight of such a shape.
    unfit:       what else to say there
    apply:       (ops, rows, factors, scale, weight): changes rows (n, columns) of the weight (out, in) in place;
                 factors as matrices, cut to these. Or a batch of single elements (n, 1, 1), with factors to match.
                 In the place of both of a `pair` there may be, in blocks of floats, their product, under the role
                 PRODUCT, (n, columns); how far that may be off is the error of its Factor.size
    bound:       the bound after `apply`. The very bound that it was given where `apply` changes nothing at all.
    bound_by_row: the same for a bound by row (numerics.error_bound), with factors that go by row as FactorByRow: where
                 rows differ much, little of what the bound of all leaves open is open by that of each
    operations:  of numerics.ops.OPERATIONS, those that `apply` needs of a number system
    norms:       where `apply` needs the norm of each whole row, which it finds among its factors, under the role NORM
    neighbours:  where each element depends on others of its row: `apply` then needs whole rows, and is given its
                 factors as floats, whatever the number system
    elementwise: each element depends on the same element of the factors alone, so blocks may be cut
                 anywhere and the weight may have any number of dimensions.
    single:      float32 leaves few elements open, as a sum of products does
    replaces:    its only factor takes the place of the weight; its scale plays no part
    follows:     it belongs to the change of the same layer's weight, and is none by itself
    pair:        roles (B, A): what it changes is made of scale·B·A, (out, r) and (r, in), which inputs can be
                 multiplied with one after the other
    is_product:  what it changes is scale·B·A and nothing else
    adds:        the role of D, of the weight's own shape: what it changes is scale·D
    gains:       the role of G, the same: it makes W ⊙ G, and its scale plays no part
    linear:      what it changes is proportional to its scale
    anew:        roles of the factors that another adapter of this kind has, which makes W + α·(W' − W); none where that
                 is made by another scale, or by no adapter of this kind
    low_rank:    factors -> (B, A), float64, with scale·B·A the whole change, (out, r) and (r, in): of what has no pair
    kronecker:   (the roles that are there) -> those of W₁ and of W₂, each of them stored, or a product B, A: the whole
                 change of a matrix is scale·W₁ ⊗ W₂
    of_weight:   what it changes depends on the weight that it finds
    reads:       a role that no adapter has: the weight (out, in) of the layer that it changes, as the base has it
    size:        (the shapes of the factors) -> (out, in) of what they change, where no factor alone has these
    becomes:     the changes by other kinds that it comes down to, from factors that are made of its own
                 (kinds.made). With any weight w of the edit, they must be the same as W + w·(W' − W)
    misreadings: what else tools have taken it for: those of what it comes down to are not repeated
    spellings:   how it is written, by the name of the format
    """

    name: str
    roles: frozenset[str]
    shapes: Callable[[Shape, Mapping[str, Shape]], Mapping[str, Shape] | None]
    apply: Callable[[Ops, Array, Factors, Any, Any], None] = _comes_down
    bound: BoundAfter = _comes_down
    bound_by_row: BoundAfter | None = None
    optional: frozenset[str] = frozenset()
    unfit: str = ""
    by_row: frozenset[str] = frozenset()
    by_column: frozenset[str] = frozenset()
    undivided: bool = False
    places: frozenset[str] = frozenset()
    operations: frozenset[str] = frozenset()
    norms: Norms | None = None
    neighbours: Neighbours | None = None
    elementwise: bool = False
    single: bool = False
    replaces: bool = False
    follows: bool = False
    pair: tuple[str, str] | None = None
    is_product: bool = False
    adds: str | None = None
    gains: str | None = None
    linear: bool = False
    anew: tuple[str, ...] = ()
    low_rank: Callable[[Factors], tuple[Array, Array]] | None = None
    kronecker: Callable[[Collection[str]], tuple[Sequence[str], Sequence[str]]] | None = None
    of_weight: bool = False
    reads: str | None = None
    size: Callable[[Mapping[str, Shape]], tuple[int, int] | None] | None = None
    becomes: Becomes | None = None
    misreadings: Sequence[Misreading] = ()
    spellings: Mapping[str, Spelling] = field(default_factory=dict)

    def weight_of(self, factors: Mapping[str, Shape]) -> tuple[int, int] | None:
        """(out, in) of the matrix that factors of these shapes change; None where they do not fit together, or have no
        elements."""
        if self.size is not None:
            weight = self.size(factors)
        else:
            out = {shape[0] for role in self.by_row if (shape := factors.get(role))}
            wide = {math.prod(shape[1:]) for role in self.by_column if (shape := factors.get(role))}
            weight = (out.pop(), wide.pop()) if len(out) == len(wide) == 1 else None
        if weight is None or 0 in weight or not all(map(math.prod, factors.values())):
            return None
        expected = self.shapes(weight, factors)
        return weight if expected == {role: tuple(shape) for role, shape in factors.items()} else None
