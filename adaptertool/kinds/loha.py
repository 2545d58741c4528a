"""LoHa: W' = W + w·s·(B₁·A₁) ⊙ (B₂·A₂), with s = alpha/r; ⊙ multiplies element by element.

Sources: N. Hyeon-Woo et al., "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning"
(arXiv:2108.06098); S. Yeh et al., "Navigating Text-To-Image Customization" (LyCORIS, arXiv:2309.14859). Checked against
PEFT 0.21.2 in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adaptertool.kinds import lora
from adaptertool.kinds.kind import Change, Factors, Kind, Misreading, Part, Shape
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array, Bound, Factor, in_range, may_overflow, tiny
from adaptertool.numerics.ops import TIMES, Ops

B1, A1, B2, A2 = "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"
T1, T2 = "hada_t1", "hada_t2"  # of loha_tucker


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """B₁ and B₂ (out, r), A₁ and A₂ (r, in) for a weight (out, in); of a convolution (out, in, k, ...) for the matrix
    (out, in·k·...)."""
    if len(weight) < 2 or not factors[A1] or not factors[A2]:
        return None
    columns = math.prod(weight[1:])
    pairs = ((B1, A1), (B2, A2))
    return {
        role: shape
        for b, a in pairs
        for role, shape in ((b, (weight[0], factors[a][0])), (a, (factors[a][0], columns)))
    }


def apply(ops: Ops, rows: Array, factors: Factors, scale: Any, weight: Any) -> None:
    """rows += weight·scale·(B₁·A₁) ⊙ (B₂·A₂), in place. rows (n, columns); A (r, columns); B (n, r)."""
    assert ops.times is not None
    first = factors[B1] * (weight * scale)
    for part in ops.parts(rows):
        rows[part] += ops.times(first[part] @ factors[A1], factors[B2][part] @ factors[A2])


def bound(size: Bound, factors: Mapping[str, Factor], scale: float, weight: float, unit: float, length: int) -> Bound:  # noqa: ARG001
    """Two products as in LoRA, p₁ with the scale and p₂; then their product, of which one rounding more.

    With |p̂ᵢ − pᵢ| ≤ eᵢ and |pᵢ| ≤ Pᵢ:  |fl(p̂₁·p̂₂) − p₁·p₂| ≤ e₁·P₂ + P₁·e₂ + e₁·e₂ + unit·|p̂₁·p̂₂| + underflow.
    """
    times, ends = abs(weight * scale), [factors[role] for role in (B1, A1, B2, A2)]
    (p1, e1), (p2, e2) = _product(factors, B1, A1, times, unit), _product(factors, B2, A2, 1.0, unit)
    numbers = (times, *(factor.largest for factor in ends), factors[B1].largest * times)
    if may_overflow(unit, *numbers, p1 + e1, p2 + e2, (p1 + e1) * (p2 + e2)):
        return Bound(math.inf, math.inf)  # also where one product is 0: times infinity it is no number
    if 0 in (weight, scale) or any(factor.largest == 0 for factor in ends):
        return size
    scaled = [end * times for end in factors[B1].extent]
    if not in_range((*(factor.extent for factor in ends), (min(scaled), max(scaled))), unit):
        return Bound(math.inf, math.inf)
    error = _error((p1, e1), (p2, e2), unit)
    grain = size.grain_with(factors[B1], scale, weight)
    for role in (A1, B2, A2):
        grain = None if grain is None else size.grain_with(factors[role], power=grain)
    return size.plus(p1 * p2 * (1 + 2.0**-20), error, unit, grain)


def _error(first: tuple[float, float], second: tuple[float, float], unit: float) -> float:
    (p1, e1), (p2, e2) = first, second
    return (e1 * p2 + p1 * e2 + e1 * e2 + unit * (p1 + e1) * (p2 + e2) + tiny(unit)) * (1 + 2.0**-20)


def product(factors: Factors) -> tuple[Array, float]:
    """(B₁·A₁) ⊙ (B₂·A₂) of float64 factors, and by how much an element may be off: as in `bound`."""
    known = {role: Factor(factor) for role, factor in factors.items()}
    sides = [_product(known, b, a, 1.0, 2.0**-53) for b, a in ((B1, A1), (B2, A2))]
    found = factors[B1] @ factors[A1]
    found *= factors[B2] @ factors[A2]
    fine = all(factor.largest == 0 or in_range([factor.extent], 2.0**-53) for factor in known.values())
    return found, _error(*sides, 2.0**-53) if fine else math.inf


def _product(factors: Mapping[str, Factor], b: str, a: str, times: float, unit: float) -> tuple[float, float]:
    """(P, e) of times·B·A: by Cauchy and Schwarz, and N. Higham, Accuracy and Stability, section 3.1."""
    rank = len(factors[a].array)
    largest = math.sqrt(factors[a].longest_column) * times * math.sqrt(factors[b].longest_row) * (1 + 2.0**-20)
    return largest, (rank + 5) * unit / (1 - (rank + 5) * unit) * largest + (rank + 1) * tiny(unit)


def low_rank(factors: Factors) -> tuple[Array, Array]:
    """B (out, r₁·r₂) and A (r₁·r₂, in) with B·A = (B₁·A₁) ⊙ (B₂·A₂): rows of B are Kronecker products of rows, and
    columns of A of columns. Source: C. Khatri, C. Rao, Sankhyā 30 (1968)."""
    b1, a1, b2, a2 = (factors[role] for role in (B1, A1, B2, A2))
    b = (b1[:, :, None] * b2[:, None, :]).reshape(len(b1), -1)
    return b, (a1[:, None, :] * a2[None, :, :]).reshape(-1, a1.shape[1])


def _scaled(change: Change, scale: float) -> Part:
    return Part(LOHA.name, change.factors, scale)


def _half(change: Change, b: str, a: str) -> Part:
    """LoRA by one of the products."""
    return Part(lora.LORA.name, {lora.B: change.factors[b], lora.A: change.factors[a]}, change.scale)


LOHA = Kind(
    name="loha",
    roles=frozenset({B1, A1, B2, A2}),
    by_row=frozenset({B1, B2}),
    by_column=frozenset({A1, A2}),
    shapes=shapes,
    apply=apply,
    bound=bound,
    operations=frozenset({TIMES}),
    single=True,
    linear=True,
    low_rank=low_rank,
    misreadings=(
        Misreading("alpha-squared", "alpha/r is in it twice", lambda change: [_scaled(change, change.scale**2)]),
        Misreading("factor-ignored", f"{B1}, {A1} are not in it", lambda change: [_half(change, B2, A2)]),
        Misreading("factor-ignored", f"{B2}, {A2} are not in it", lambda change: [_half(change, B1, A1)]),
    ),
    spellings={
        "kohya": Spelling(
            tag="LOHA", keys={f".{role}": role for role in (B1, A1, B2, A2)}, rank_of=lambda shapes: shapes[A1][0]
        ),
        "peft": Spelling(
            tag="LOHA",
            keys={f".{role}": role for role in (B1, A1, B2, A2)},
            harmless=frozenset({"rank_dropout", "module_dropout", "init_weights", "use_effective_conv2d"}),
            variant=({f".{role}": role for role in (T1, T2)}, "loha_tucker"),
            ranked=frozenset({A1, A2}),
        ),
    },
)
