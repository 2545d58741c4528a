"""`wise`: interpolation in weight space between a base and what was tuned from it (Wise-FT)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from adaptertool.errors import UsageError
from adaptertool.files.checkpoint import open_checkpoint
from adaptertool.formats.peft import is_adapter, read_adapter
from adaptertool.plan import plan_wise
from adaptertool.reports import RunReport
from adaptertool.spec import Plan
from adaptertool.tasks.merge import PathLike

MAX_ALPHAS = 1000


def prepare_wise(base: PathLike, tuned: PathLike, alphas: Sequence[Decimal | float | str]) -> Plan:
    """The plan of an interpolation to each of `alphas`, from headers and configs alone.

    A float counts as the decimal that Python prints for it: 0.3 is 3/10. Raises UsageError for an alpha that
    is no finite number or stands there twice, InputError for what the files hold.
    """
    exact = [decimal(alpha) for alpha in alphas]
    if not exact:
        raise UsageError("no alpha given")
    if len(set(exact)) != len(exact):
        raise UsageError(f"an alpha is given twice: {', '.join(map(str, exact))}")
    checkpoint, path = open_checkpoint(Path(base)), Path(tuned)
    return plan_wise(checkpoint, read_adapter(path) if is_adapter(path) else open_checkpoint(path), exact)


def wise(
    base: PathLike,
    tuned: PathLike,
    out: PathLike,
    alphas: Sequence[Decimal | float | str],
    *,
    force: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> RunReport:
    """Write W + α·(T − W) for each α: to `out` itself for one, to `out`/alpha-0.300 and so on for several.

    base:   a checkpoint, as for `merge`
    tuned:  an adapter (T is then the merged checkpoint), or a fine-tuned checkpoint of the same tensors
    alphas: α = 0 gives the base byte for byte, α = 1 the tuned checkpoint (or the merge)
    The rest as for `merge`. The base is read once, however many alphas there are.
    Source: M. Wortsman et al., "Robust fine-tuning of zero-shot models" (arXiv:2109.01903).
    """
    plan = prepare_wise(base, tuned, alphas)
    from adaptertool.tasks.run import run  # noqa: PLC0415  # loads torch: only where tensors are touched

    return run(plan, Path(out), force=force, threads=threads, progress=progress)


def decimal(value: Decimal | float | str) -> Decimal:
    """The exact decimal of an alpha or weight as typed. Raises UsageError."""
    try:
        number = value if isinstance(value, Decimal) else Decimal(str(value).strip())
    except InvalidOperation as error:
        raise UsageError(f"{value!r} is not a number") from error
    if not number.is_finite() or not math.isfinite(float(number)):
        raise UsageError(f"{value!r} is not a finite number")
    return number + 0  # −0 is 0


def parse_alphas(text: str) -> list[Decimal]:
    """`0.3`, `0,0.3,1`, or `START:STOP:STEP` with both ends, stepped in decimal: 0:0.3:0.1 ends at 0.3."""
    if ":" not in text:
        return [decimal(part) for part in text.split(",")]
    parts = text.split(":")
    if len(parts) != 3:
        raise UsageError(f"a sweep is START:STOP:STEP, for instance 0:1:0.1, not {text!r}")
    start, stop, step = map(decimal, parts)
    if step == 0 or (stop - start) / step < 0:
        raise UsageError(f"the sweep {text!r} never reaches its end")
    count = int((stop - start) / step) + 1
    if count > MAX_ALPHAS:
        raise UsageError(f"the sweep {text!r} has more than {MAX_ALPHAS:,} points")
    return [start + step * number for number in range(count)]
