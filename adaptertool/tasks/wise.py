"""The plan of `wise`: interpolation in weight space between a base and what was tuned from it (Wise-FT)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from adaptertool.arguments import Number, PathLike, as_path, check_precision, parse_alphas
from adaptertool.errors import InputError, UsageError
from adaptertool.files.checkpoint import INDEX, SINGLE, Checkpoint, open_checkpoint, require_merged
from adaptertool.formats.beside import left_out, require_used
from adaptertool.formats.peft.read import is_adapter
from adaptertool.planning.as_adapter import into_adapter
from adaptertool.planning.fisher import plan_fisher
from adaptertool.planning.sources import layout_chosen, open_adapter
from adaptertool.planning.tokenizer import with_tokenizer
from adaptertool.planning.wise import plan_wise
from adaptertool.resolution.renaming import Renames, renaming
from adaptertool.spec.choices import EXACT
from adaptertool.spec.plan import Plan


def prepare_wise(
    base: PathLike,
    tuned: PathLike,
    alphas: Number | Sequence[Number],
    *,
    renames: Sequence[str] | Renames = (),
    expert_layout: str | None = None,
    precision: str = EXACT,
    as_adapter: bool = False,
    fisher: tuple[PathLike, PathLike] | None = None,
    leave_out: Sequence[str] = (),
    tokenizer: str | None = None,
) -> Plan:
    """The plan of an interpolation, from headers and configs alone. The arguments are those of `wise`.

    Raises UsageError for an alpha that is no finite number or stands there twice, InputError for what the files hold.
    """
    exact, path = parse_alphas(alphas), as_path(tuned, "TUNED")
    checkpoint = require_merged(open_checkpoint(as_path(base, "BASE")))
    if not is_adapter(path):
        require_used(leave_out, [])
    if fisher is not None:
        if as_adapter or expert_layout is not None or precision != EXACT:
            raise UsageError(
                "with Fisher weights there is no --as-adapter, no --expert-layout, and one precision: float64"
            )
        return with_tokenizer(_prepare_fisher(checkpoint, path, exact, fisher, renames), checkpoint, tokenizer)
    if as_adapter and tokenizer is not None:
        raise UsageError(
            "an adapter keeps the tokenizer beside it: --tokenizer is for checkpoints, without --as-adapter"
        )
    if not is_adapter(path):
        if expert_layout is not None:
            raise UsageError(f"{path} is a full checkpoint; --expert-layout is for adapters")
        with renaming(renames) as own:
            other = own.checkpoint(require_merged(open_checkpoint(path)), checkpoint)
        if as_adapter:
            raise UsageError(
                f"{path} is a full checkpoint, and --as-adapter is for adapters; without it `adaptertool wise` writes "
                "a checkpoint"
            )
        plan = dataclasses.replace(plan_wise(checkpoint, other, exact), precision=check_precision(precision))
        return with_tokenizer(_renamed(plan, own), checkpoint, tokenizer)
    if any((path / name).exists() for name in (SINGLE, INDEX)):
        raise InputError(f"{path} holds an adapter and a checkpoint; which of them is meant? Put one elsewhere")
    with renaming(renames) as own:
        adapter = open_adapter(path, checkpoint, own, leave_out, expert_layout)
    require_used(leave_out, [adapter])
    choices = {"renames": list(own.texts), **left_out([adapter]), **layout_chosen(expert_layout)}
    plan = plan_wise(checkpoint, adapter, exact)
    plan = dataclasses.replace(plan, precision=check_precision(precision), choices=choices)
    if as_adapter:
        return into_adapter(plan, checkpoint, adapter, exact)
    return with_tokenizer(plan, checkpoint, tokenizer)


def _prepare_fisher(
    base: Checkpoint,
    tuned: Path,
    alphas: Sequence[Decimal],
    fisher: tuple[PathLike, PathLike],
    renames: Sequence[str] | Renames,
) -> Plan:
    if is_adapter(tuned):
        raise UsageError(f"{tuned} is an adapter; Fisher weights are for two checkpoints: merge it first")
    if isinstance(fisher, str | os.PathLike) or len(fisher) != 2:
        raise UsageError("fisher takes two checkpoints of weights, F0 and F1")
    paths = (tuned, *(as_path(path, name) for path, name in zip(fisher, ("F0", "F1"), strict=True)))
    with renaming(renames) as own:
        other, *weights = (own.checkpoint(open_checkpoint(path), base) for path in paths)
    return _renamed(plan_fisher(base, other, (weights[0], weights[1]), alphas), own)


def _renamed(plan: Plan, own: Renames) -> Plan:
    """The plan, with the renamings of a checkpoint among its choices."""
    return dataclasses.replace(plan, choices={**plan.choices, "renames": list(own.texts)}) if own.texts else plan
