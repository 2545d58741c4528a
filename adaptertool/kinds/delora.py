"""DeLoRA: each product of a row of A and a column of B has the length λ/r, and inputs have the weights n.

W'[o, i] = W[o, i] + w·Σ_k B[o, k]·c_k·A[k, i]·n[i], with c_k = λ/(r·max(‖A[k]‖, 10⁻⁴)·max(‖B[:, k]‖, 10⁻⁴)), the
numbers n (in), norms of the columns of the weight when training began, and one λ.

Source: M. Bini et al., "Decoupling Angles and Strength in Low-rank Adaptation" (arXiv:2503.18225). Checked against PEFT
0.21.2 in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import product, products, terms_of, whole
from adaptertool.kinds.misreadings import ONES, ignored
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.numerics.error_free import two_product
from adaptertool.numerics.wide import root, split, squares
from adaptertool.spec.tensors import ReadRows, Ref

A, B, LAMBDA, COLUMNS = "delora_A", "delora_B", "delora_lambda", "delora_w_norm"
_LEAST = Fraction(1e-4)  # a shorter norm counts as this


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A (r, in), B (out, r), λ (1,) and n (in,) for a weight (out, in)."""
    if len(weight) != 2 or not factors[A] or not factors[A][0]:
        return None
    rank = factors[A][0]
    return {A: (rank, weight[1]), B: (weight[0], rank), LAMBDA: (1,), COLUMNS: (weight[1],)}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """LoRA with c·A ⊙ n in the place of A, in three terms: within 2^-100 of it, relatively and element by element."""
    a, b, strength, columns = (factors[role] for role in (A, B, LAMBDA, COLUMNS))
    terms = terms_of(a, columns)

    def left(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return [read(b, first, last)]

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        own, size = read(a, first, last), float(whole(read, strength)[0])
        high, low = _lengths(own, whole(read, b)[:, first:last], size, a.shape[0])
        main, *more = products(own, whole(read, columns)[None], terms)
        top, rest = two_product(*np.broadcast_arrays(main, high))
        return [top, rest, main * low + sum(term * high for term in more)]

    sources, shape = (a, b, strength, columns), (weight[0], a.shape[0], weight[1])
    return [product(sources, shape, (left, 1), (right, 3), scale, plain=False)]


def _lengths(a: Array, b: Array, size: float, rank: int) -> tuple[Array, Array]:
    """c_k of these rows of A and columns of B, as high + low: (rows, 1) each."""
    if not math.isfinite(size):
        return np.full((len(a), 1), size), np.zeros((len(a), 1))
    found = []
    for of_a, of_b in zip(squares(a), squares(b.T), strict=True):
        norms = max(root(of_a), _LEAST) * max(root(of_b), _LEAST)
        found.append(split(Fraction(size) / (rank * norms)))
    pairs = np.array(found).reshape(-1, 2)
    return pairs[:, :1], pairs[:, 1:]


DELORA = Kind(
    name="delora",
    roles=frozenset({A, B, LAMBDA, COLUMNS}),
    by_row=frozenset({B}),
    by_column=frozenset({A}),
    undivided=True,  # norms are of all rows of B
    shapes=shapes,
    becomes=becomes,
    linear=True,
    misreadings=ignored(becomes, ONES, COLUMNS),
    spellings={
        "peft": Spelling(
            tag="DELORA",
            keys={f".{role}": role for role in (A, B, LAMBDA, COLUMNS)},
            alpha=None,
            scaling=lambda _alpha, _rank: 1.0,
            # λ is among the factors
            harmless=frozenset({"delora_lambda", "lambda_pattern", "module_dropout", "init_weights"}),
        )
    },
)
