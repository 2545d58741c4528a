"""What `evaluate` reports: plain data."""

from __future__ import annotations

from typing import ClassVar

from adaptertool.records import dataclass
from adaptertool.reports.notebook import InNotebook


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
class EvaluationReport(InNotebook):
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
