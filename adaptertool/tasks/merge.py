"""`merge`: adapters into a base checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence

from adaptertool.errors import UsageError
from adaptertool.files.checkpoint import open_checkpoint
from adaptertool.formats.peft import read_adapter
from adaptertool.names import holder, rename
from adaptertool.plan import plan_merge
from adaptertool.reports import RunReport
from adaptertool.spec import EXACT, Plan
from adaptertool.tasks.arguments import Number, PathLike, as_path, check_precision, decimal

COMPOSITIONS = ("sequential", "mixed")


def prepare_merge(
    base: PathLike,
    adapters: Sequence[PathLike],
    weights: Sequence[Number] | None = None,
    *,
    compose: str = "sequential",
    renames: Sequence[str] = (),
    precision: str = EXACT,
) -> Plan:
    """The plan of a merge, from headers and configs alone. The arguments are those of `merge`.

    Raises UsageError for a wrong number of weights, InputError for what the files hold.
    """
    if isinstance(adapters, str | os.PathLike):
        raise UsageError("adapters must be a list of paths, also where there is only one")
    if not adapters:
        raise UsageError("no adapter given")
    if weights is not None and len(weights) != len(adapters):
        raise UsageError(
            f"{len(weights)} weights for {len(adapters)} adapters; give a weight for each adapter, or none at all"
        )
    if compose not in COMPOSITIONS:
        raise UsageError(f"compose is {' or '.join(COMPOSITIONS)}, not {compose!r}")
    numbers = [1.0] * len(adapters) if weights is None else [float(decimal(weight, "weight")) for weight in weights]
    checkpoint = open_checkpoint(as_path(base, "BASE"))
    has = holder(checkpoint, renames)
    opened = [rename(read_adapter(as_path(path, "ADAPTER"), has), renames) for path in adapters]
    plan = plan_merge(checkpoint, opened, numbers, mixed=compose == "mixed")
    return dataclasses.replace(plan, precision=check_precision(precision))


def merge(
    base: PathLike,
    adapters: Sequence[PathLike],
    out: PathLike,
    *,
    weights: Sequence[Number] | None = None,
    compose: str = "sequential",
    renames: Sequence[str] = (),
    precision: str = EXACT,
    force: bool = False,
    verify: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> RunReport:
    """Write to `out` the checkpoint `base` with `adapters` merged: W' = W + Σ w_i·Δ_i, in order.

    base:     a directory with safetensors (single or sharded), or one .safetensors file
    adapters: PEFT adapter directories
    weights:  one for each adapter, by order; 1 where None
    compose:  "sequential": each adapter is applied to what the ones before it produced. "mixed": they act together,
              as unmerged adapters do at inference. For LoRA these are the same, for DoRA they are not.
    renames:  "regex=>replacement" on the tensor names of the adapters, where they are not those of the base
    precision: "exact": every element is the correct rounding of the formula over what is stored, so the bytes are the
              same on every machine. "fast": float32 arithmetic (float64 for float32 storage), rounded once; the error
              is at most max(1 ulp, (r+4)·u·(|W| + |s|·|B||A|)), u that of the arithmetic.
    force:    replace an `out` that adaptertool made
    verify:   read back what was written and judge it, as `verify` does, before it is published
    threads:  the available cores, up to 8, where None; the result does not depend on it
    progress: called with the number of bytes just written, from several threads

    Raises AdapterToolError (see `adaptertool.errors`); `out` is then as it was before.
    """
    plan = prepare_merge(base, adapters, weights, compose=compose, renames=renames, precision=precision)
    from adaptertool.tasks.run import run  # noqa: PLC0415  # loads numpy: only where tensors are touched

    return run(plan, as_path(out, "OUT"), force=force, threads=threads, verify=verify, progress=progress)
