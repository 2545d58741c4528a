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
    disk_free: int
    memory_predicted: int  # an upper bound for the whole process, resident
    tensors: tuple[TensorPlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport(Report):
    """What a run did; `seconds` from the first check to the published OUT."""

    schema: ClassVar[str] = "run/1"
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
class LogitDrift:
    """How far the logits of a model are from those of the reference, over all positions of all prompts."""

    max_logit: float  # largest difference
    mean_logit: float  # mean absolute difference
    mean_kl: float  # KL(reference ‖ model), nats per token
    max_kl: float
    worst_line: int  # of the prompts, where the largest is
    top1_agreement: float  # share of positions with the same first choice
    text_equality: float | None  # share of prompts that greedy decoding continues the same way; None: not asked for


@dataclass(frozen=True, slots=True)
class EditScores:
    """How well a model knows the facts that it was edited to know; shares, and losses in nats per token."""

    targets: str  # "single-token" or "multi-token"
    count: int
    success: float  # greedy decoding gives the target, exactly
    rephrase: float | None  # the same after another wording of the prompt
    locality: float | None  # tokens that are chosen as by the base, after prompts that the edit is not about
    loss_last_token: float | None
    loss_sequence: float | None


@dataclass(frozen=True, slots=True)
class ModelScores:
    name: str
    role: str  # "base", "unmerged" or "merged"
    drift: LogitDrift | None  # None for the reference
    edits: tuple[EditScores, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """Models on prompts: how far apart they are, and what they know."""

    schema: ClassVar[str] = "evaluate/1"
    ok: bool
    base: str
    adapters: tuple[str, ...]
    weights: tuple[float, ...]
    merged: tuple[str, ...]
    reference: str  # the model that all others are compared with
    prompts: int
    tokens: int  # of the prompts
    generated: int  # tokens after each prompt
    device: str
    fail_above: float | None
    models: tuple[ModelScores, ...]
    notes: tuple[str, ...]
    seconds: float
