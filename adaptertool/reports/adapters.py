"""What the commands that make adapters of adapters have to say, as frozen data. `render/` makes text or JSON of it."""

from __future__ import annotations

from typing import ClassVar

from adaptertool.records import dataclass
from adaptertool.reports.notebook import InNotebook


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReport(InNotebook):
    """What the making of an adapter did, or with dry_run would do. Sizes in bytes."""

    schema: ClassVar[str]
    ok: ClassVar[bool] = True  # what fails has no report
    command: str
    sources: tuple[str, ...]
    out: str
    bytes_read: int
    bytes_written: int
    threads: int
    seconds: float
    peak_memory: int  # of the whole process, resident
    dry_run: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerTruncated:
    layer: str
    rank_before: int
    rank: int
    energy: float  # share of Σσ² kept
    error: float  # of what was cut off, relative in Frobenius norm: the least that this rank can have
    storing: float  # what rounding to the stored dtype adds to that, at most
    family: str  # of modules: attention, MLP, ...
    effect: float | None  # ‖W'' − W'‖/‖W' − W‖ of merged weights; None without a base, or where W' is W and W'' is not
    values: tuple[float, ...]  # singular values before, over the largest, in descending order; where asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncateReport(AdapterReport):
    """What `truncate` did. Figures are of the worst pair of factors, or expert, where a layer has several."""

    schema: ClassVar[str] = "truncate/1"
    cut: dict[str, str | int]  # rank, energy or max_error, as asked for
    balanced: bool
    base: str | None  # that the effect is measured on
    layers: tuple[LayerTruncated, ...]


@dataclass(frozen=True, slots=True)
class LayerSummed:
    layer: str
    ranks: tuple[int, ...]  # of the terms
    rank: int
    dtype: str
    scale: float
    exact: bool  # nothing was rounded, or cut off
    rounded: int  # elements that were rounded to the dtype, each by at most half a unit in its last place
    energy: float  # as in LayerTruncated
    error: float  # the same; of a method on factors: how far from the sum of the changes, relative to that
    storing: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SumReport(AdapterReport):
    schema: ClassVar[str] = "sum/1"
    weights: tuple[float, ...]
    weight_rules: tuple[str, ...]  # of layers that fit, as typed: pattern=numbers
    method: str
    density: float | None  # of methods that drop some
    seed: int | None
    cut: dict[str, str | int]  # rank or energy, where asked for
    saved: tuple[str, ...]  # tensors that are saved whole, and kept
    layers: tuple[LayerSummed, ...]


@dataclass(frozen=True, slots=True)
class TensorExtracted:
    """What became of a tensor whose change is D = T − W."""

    tensor: str
    how: str  # "factors", "saved" (whole, as it is in the tuned checkpoint) or "left out"
    rank: int  # of its factors; else 0
    norm: float  # ‖D‖, Frobenius
    energy: float  # share of ‖D‖² kept
    error: float  # ‖D − B·A‖/‖D‖, measured on the factors as they are stored


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractReport(AdapterReport):
    schema: ClassVar[str] = "extract/1"
    cut: dict[str, str | int]  # rank, energy or max_error, as asked for
    dtype: str  # of the factors
    unchanged: int  # tensors that are the same in both
    tensors: tuple[TensorExtracted, ...]  # those that differ, and what had to be saved with them


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertReport(AdapterReport):
    """What `convert` did."""

    schema: ClassVar[str] = "convert/1"
    base: str | None
    format_before: str
    format: str
    layers: int
    tensors: int  # that were written
    copied: int  # of these, those with the bits that they had
    rounded: int  # elements that were rounded to the dtype, each by at most half a unit in its last place
    rounded_tensors: tuple[str, ...]  # those that hold such
