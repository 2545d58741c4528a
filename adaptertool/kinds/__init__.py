"""The kinds of adapter, one file each. To add one: write the file, add one line here."""

from adaptertool.kinds.dora import DORA
from adaptertool.kinds.full import FULL
from adaptertool.kinds.kind import NORM, Kind
from adaptertool.kinds.lora import LORA
from adaptertool.kinds.offset import OFFSET
from adaptertool.numerics.error_bound import Array, Bound, Factor, has_few_bits, interpolated

KINDS: tuple[Kind, ...] = (LORA, DORA, OFFSET, FULL)
BY_NAME = {kind.name: kind for kind in KINDS}

__all__ = [
    "BY_NAME", "DORA", "FULL", "KINDS", "LORA", "NORM", "OFFSET", "Array", "Bound", "Factor", "Kind", "has_few_bits",
    "interpolated",
]  # fmt: skip
