"""What `verify` reports."""

from __future__ import annotations

from typing import ClassVar

from adaptertool.records import dataclass
from adaptertool.reports.notebook import InNotebook


@dataclass(frozen=True, slots=True)
class TensorVerdict:
    name: str
    status: str  # "exact", "rounding", "wrong", "untouched_changed", "missing" or "extra"
    max_ulp: int | None = None  # largest distance from the exact merge, in representable numbers
    rel_error: float | None = None  # ‖C − E‖/‖E‖, of what is stored and of the exact merge
    fitted_scale: float | None = None  # of a wrong tensor: how much of the change is in it; 1 is right
    diagnosis: str | None = None
    detail: str = ""  # in words: the recipe that explains it, or what is wrong


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    exact: int
    rounding: int
    wrong: int
    untouched_changed: int
    missing: int
    extra: int
    diagnosis: tuple[str, ...]  # the codes that were found, the most frequent first


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport(InNotebook):
    """Whether a checkpoint is what the merge, or the interpolation, of the inputs should give."""

    schema: ClassVar[str] = "verify/1"
    ok: bool
    verdict: str  # "right" or "wrong"
    merged: str
    base: str
    sources: tuple[str, ...]
    weights: tuple[float, ...]
    weight_rules: tuple[str, ...]  # of tensors that fit, as typed: pattern=numbers
    alpha: float
    strict: bool
    summary: VerdictCounts
    tensors: tuple[TensorVerdict, ...]
    problems: tuple[str, ...]  # beside the tensors; each makes it wrong
    notes: tuple[str, ...]
    bytes_read: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FileStatus:
    name: str  # its path within OUT
    status: str  # "missing", "not in the manifest", "no plain file", "size" or "content"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesReport(InNotebook):
    """The files of OUT beside its manifest."""

    schema: ClassVar[str] = "files/1"
    out: str
    ok: bool
    files: int  # that there should be, the manifest among them
    right: int
    bytes: int  # that were read and hashed
    hashes: tuple[str, ...]
    wrong: tuple[FileStatus, ...]
