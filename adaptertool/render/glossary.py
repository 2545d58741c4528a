"""What the terms on pages mean: a page explains those that it uses."""

from __future__ import annotations

from collections.abc import Mapping

from adaptertool.render.sheet import Sheet

# By the label of a column or a figure. W is a weight of the base, Δ the change that adapters make, W' what is stored.
_TERMS: Mapping[str, str] = {
    "drift": "how far the outputs of merged and of unmerged layers are apart, |y' - y| / |y|; where there are no "
    "outputs, the weight error",
    "weight error": "|W' - W - Δ| / |W + Δ|: how far the stored weight is from the exact one",
    "survival": "⟨W' - W, Δ⟩ / ⟨Δ, Δ⟩: how much of the change is left in what is stored; rounding takes away changes "
    "that are small beside the weight",
    "noise / update": "|W' - W - Δ| / |Δ|: what rounding adds, beside the change",
    "unchanged": "the share of elements that Δ moves, and that are stored as they were",
    "ulp": "unit in the last place: the distance from one number of the stored dtype to the next",
    "|Δ| / |W|": "the size of the change beside that of the weight, in Frobenius norm",
    "|Δ|": "the size of the change, in Frobenius norm",
    "suspect": "drifts by more than rounding explains, given dtype, rank and norms: look for a fault",
    "exact (path)": "the formula in float64, not rounded",
    "1 - cosine": "of the angle between the outputs of two paths; 0 is the same direction",
    "rel error": "|B - A| / |A|, in Frobenius norm; of paths, the root mean square over all modules",
    "max abs": "the largest difference of two elements",
    "effective rank": "exp(-Σ p·ln p) with p = σ/Σσ: how many directions the change has, weighed by their size",
    "stable rank": "Σσ² / max σ²: low where a few directions carry nearly all of it",
    "99% energy": "the smallest rank that keeps 99% of Σσ²",
    "1% error": "the smallest rank that is at most 1% off, in Frobenius norm",
    "trainable": "numbers that the adapter stores",
    "data / capacity": "bits of the data over what the adapter can hold, at 2 bits for each parameter",
    "energy": "the share of Σσ² that is kept",
    "error (of a cut)": "|Δ - Δ'| / |Δ|: what was cut off, the least that this rank can have",
    "storing": "what rounding to the stored dtype adds to the error, at most",
    "effect": "|W'' - W'| / |W' - W|: how far the merged weight moves, over the change that the adapter made",
    "exact": "bit for bit the exact merge, rounded once",
    "rounding": "not the same bits, and no further off than the rounding of an honest tool makes it",
    "scale": "how much of the change is in a wrong tensor: 1 is right, 0 not applied, 2 applied twice",
    "α": "W + α·(T - W): 0 is the base, 1 the tuned model, beyond is extrapolated",
}
# Labels that mean one of the terms
_SAME: Mapping[str, str] = {
    "largest drift": "drift",
    "weights off W + Δ": "weight error",
    "update that survives": "survival",
    "updates that change nothing": "unchanged",
    "max ulp": "ulp",
    "|Δ|/|W|": "|Δ| / |W|",
    "|Δ| / |W| (median)": "|Δ| / |W|",
    "effective": "effective rank",
    "effective rank (median)": "effective rank",
    "stable": "stable rank",
    "energy kept, at least": "energy",
    "error, at most": "error (of a cut)",
    "effect, at most": "effect",
    "within rounding": "rounding",
    "alpha": "α",
    "verdict": "suspect",
    "against": "exact (path)",
    "error": "error (of a cut)",
}


def term(label: str) -> str | None:
    """The meaning of a label; None where it needs none."""
    return _TERMS.get(_SAME.get(label, label))


def terms(sheet: Sheet) -> list[tuple[str, str]]:
    """The terms that a sheet uses, by name, with what they mean."""
    labels = [label for label, _ in sheet.facts] + [label for table in sheet.tables for label in table.head]
    used = {_SAME.get(label, label) for label in labels}
    return [(name.partition(" (")[0], meaning) for name, meaning in _TERMS.items() if name in used]
