"""What callers choose: the precision, how much of a spectrum stays, and how adapters become one."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

# How results are computed: correctly rounded from the real formula, or in single precision and rounded once.
EXACT, FAST = PRECISIONS = ("exact", "fast")

# How the columns of lora_B of fused experts are packed (formats.peft.packing).
RANK_MAJOR, GROUPED = EXPERT_LAYOUTS = ("rank_major", "grouped_by_expert")

# What weights are stored as, where another dtype is asked for than that of the base: as typed, and as files have it.
DTYPES: Mapping[str, str] = {"bf16": "BF16", "f16": "F16", "f32": "F32"}

# How a run had its base in 4 bits of bitsandbytes: the table, and whether with double quantisation.
AS_TRAINED = ("nf4", "nf4-double", "fp4", "fp4-double")


# What becomes of the codes of a quantised base: they are made anew, in its own format.
KEEP = "keep"
QUANTISES = (KEEP,)


class RankChoice(NamedTuple):
    """How much of the spectrum of a change is to stay: one of these; beside a ratio the rank may be a limit."""

    rank: int | None = None
    energy: Decimal | None = None  # the smallest rank that keeps this share of Σσ²
    max_error: Decimal | None = None  # the smallest rank whose error, relative in Frobenius norm, is at most this
    ratio: Decimal | None = None  # the values that are at least the largest over this

    def as_typed(self) -> dict[str, str | int]:
        """What is given, as JSON."""
        given = {name: value for name, value in self._asdict().items() if value is not None}
        return {name: value if isinstance(value, int) else str(value) for name, value in given.items()}


class Mix(NamedTuple):
    """A way of combining adapters into one (algebra.mix)."""

    method: str  # of methods.METHODS
    on_factors: bool  # and not on the changes that they make
    settings: Mapping[str, float | int]  # by name
