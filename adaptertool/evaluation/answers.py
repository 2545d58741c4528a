"""How well a model knows the facts that it was edited to know.

Two definitions of the loss of an answer t_1 ... t_n to a prompt, both a mean over its tokens, in nats:

    last-token  −(1/n)·Σ log p(t_i | prompt)                 all from the logits at the prompt's last position
    sequence    −(1/n)·Σ log p(t_i | prompt, t_1 ... t_i−1)  prompt and answer together, scored autoregressively

Where n = 1 they are one number. Editing by plain fine-tuning often minimises the first (`prompt_last` of EasyEdit,
FT-L), and with LoRA the second (`target_new`, FT-M): P. Wang et al., "EasyEdit" (arXiv:2308.07269), N. Zhang et al.,
"A Comprehensive Study of Knowledge Editing" (arXiv:2401.01286).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from adaptertool.evaluation.encoding import Case, Query
from adaptertool.evaluation.logits import logits_of
from adaptertool.evaluation.prompts import LOSSES
from adaptertool.records import dataclass
from adaptertool.reports.evaluate import EditScores

LAST_TOKEN, SEQUENCE = LOSSES
GROUPS = ("single-token", "multi-token")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says to a query: its first choice at each token of the answer, and the losses of the answer."""

    chosen: tuple[int, ...]
    exact: bool  # the choices are the answer: greedy decoding gives it, token by token
    last_token: float
    sequence: float


@dataclass(frozen=True, slots=True)
class Answers:
    rewrite: Answer
    rephrase: Answer | None
    locality: tuple[Answer, ...]


def answers_of(model: Any, name: str, cases: Sequence[Case]) -> list[Answers]:
    """The answers of a model to the cases that hold a fact, in their order."""

    def answer(case: Case, query: Query) -> Answer:
        return _answer(logits_of(model, query.prompt + query.answer, case.line, name), query)

    return [
        Answers(
            answer(case, case.rewrite),
            None if case.rephrase is None else answer(case, case.rephrase),
            tuple(answer(case, query) for query in case.locality),
        )
        for case in cases
        if case.rewrite is not None
    ]


def _answer(logits: torch.Tensor, query: Query) -> Answer:
    if not query.answer:
        return Answer((int(logits[-1].argmax()),), exact=False, last_token=0.0, sequence=0.0)
    last = len(query.prompt) - 1
    log_p = logits[last : last + len(query.answer)].cpu().double().log_softmax(1)
    target = torch.tensor(query.answer)
    chosen = tuple(log_p.argmax(1).tolist())
    return Answer(
        chosen,
        exact=chosen == query.answer,
        last_token=-log_p[0, target].mean().item(),
        sequence=-log_p.gather(1, target[:, None]).mean().item(),
    )


def score(
    cases: Sequence[Case], answers: Sequence[Answers], before: Sequence[Answers], losses: Sequence[str]
) -> tuple[EditScores, ...]:
    """The scores of edits to one token, and to several. before: what the model without the edits says.

    Locality is the share of tokens that are chosen as before, of each fact's, and then their mean, as EasyEdit has it.
    """
    facts = [case for case in cases if case.rewrite is not None]
    scores = []
    for group in GROUPS:
        own = [n for n, case in enumerate(facts) if _group(case) == group]
        if not own:
            continue
        rewrites = [answers[n].rewrite for n in own]
        rephrases = [one for n in own if (one := answers[n].rephrase) is not None]
        kept = [_kept(new, old) for n in own for new, old in zip(answers[n].locality, before[n].locality, strict=True)]
        scores.append(
            EditScores(
                targets=group,
                count=len(own),
                success=_mean([one.exact for one in rewrites]) or 0.0,
                rephrase=_mean([one.exact for one in rephrases]),
                locality=_mean(kept),
                loss_last_token=_mean([one.last_token for one in rewrites]) if LAST_TOKEN in losses else None,
                loss_sequence=_mean([one.sequence for one in rewrites]) if SEQUENCE in losses else None,
            )
        )
    return tuple(scores)


def _group(case: Case) -> str:
    assert case.rewrite is not None
    return GROUPS[len(case.rewrite.answer) > 1]


def _kept(new: Answer, old: Answer) -> float:
    return sum(one == other for one, other in zip(new.chosen, old.chosen, strict=True)) / len(old.chosen)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
