"""What `diff` has to say, as frozen data. `render/` makes text or JSON of it."""

from __future__ import annotations

from typing import ClassVar

from adaptertool.records import dataclass
from adaptertool.reports.notebook import InNotebook


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """How a tensor differs that is not the same in both. None: there is no such figure, as where shapes differ."""

    name: str
    status: str  # "changed", "dtype-changed", "shape-changed", "missing" (only in A) or "extra" (only in B)
    a: str | None  # dtype and shape
    b: str | None
    elements: int | None = None  # whose bits differ; of two dtypes, whose numbers differ
    share: float | None = None  # of all elements
    rel_error: float | None = None  # ‖B − A‖/‖A‖, Frobenius; of finite numbers
    norm: float | None = None  # ‖B − A‖
    max_abs: float | None = None  # largest |B − A|
    max_ulp: int | None = None  # largest distance, in representable numbers
    not_finite: int | None = None  # elements that differ and are NaN or infinite in A or B
    stable_rank: float | None = None  # of B − A: ‖D‖²/σ₁²
    effective_rank: float | None = None  # exp of the entropy of σ/Σσ; where there are many values, at least this


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffReport(InNotebook):
    """Whether two checkpoints hold the same bits, tensor by tensor, and where not, how far they are apart."""

    schema: ClassVar[str] = "diff/1"
    equal: bool  # all tensors, in both the same bits
    a: str
    b: str
    same: int  # tensors that are
    tensors: tuple[TensorDiff, ...]  # those that are not, in the order of A; then what only B has
    notes: tuple[str, ...]
    bytes_read: int  # of distinct input
    threads: int
    seconds: float
    peak_memory: int  # of the whole process, resident

    @property
    def ok(self) -> bool:
        return self.equal
