"""What a command has to say, as frozen data. `render/` makes text or JSON of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class EditReport:
    kind: str
    adapter: int  # position on the command line, from 0
    module: str
    scale: float
    weight: float
    rows: int | None  # how many, where it acts on some rows only
    transposed: bool  # the tensor is stored (in, out)


@dataclass(frozen=True, slots=True)
class TensorPlan:
    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    action: str  # "copy" or "edit"
    bytes: int
    edits: tuple[EditReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What plans and runs have in common. Sizes in bytes."""

    schema: ClassVar[str]
    command: str
    base: str
    sources: tuple[str, ...]
    weights: tuple[float, ...]
    alphas: tuple[float, ...]
    out: str
    outputs: tuple[str, ...]
    tensors_edited: int  # those of which an output differs from a copy of the base's bytes
    tensors_copied: int
    bytes_read: int  # of distinct input: base and assets once, factors once
    bytes_written: int
    threads: int
    precision: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport(Report):
    """What a run would do."""

    schema: ClassVar[str] = "plan/1"
    disk_needed: int
    disk_free: int | None  # None: the file system does not tell
    memory_predicted: int  # an upper bound for the whole process, resident
    tensors: tuple[TensorPlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport(Report):
    """What a run did; `seconds` from the first check to the published OUT."""

    schema: ClassVar[str] = "run/1"
    elements_edited: int | None  # of the tensors that are edited, or have another size; None: adapters were written
    elements_changed: tuple[int, ...] | None  # for each alpha: those whose stored bits are not the base's
    survival: tuple[float | None, ...] | None  # for each alpha: ⟨W' − W, Δ⟩ / ⟨Δ, Δ⟩, what the rounding of W + Δ leaves
    # of the update, over a sample of what is computed; 1 where all that changed was copied, None where nothing was to
    settled: int  # elements so near to the middle of two stored values that exact arithmetic decided
    settled_one_by_one: int  # of these, those that it took rationals for
    seconds: float
    bytes_per_second: float  # read and written
    peak_memory: int  # of the whole process, resident
    compiled: bool  # by the compiled kernel; without it several times as slow
    verified: bool  # whether what was written was read back and judged before it was published


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
class VerifyReport:
    """Whether a checkpoint is what the merge, or the interpolation, of the inputs should give."""

    schema: ClassVar[str] = "verify/1"
    ok: bool
    merged: str
    base: str
    sources: tuple[str, ...]
    weights: tuple[float, ...]
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
class FilesReport:
    """The files of OUT beside its manifest."""

    schema: ClassVar[str] = "files/1"
    out: str
    ok: bool
    files: int  # that there should be, the manifest among them
    right: int
    bytes: int  # that were read and hashed
    hashes: tuple[str, ...]
    wrong: tuple[FileStatus, ...]


# The ways in which `drift` computes with adapters: what each is stands in adaptertool.fidelity.paths.
MERGED, UNMERGED, STACKED, STEPWISE = PATHS = ("merged", "unmerged", "stacked", "stepwise")


@dataclass(frozen=True, slots=True)
class Distance:
    """How far the outputs of one path are from those of another; relative to the length of the other."""

    path: str
    against: str
    rel_error: float | None
    max_abs: float
    cosine: float | None
    explained: float | None  # the relative error that rounding is expected to cause; None: the formulas differ
    expected: bool  # whether what was measured is within that, with its margin


@dataclass(frozen=True, slots=True)
class WeightDrift:
    """How far the stored merged weight W' is from W + Δ. None: there is nothing to relate it to (Δ = 0, or W = 0)."""

    rel_error: float | None  # ‖W' − W − Δ‖ / ‖W + Δ‖
    explained: float | None  # as much of it as rounding is expected to cause
    expected: bool
    max_ulp: float  # of W' − W − Δ, in units in the last place of W + Δ
    norm: float  # ‖W + Δ‖
    delta_norm: float  # ‖Δ‖
    delta_size: float | None  # ‖Δ‖ / ‖W‖
    touched: int  # elements that Δ moves
    survival: float | None  # ⟨W' − W, Δ⟩ / ⟨Δ, Δ⟩
    survival_exact: float | None  # that of the exact merge
    survival_expected: bool
    noise: float | None  # ‖W' − W − Δ‖ / ‖Δ‖
    unchanged: float | None  # of these, the share that are stored as they were


@dataclass(frozen=True, slots=True)
class ModuleDrift:
    name: str  # of the tensor
    kinds: tuple[str, ...]
    adapters: tuple[int, ...]  # positions on the command line, from 0
    dtype: str
    shape: tuple[int, ...]
    rank: int  # of all adapters together
    weight: WeightDrift
    inputs: int  # rows of input that outputs were computed for
    outputs: tuple[Distance, ...]  # each path against `exact`, then against each other
    no_outputs: str | None  # why there are none
    drift: float | None  # the relative error of merged against unmerged; of the weight where there are no outputs
    verdict: str  # "expected" or "suspect"
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PathSummary:
    """Over all modules."""

    path: str
    against: str
    rel_error: float  # root mean square of the modules'
    worst: float
    max_abs: float
    cosine: float | None  # the smallest
    modules: int  # in which these paths differ


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Of all layers of one form. Seconds for one pass through one layer."""

    shape: tuple[int, int]  # out, in
    rank: int
    layers: int
    batch: int
    merged: float
    unmerged: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    schema: ClassVar[str] = "drift/1"
    base: str
    sources: tuple[str, ...]
    weights: tuple[float, ...]
    merged: str | None  # the checkpoint that was judged, if not our own merge
    compose: str
    inputs: str  # where the inputs came from
    verdict: str
    ok: bool  # expected, and not above the limit
    drift: float  # the largest of any module
    fail_above: float | None
    survival: float | None  # of all updates together
    noise: float | None
    unchanged: float | None
    rel_error: float | None  # of all merged weights together
    advice: tuple[str, ...]
    paths: tuple[PathSummary, ...]
    modules: tuple[ModuleDrift, ...]  # the worst first
    cost: tuple[LayerCost, ...]
    notes: tuple[str, ...]
    threads: int
    seconds: float
