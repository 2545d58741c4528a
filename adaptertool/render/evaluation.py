"""What `evaluate` found, as text: a table of how far the models are apart, and one of what they know."""

from __future__ import annotations

from adaptertool.errors import shown
from adaptertool.render.text import table
from adaptertool.reports.evaluate import EditScores, EvaluationReport, LogitDrift, ModelScores

_DRIFT = ("max |Δ|", "mean |Δ|", "KL/token", "max KL", "top-1", "text")
_EDITS = ("n", "success", "rephrase", "locality")


def evaluation_text(report: EvaluationReport, width: int | None = None) -> str:
    lines = [f"evaluate {report.base}: {report.prompts:,} prompts, {report.tokens:,} tokens, on {report.device}"]
    lines += ["", f"logits, against {shown(report.reference)}"]
    rows = [(one.name, *drift_cells(one.drift)) for one in report.models if one.drift is not None]
    lines += table(("model", *drift_heads(report)), rows, width)
    for targets in dict.fromkeys(scores.targets for one in report.models for scores in one.edits):
        lines += ["", f"facts, {targets} targets"]
        own = [(one, scores) for one in report.models for scores in one.edits if scores.targets == targets]
        rows = [(one.name, *edit_cells(one, scores)) for one, scores in own]
        lines += table(("model", *edit_heads(own[0][1])), rows, width)
    if report.fail_above is not None:
        verdict = "within" if report.ok else "ABOVE"
        lines += ["", f"KL per token is {verdict} the limit of {report.fail_above:g}"]
    return "\n".join(lines)


def drift_heads(report: EvaluationReport) -> tuple[str, ...]:
    """The columns of how far models are apart; texts where any were generated."""
    return _DRIFT[: None if report.generated else -1]


def drift_cells(drift: LogitDrift) -> list[str]:
    numbers = (drift.max_logit, drift.mean_logit, drift.mean_kl, drift.max_kl)
    shares = [drift.top1_agreement] + ([drift.text_equality] if drift.text_equality is not None else [])
    return [f"{number:.2e}" for number in numbers] + [f"{share:.1%}" for share in shares]


def edit_heads(scores: EditScores) -> list[str]:
    losses = {"last-token loss": scores.loss_last_token, "sequence loss": scores.loss_sequence}
    return [*_EDITS, *(name for name, loss in losses.items() if loss is not None)]


def edit_cells(model: ModelScores, scores: EditScores) -> list[str]:
    locality = None if model.role == "base" else scores.locality  # it is what the others are compared with
    shares = ["-" if share is None else f"{share:.1%}" for share in (scores.success, scores.rephrase, locality)]
    losses = [f"{loss:.4f}" for loss in (scores.loss_last_token, scores.loss_sequence) if loss is not None]
    return [f"{scores.count:,}", *shares, *losses]
