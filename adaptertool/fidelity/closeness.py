"""Sums over blocks that tell how near two things are, added in the order of the blocks: the same every time."""

from __future__ import annotations

import math

from adaptertool.codecs import BY_DTYPE
from adaptertool.fidelity.model import coarser, explains, rounding, summing, survival_slack
from adaptertool.numerics.rounding import Array
from adaptertool.numerics.statistics import drifted
from adaptertool.records import dataclass
from adaptertool.reports.drift import Distance, WeightDrift


def _squares(values: Array) -> float:
    flat = values.reshape(-1)
    return float(flat @ flat)


@dataclass(slots=True)
class Closeness:
    """How close outputs y are to others, z, that stand for what is right: sums that blocks are added to."""

    apart: float = 0.0  # Σ(y − z)²
    own: float = 0.0  # Σy²
    other: float = 0.0  # Σz²
    both: float = 0.0  # Σy·z
    largest: float = 0.0  # max |y − z|

    def add(self, y: Array, z: Array) -> None:
        """Add a block of outputs to the sums: y and z, float64, of one shape."""
        difference = y - z
        self.apart += _squares(difference)
        self.own, self.other = self.own + _squares(y), self.other + _squares(z)
        self.both += float(y.reshape(-1) @ z.reshape(-1))
        self.largest = max(self.largest, float(abs(difference).max(initial=0.0)))

    def report(self, one: str, other: str, variance: float | None) -> Distance:
        """The distance of y from z, by the names of their paths. variance: None where they differ by more than
        rounding."""
        scale = math.sqrt(self.other)
        return Distance(
            path=one,
            against=other,
            rel_error=_ratio(math.sqrt(self.apart), scale),
            max_abs=self.largest,
            cosine=min(1.0, self.both / math.sqrt(self.own) / scale) if self.own and scale else None,
            explained=None if variance is None else _ratio(math.sqrt(variance), scale),
            expected=variance is None or explains(variance, math.sqrt(self.apart)),
        )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else (0.0 if part == 0 else None)


@dataclass(slots=True)
class WeightTally:
    """How far a stored weight W' is from W + Δ, which it should be: sums that blocks are added to."""

    dtype: str
    base: float = 0.0  # ΣW²
    exact: float = 0.0  # Σ(W + Δ)²
    moved: float = 0.0  # Σ(W + Δ)², where Δ is not 0
    delta: float = 0.0  # ΣΔ²
    error: float = 0.0  # Σ(W' − W − Δ)²
    along: float = 0.0  # Σ(W' − W)·Δ
    most_ulps: float = 0.0
    touched: int = 0  # elements where Δ is not 0
    same: int = 0  # of these, those with W' = W
    variance: float = 0.0  # of the factors, and of their products

    def add(self, before: Array, exact: Array, stored: Array) -> None:
        """Add a block to the sums: W, W + Δ and W', contiguous float64, of one shape."""
        codec = BY_DTYPE[self.dtype]
        least = math.ldexp(1.0, codec.lowest)
        found = drifted(before.reshape(-1), exact.reshape(-1), stored.reshape(-1), least)
        for name in ("base", "exact", "moved", "delta", "error", "along", "touched", "same"):
            setattr(self, name, getattr(self, name) + getattr(found, name))
        # In units in the last place of the exact value: at most ½ if rounded correctly
        self.most_ulps = max(self.most_ulps, math.ldexp(found.most, codec.digits - 1))

    def of_factors(self, dtype: str, rank: int, through: float, delta: float) -> None:
        """An edit s·B·A with Σ_k ‖a_k‖²·‖b_k‖²·s² = through and ‖s·B·A‖² = delta: both factors, the product, the scaled
        product and the sum may each have been rounded to the coarser of the dtypes that play a part."""
        dtype = coarser(dtype, self.dtype)
        self.variance += rounding(dtype, 2 * through + 3 * delta) + summing(dtype, rank, through)

    @property
    def survival(self) -> float | None:
        """⟨W' − W, Δ⟩ / ⟨Δ, Δ⟩"""
        return self.along / self.delta if self.delta else None

    def report(self, roundings: int, honest: tuple[float | None, ...]) -> WeightDrift:
        """roundings: how many the weight may have been through; honest: the survival in merges that are known to be
        right."""
        variance = self.variance + roundings * rounding(self.dtype, self.moved, self.touched)
        length = math.sqrt(self.delta)
        noise = math.sqrt(self.error) / length if length else None
        known = [survival for survival in honest if survival is not None]
        kept = True
        if self.survival is not None and noise is not None and known:
            slack = survival_slack(self.dtype, noise, self.touched)
            kept = min(known) - slack <= self.survival <= max(known) + slack
        scale = math.sqrt(self.exact)
        return WeightDrift(
            rel_error=_ratio(math.sqrt(self.error), scale),
            explained=_ratio(math.sqrt(variance), scale),
            expected=explains(variance, math.sqrt(self.error)),
            max_ulp=self.most_ulps,
            norm=scale,
            delta_norm=length,
            delta_size=_ratio(length, math.sqrt(self.base)),
            touched=self.touched,
            survival=self.survival,
            survival_exact=known[0] if known else None,
            survival_expected=kept,
            noise=noise,
            unchanged=self.same / self.touched if self.touched else None,
        )
