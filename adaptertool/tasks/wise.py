"""`wise`: interpolation in weight space between a base and what was tuned from it (Wise-FT)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

from adaptertool.as_adapter import into_adapter
from adaptertool.errors import InputError, UsageError
from adaptertool.files.checkpoint import INDEX, SINGLE, Checkpoint, open_checkpoint
from adaptertool.fisher_plan import plan_fisher
from adaptertool.formats.peft import is_adapter, read_adapter
from adaptertool.plan import plan_wise
from adaptertool.renaming import Renames, renaming
from adaptertool.reports import RunReport
from adaptertool.spec import EXACT, Plan
from adaptertool.tasks.arguments import Number, PathLike, as_path, check_precision, parse_alphas


def prepare_wise(
    base: PathLike,
    tuned: PathLike,
    alphas: Number | Sequence[Number],
    *,
    renames: Sequence[str] | Renames = (),
    precision: str = EXACT,
    as_adapter: bool = False,
    fisher: tuple[PathLike, PathLike] | None = None,
) -> Plan:
    """The plan of an interpolation, from headers and configs alone. The arguments are those of `wise`.

    Raises UsageError for an alpha that is no finite number or stands there twice, InputError for what the files hold.
    """
    exact, checkpoint, path = parse_alphas(alphas), open_checkpoint(as_path(base, "BASE")), as_path(tuned, "TUNED")
    if fisher is not None:
        if as_adapter or precision != EXACT:
            raise UsageError("with Fisher weights there is no --as-adapter, and one precision: float64")
        return _prepare_fisher(checkpoint, path, exact, fisher, renames)
    if not is_adapter(path):
        with renaming(renames) as own:
            other = own.checkpoint(open_checkpoint(path), checkpoint)
        if as_adapter:
            raise UsageError(
                f"{path} is a full checkpoint, and --as-adapter is for adapters; without it `adaptertool wise` writes "
                "a checkpoint"
            )
        plan = dataclasses.replace(plan_wise(checkpoint, other, exact), precision=check_precision(precision))
        return _renamed(plan, own)
    if any((path / name).exists() for name in (SINGLE, INDEX)):
        raise InputError(f"{path} holds an adapter and a checkpoint; which of them is meant? Put one elsewhere")
    with renaming(renames) as own:
        adapter = own.adapter(read_adapter(path, own.holder(checkpoint)))
    choices = {"renames": list(own.texts)}
    plan = plan_wise(checkpoint, adapter, exact)
    plan = dataclasses.replace(plan, precision=check_precision(precision), choices=choices)
    return into_adapter(plan, checkpoint, adapter, exact) if as_adapter else plan


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


def wise(
    base: PathLike,
    tuned: PathLike,
    out: PathLike,
    alphas: Number | Sequence[Number],
    *,
    renames: Sequence[str] = (),
    precision: str = EXACT,
    as_adapter: bool = False,
    fisher: tuple[PathLike, PathLike] | None = None,
    force: bool = False,
    verify: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    sha256: bool = False,
    provenance: PathLike | None = None,
) -> RunReport:
    """Write W + α·(T − W) for each α: to `out` itself for one, to `out`/alpha-0.300 and so on for several.

    base:   a checkpoint, as for `merge`
    tuned:  an adapter (T is then the merged checkpoint), or a fine-tuned checkpoint of the same tensors, under the same
            names or those that correspond to them (correspondence.py)
    renames: as for `merge`; also on the names of a tuned checkpoint, and of Fisher weights
    alphas: a number, several, or text as on the command line ("0:1:0.1"); a float counts as the decimal that Python
            prints for it. α = 0 gives the base byte for byte, α = 1 the tuned checkpoint (or the merge).
    as_adapter: write not the checkpoint, but the adapter that makes it when it is merged into the base
    fisher: two checkpoints of weights F₀, F₁ ≥ 0 with the tensors of the base, such as the diagonals of the Fisher
            information of both models: writes ((1 − α)·F₀·W + α·F₁·T) / ((1 − α)·F₀ + α·F₁) for α in 0..1; where both
            are 0, W + α·(T − W). TUNED is a checkpoint then. Computed in float64 and rounded once.
    The rest as for `merge`. The base is read once, however many alphas there are; with as_adapter only where needed,
    under DoRA more than once.
    Source: M. Wortsman et al., "Robust fine-tuning of zero-shot models" (arXiv:2109.01903);
    of the weights M. Matena, C. Raffel, "Merging Models with Fisher-Weighted Averaging" (arXiv:2111.09832).
    """
    plan = prepare_wise(base, tuned, alphas, renames=renames, as_adapter=as_adapter, precision=precision, fisher=fisher)
    from adaptertool.tasks.run import run  # noqa: PLC0415  # loads numpy: only where tensors are touched

    file = None if provenance is None else as_path(provenance, "the file for the provenance")
    target, told = as_path(out, "OUT"), progress
    return run(plan, target, force=force, threads=threads, verify=verify, progress=told, sha256=sha256, provenance=file)
