"""What the plan and the run of a command that writes report."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from adaptertool.records import dataclass
from adaptertool.reports.cost import CostReport
from adaptertool.reports.notebook import InNotebook


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
    action: str  # "copy", "edit" or "cast"
    bytes: int
    edits: tuple[EditReport, ...]


class TensorSketch(NamedTuple):
    """What is told of a tensor among those alike: a TensorPlan, but its edits may name the modules of another."""

    name: str
    action: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    edits: tuple[EditReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(InNotebook):
    """What plans and runs have in common. Sizes in bytes."""

    schema: ClassVar[str]
    ok: ClassVar[bool] = True  # what fails has no report
    command: str
    base: str
    sources: tuple[str, ...]
    weights: tuple[float, ...]
    weight_rules: tuple[str, ...]  # of tensors that fit, as typed: pattern=numbers
    alphas: tuple[float, ...]
    out: str
    outputs: tuple[str, ...]
    tensors_edited: int  # those of which an output differs from a copy of the base's bytes
    tensors_copied: int
    tensors_cast: int  # stored as another dtype, or decoded, and no more: neither of both
    bytes_read: int  # of distinct input: base and assets once, factors once
    bytes_written: int
    threads: int
    precision: str
    method: str | None  # by which changes are combined: in float64, rounded once and not settled; None: by none
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport(Report):
    """What a run would do."""

    schema: ClassVar[str] = "plan/1"
    disk_needed: int
    disk_free: int | None  # None: the file system does not tell
    memory_predicted: int  # an upper bound for the whole process, resident
    tensors: tuple[TensorPlan, ...]
    cost: CostReport | None = None  # where a rate is given


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptReport:
    """What became of weights that stay codes, at one alpha: W' as stored, W as it was, Δ the change before it was
    rounded."""

    alpha: float
    family: str | None  # of layers; None: all of them
    elements: int
    changed: int  # whose codes are others
    blocks: int  # of elements that have a scale in common
    rescaled: int  # whose scale is another
    survival: float | None  # ⟨W' − W, Δ⟩ / ⟨Δ, Δ⟩, over all elements; None where nothing was to change
    noise: float | None  # ‖W' − W − Δ‖ / ‖Δ‖


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport(Report):
    """What a run did; `seconds` from the first check to the published OUT."""

    schema: ClassVar[str] = "run/1"
    elements_edited: int | None  # of the tensors that are edited, or have another size; None: adapters were written
    elements_changed: tuple[int, ...] | None  # for each alpha: those whose stored bits are not the base's, cast
    survival: tuple[float | None, ...] | None  # for each alpha: ⟨W' − W, Δ⟩ / ⟨Δ, Δ⟩, what the rounding of W + Δ leaves
    # of the update, over a sample of what is computed; 1 where all that changed was copied, None where nothing was to
    kept: tuple[KeptReport, ...] | None  # with --quantise keep: of each family of layers, and then of all
    settled: int  # elements so near to the middle of two stored values that exact arithmetic decided
    settled_one_by_one: int  # of these, those that it took rationals for
    seconds: float
    bytes_per_second: float  # read and written
    peak_memory: int  # of the whole process, resident
    compiled: bool  # by the compiled kernel; without it several times as slow
    verified: bool  # whether what was written was read back and judged before it was published


# The ways in which `drift` computes with adapters: what each is stands in adaptertool.fidelity.paths.
MERGED, UNMERGED, STACKED, STEPWISE = PATHS = ("merged", "unmerged", "stacked", "stepwise")
