"""VB-LoRA: LoRA whose factors are made of the vectors of one bank, which all modules share. W' = W + w·B·A.

Rows of A and columns of B are pieces of L numbers, one after the other: a piece is Σ_j p_j·V[n_j], with V (n, L) the
bank, n_j the places of the K largest logits of the piece, and p their softmax. Where those alone are saved: the places,
and all p but the last, which is 1 − the sum of the others (PEFT rounds that, and its logarithm, to float32).

Source: Y. Li et al., "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks" (arXiv:2405.15179). Checked
against PEFT 0.21.2 in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import product, whole
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.numerics.error_free import two_product, two_sum
from adaptertool.numerics.wide import softmax, split
from adaptertool.spec.tensors import ReadRows, Ref

A, B, BANK = "vblora_logits_A", "vblora_logits_B", "vblora_vector_bank"
INDICES, WEIGHTS = "_topk_indices", "_topk_weights"
_OPTIONAL = frozenset(side + which for side in (A, B) for which in ("", INDICES, WEIGHTS))


class Mixture(NamedTuple):
    """The shares p = high + low of vectors of the bank in pieces (x, y), and which these are: (x, y, K) each."""

    high: Array
    low: Array
    places: Array


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """The bank (n, L); logits of A (r, in/L, n) and of B (out/L, r, n) for a weight (out, in). Or, of each side, places
    (..., K) and shares (..., K − 1)."""
    bank, saved = factors[BANK], A not in factors
    a, b = (factors.get(side + (INDICES if saved else ""), ()) for side in (A, B))
    if len(weight) != 2 or len(bank) != 2 or 0 in bank + a or len(a) != 3 or len(b) != 3:
        return None
    if weight[0] % bank[1] or weight[1] % bank[1] or factors.keys() != _roles(saved):
        return None
    last = a[2] if saved else bank[0]
    of_a, of_b = (a[0], weight[1] // bank[1]), (weight[0] // bank[1], a[0])
    if not saved:
        return {A: (*of_a, last), B: (*of_b, last), BANK: bank}
    sides = ((A, of_a), (B, of_b))
    own = {side + which: (*of, last - less) for side, of in sides for which, less in ((INDICES, 0), (WEIGHTS, 1))}
    return {**own, BANK: bank}


def _roles(saved: bool) -> set[str]:
    return {BANK, *(side + which for side in (A, B) for which in ((INDICES, WEIGHTS) if saved else ("",)))}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:
    """LoRA with A and B in two terms each, element by element within 2^-98·Σ_j p_j·|V[n_j]|. Its rows raise InputError
    for places outside of the bank and shares that are none, UnsupportedError where logits do not tell which are chosen.
    """
    bank, (out, wide) = factors[BANK], weight
    length, of_a, of_b = bank.shape[1], _mixer(factors, A, settings), _mixer(factors, B, settings)
    rank = factors[A if A in factors else A + INDICES].shape[0]

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return [term.reshape(last - first, wide) for term in _mixed(of_a(read, first, last), whole(read, bank))]

    def left(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        begin, end = first // length, -(-last // length)
        terms = _mixed(of_b(read, begin, end), whole(read, bank))
        rows = slice(first - begin * length, last - begin * length)
        return [term.swapaxes(1, 2).reshape(-1, rank)[rows] for term in terms]

    return [product(factors.values(), (out, rank, wide), (left, 2), (right, 2), scale, plain=False)]


def _mixed(shares: Mixture, bank: Array) -> Sequence[Array]:
    """The pieces (x, y, L), as high + low."""
    high = low = np.zeros((*shares.high.shape[:2], bank.shape[1]))
    for j in range(shares.high.shape[2]):
        vectors = bank[shares.places[..., j]]
        main, rest = two_product(*np.broadcast_arrays(shares.high[..., j, None], vectors))
        high, more = two_sum(high, main)
        low = low + (rest + (more + shares.low[..., j, None] * vectors))
    return two_sum(high, low)


def _mixer(
    factors: Mapping[str, Ref], side: str, settings: Mapping[str, Any]
) -> Callable[[ReadRows, int, int], Mixture]:
    """What reads the shares of some rows of pieces of a side."""
    count = factors[BANK].shape[0]
    if side in factors:
        return lambda read, first, last: _of_logits(read, factors[side], first, last, settings["topk"])
    return lambda read, first, last: _of_saved(
        read, factors[side + INDICES], factors[side + WEIGHTS], first, last, count
    )


def _of_logits(read: ReadRows, ref: Ref, first: int, last: int, most: int) -> Mixture:
    logits = read(ref, first, last).reshape(last - first, *ref.shape[1:])
    order = np.argsort(-logits, axis=-1, kind="stable")
    ranked = np.take_along_axis(logits, order, -1)
    if (most < ranked.shape[2]) and (ranked[..., most - 1] == ranked[..., min(most, ranked.shape[2] - 1)]).any():
        raise UnsupportedError(
            f"{ref.path}: {shown(ref.spec.name)} has equal logits at the place where the {most} largest end: which of "
            "them counts is not defined"
        )
    chosen = ranked[..., :most]
    shares = np.array([_shares(row.tolist()) for row in chosen.reshape(-1, most)]).reshape(*chosen.shape, 2)
    return Mixture(shares[..., 0], shares[..., 1], order[..., :most])


def _shares(logits: Sequence[float]) -> Sequence[tuple[float, float]]:
    """Their softmax; −∞ is of no weight, and others that are not finite make what is no number."""
    known = [logit for logit in logits if logit != -math.inf]
    if not known or not all(map(math.isfinite, known)):
        return [(math.nan, 0.0)] * len(logits)
    found = iter(softmax(known))
    return [(0.0, 0.0) if logit == -math.inf else split(next(found)) for logit in logits]


def _of_saved(read: ReadRows, indices: Ref, weights: Ref, first: int, last: int, count: int) -> Mixture:
    places = read(indices, first, last).reshape(last - first, *indices.shape[1:])
    given = read(weights, first, last).reshape(last - first, *weights.shape[1:])
    if not ((places >= 0) & (places < count) & (places == np.floor(places))).all():
        raise InputError(f"{indices.path}: {shown(indices.spec.name)} names vectors that the bank, of {count}, has not")
    ends = []
    for row in given.reshape(math.prod(given.shape[:2]), given.shape[2]):  # no shares at all where K is 1
        terms = [1.0, *(-row).tolist()]
        high = math.fsum(terms)
        ends.append((high, math.fsum([*terms, -high])))
    pairs = np.array(ends).reshape(*given.shape[:2], 1, 2)
    if (given < 0).any() or (pairs[..., 0] < 0).any():
        raise InputError(f"{weights.path}: {shown(weights.spec.name)} holds shares below 0, or of more than 1 together")
    shares = np.concatenate([given, pairs[..., 0]], axis=-1), np.concatenate([0 * given, pairs[..., 1]], axis=-1)
    return Mixture(*shares, places.astype(np.int64))


def fits(settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str | None:
    """Whether there are as many vectors for a piece as the config says."""
    most, saved = settings["topk"], shapes.get(A + INDICES)
    count = shapes[BANK][0] if saved is None and shapes[BANK] else most
    if type(most) is not int or not 0 < most <= count or (saved is not None and saved[2:] != (most,)):
        return f"topk is {shown(most)[:80]}, which its factors do not have"
    return None


VBLORA = Kind(
    name="vblora",
    roles=frozenset({BANK}) | _OPTIONAL,
    optional=_OPTIONAL,
    shapes=shapes,
    becomes=becomes,
    linear=True,
    spellings={
        "peft": Spelling(
            tag="VBLORA",
            keys={f".{role}": role for role in sorted(_OPTIONAL)},
            shared={f"base_model.{BANK}": BANK},
            integers=frozenset(side + INDICES for side in (A, B)),
            alpha=None,
            scale=lambda _: 1.0,
            settings=frozenset({"topk"}),
            fits=fits,
            harmless=frozenset(
                {"num_vectors", "vector_length", "save_only_topk_weights", "vblora_dropout"}
                | {"init_vector_bank_bound", "init_logits_std"}
            ),
        )
    },
)
