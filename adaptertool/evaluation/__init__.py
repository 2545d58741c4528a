"""Models on prompts, end to end: base, unmerged adapters and merged checkpoints.

All are compared with one, the reference: the base with its adapters unmerged; without adapters, or where each of them
is a model of its own, the base. Every model runs in the dtype of its checkpoint, one prompt at a time, one model after
the other: memory is that of the largest model, the logits of one prompt, and up to 256 MB of those of the reference
(beyond that a temporary file).

Nothing is read from a network, and no code of a checkpoint is run. The rest of this folder needs torch and
transformers (the extra `model`), which are imported when `evaluate` is called.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from adaptertool.arguments import Number, PathLike, as_input, as_path, decimal, decimals
from adaptertool.errors import UsageError
from adaptertool.evaluation.prompts import LOSSES
from adaptertool.planning.sources import Reading, check_compose
from adaptertool.reports.evaluate import EvaluationReport

MAX_GENERATED = 4096  # tokens after each prompt


def evaluate(
    base: PathLike,
    adapters: Sequence[PathLike] = (),
    *,
    prompts: PathLike,
    merged: Sequence[PathLike] = (),
    weights: Sequence[Number] | None = None,
    compose: str = "sequential",
    renames: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    expert_layout: str | None = None,
    each: bool = False,
    loss: str | None = None,
    generate: int = 16,
    device: str = "cpu",
    fail_above: Number | None = None,
) -> EvaluationReport:
    """Run the base with its adapters unmerged, and merged checkpoints, on prompts; say how far apart they are.

    base:     a directory that transformers can load as a causal language model, with its tokenizer, which all share
    adapters: act on the base beside its weights (`adaptertool.attached`); the rest as for `merge`
    prompts:  JSONL: {"prompt": ...}, or facts to be known, as EasyEdit has them (evaluation/prompts.py)
    merged:   directories of merged, or fine-tuned, checkpoints
    each:     every adapter is a model of its own, as every merged checkpoint is
    loss:     of the answers to facts: "last-token" or "sequence" (evaluation/answers.py); None: both
    generate: how many tokens are decoded greedily after each prompt, to compare the texts; 0: none
    device:   cpu, cuda, cuda:1, mps
    fail_above: where the mean KL of a merged checkpoint, or with `each` of an adapter, is above it (nats per token),
              the report is not ok

    Logits are compared with those of the reference at every position of every prompt, in float64; facts (answers.py)
    are scored by themselves, and their locality against the base.

    Raises UsageError, InputError for a file that cannot be read, or lacks weights or a tokenizer, MismatchError for
    what does not fit together, NonFiniteError.
    """
    _check(adapters, merged, loss, generate, compose)
    limit = math.inf if fail_above is None else _limit(fail_above, needs=bool(merged) or each)
    numbers = decimals(weights, "weight", len(adapters))
    _require_libraries()
    from adaptertool.evaluation.run import Request, run  # noqa: PLC0415  # needs both

    request = Request(
        base=as_input(base, "BASE"),
        adapters=tuple(as_input(path, "ADAPTER") for path in adapters),
        merged=tuple(as_input(path, "--merged") for path in merged),
        prompts=as_path(prompts, "--prompts"),
        weights=tuple(map(float, numbers)),
        compose=compose,
        reading=Reading(tuple(renames), tuple(leave_out), expert_layout),
        each=each,
        losses=LOSSES if loss is None else (loss,),
        generate=generate,
        device=device,
        fail_above=limit,
    )
    return run(request)


def _check(
    adapters: Sequence[PathLike], merged: Sequence[PathLike], loss: str | None, generate: int, compose: str
) -> None:
    if isinstance(adapters, str | os.PathLike) or isinstance(merged, str | os.PathLike):
        raise UsageError("adapters and merged must be lists of paths, also where there is only one")
    if not adapters and not merged:
        raise UsageError("there is nothing to compare BASE with: give an ADAPTER, or a checkpoint with --merged")
    if loss is not None and loss not in LOSSES:
        raise UsageError(f"loss is {' or '.join(LOSSES)}, not {loss!r}")
    if not 0 <= generate <= MAX_GENERATED:
        raise UsageError(f"0 to {MAX_GENERATED:,} tokens can be generated, not {generate}")
    check_compose(compose)


def _limit(fail_above: Number, *, needs: bool) -> float:
    limit = float(decimal(fail_above, "the limit of KL"))
    if limit < 0 or not needs:
        raise UsageError("a limit of KL is 0 or more, and needs a checkpoint to judge (--merged), or --each")
    return limit


def _require_libraries() -> None:
    try:
        import torch  # noqa: F401, PLC0415  # no dependency of adaptertool
        import transformers  # noqa: F401, PLC0415
    except ImportError as error:
        raise UsageError(f"this needs torch and transformers: pip install 'adaptertool[model]' ({error})") from error
