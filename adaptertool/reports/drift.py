"""What `drift` reports."""

from __future__ import annotations

from typing import ClassVar

from adaptertool.records import dataclass
from adaptertool.reports.notebook import InNotebook


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
    """What the layers of one form cost: seconds for one pass through one layer."""

    shape: tuple[int, int]  # out, in
    rank: int
    layers: int
    batch: int
    merged: float
    unmerged: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport(InNotebook):
    schema: ClassVar[str] = "drift/1"
    base: str
    sources: tuple[str, ...]
    weights: tuple[float, ...]
    weight_rules: tuple[str, ...]  # of tensors that fit, as typed: pattern=numbers
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
    as_trained: str | None  # how the adapters' runs had the base in 4 bits
    from_dense: float | None  # then: how far the merge is from a run on the dense base, as rel_error
    notes: tuple[str, ...]
    threads: int
    seconds: float
