"""`merge`: adapters into a base checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from adaptertool.blend_plan import plan_blend
from adaptertool.errors import UsageError
from adaptertool.files.checkpoint import open_checkpoint
from adaptertool.formats.peft import is_adapter, read_adapter
from adaptertool.formats.peft_config import reading
from adaptertool.methods import METHOD_BY_NAME
from adaptertool.names import holder, rename
from adaptertool.plan import plan_merge
from adaptertool.reports import RunReport
from adaptertool.spec import EXACT, Blend, Plan
from adaptertool.tasks.arguments import Number, PathLike, as_path, check_precision, decimals, thinning

COMPOSITIONS = ("sequential", "mixed")


def check_compose(compose: str) -> None:
    if compose not in COMPOSITIONS:
        raise UsageError(f"compose is {' or '.join(COMPOSITIONS)}, not {compose!r}")


def layout_chosen(expert_layout: str | None) -> dict[str, str]:
    """For the manifest, where it is given."""
    return {} if expert_layout is None else {"expert_layout": expert_layout}


def prepare_merge(
    base: PathLike,
    adapters: Sequence[PathLike],
    weights: Sequence[Number] | None = None,
    *,
    compose: str = "sequential",
    renames: Sequence[str] = (),
    expert_layout: str | None = None,
    precision: str = EXACT,
    method: str | None = None,
    density: Number | None = None,
    seed: int | None = None,
) -> Plan:
    """The plan of a merge, from headers and configs alone. The arguments are those of `merge`.

    Raises UsageError for a wrong number of weights, InputError for what the files hold.
    """
    if isinstance(adapters, str | os.PathLike):
        raise UsageError("adapters must be a list of paths, also where there is only one")
    if not adapters:
        raise UsageError("no adapter given")
    check_compose(compose)
    numbers = [float(weight) for weight in decimals(weights, "weight", len(adapters))]
    if method is not None:
        if compose != COMPOSITIONS[0]:
            raise UsageError("a method says itself how adapters are composed; leave out --compose")
        chosen = check_precision(precision), method, density, seed
        return _prepare_blend(base, adapters, numbers, *chosen, renames=renames, expert_layout=expert_layout)
    if density is not None or seed is not None:
        raise UsageError("density and seed belong to a method (--method)")
    checkpoint = open_checkpoint(as_path(base, "BASE"))
    has, read = holder(checkpoint, renames), reading(expert_layout)
    opened = [rename(read_adapter(as_path(path, "ADAPTER"), has, read), renames) for path in adapters]
    plan = plan_merge(checkpoint, opened, numbers, mixed=compose == "mixed")
    choices = {"compose": compose, "renames": list(renames), **layout_chosen(expert_layout)}
    return dataclasses.replace(plan, precision=check_precision(precision), choices=choices)


def _prepare_blend(
    base: PathLike,
    sources: Sequence[PathLike],
    numbers: Sequence[float],
    precision: str,
    method: str,
    density: Number | None,
    seed: int | None,
    *,
    renames: Sequence[str],
    expert_layout: str | None,
) -> Plan:
    if method not in METHOD_BY_NAME:
        raise UsageError(f"method is {', '.join(METHOD_BY_NAME)}, not {method!r}")
    if precision != EXACT:
        raise UsageError(f"{method} has one precision: float64, rounded once")
    chosen = METHOD_BY_NAME[method]
    share, seed = thinning(chosen, density, seed)
    checkpoint, paths = open_checkpoint(as_path(base, "BASE")), [as_path(path, "ADAPTER") for path in sources]
    has, read = holder(checkpoint, renames), reading(expert_layout)
    opened = [
        rename(read_adapter(path, has, read), renames) if is_adapter(path) else open_checkpoint(path) for path in paths
    ]
    plan = plan_blend(checkpoint, opened, numbers, Blend(method, tuple(numbers), share, seed))
    choices = {"method": method, "density": share, "seed": seed, "renames": list(renames)}
    choices |= layout_chosen(expert_layout)
    return dataclasses.replace(plan, choices=choices)


def merge(
    base: PathLike,
    adapters: Sequence[PathLike],
    out: PathLike,
    *,
    weights: Sequence[Number] | None = None,
    compose: str = "sequential",
    renames: Sequence[str] = (),
    expert_layout: str | None = None,
    precision: str = EXACT,
    method: str | None = None,
    density: Number | None = None,
    seed: int | None = None,
    force: bool = False,
    verify: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    sha256: bool = False,
    provenance: PathLike | None = None,
) -> RunReport:
    """Write to `out` the checkpoint `base` with `adapters` merged: W' = W + Σ w_i·Δ_i, in order.

    base:     a directory with safetensors (single or sharded), or one .safetensors file
    adapters: PEFT adapter directories
    weights:  one for each adapter, by order; 1 where None
    compose:  "sequential": each adapter is applied to what the ones before it produced. "mixed": they act together,
              as unmerged adapters do at inference. For LoRA these are the same, for DoRA they are not.
    renames:  "regex=>replacement" on the tensor names of the adapters, where they are not those of the base
    expert_layout: how lora_B of fused experts is packed in adapters whose config has no lora_B_layout: "rank_major", as
              by PEFT and where None, or "grouped_by_expert", as by unsloth before September 2026
    precision: "exact": every element is the correct rounding of the formula over what is stored, so the bytes are the
              same on every machine. "fast": float32 arithmetic (float64 for float32 storage), rounded once; the error
              is at most max(1 ulp, (r+4)·u·(|W| + |s|·|B||A|)), u that of the arithmetic.
    method:   combine the changes W'_i − W that the sources make, each by itself, in another way: linear, ties,
              dare_linear, dare_ties, magnitude_prune, slerp (see `adaptertool.methods`). Sources may then be fine-tuned
              checkpoints too. Computed in float64 and rounded once.
    density:  the share of each change that stays, where the method drops some
    seed:     of what is dropped by chance; 0 where None
    force:    replace an `out` that adaptertool made
    verify:   read back what was written and judge it, as `verify` does, before it is published
    threads:  the available cores, up to 8, where None; the result does not depend on it
    progress: called with the number of bytes just written, from several threads
    sha256:   sha256 beside BLAKE3 in the manifest, and a file SHA256SUMS (as `sha256sum -c` reads it)
    provenance: where to write an in-toto statement with SLSA provenance; implies sha256

    Raises AdapterToolError (see `adaptertool.errors`); `out` is then as it was before.
    """
    how: dict[str, Any] = {"compose": compose, "method": method, "density": density, "seed": seed}
    names: dict[str, Any] = {"renames": renames, "expert_layout": expert_layout}
    plan = prepare_merge(base, adapters, weights, **how, **names, precision=precision)
    from adaptertool.tasks.run import run  # noqa: PLC0415  # loads numpy: only where tensors are touched

    file = None if provenance is None else as_path(provenance, "the file for the provenance")
    target, told = as_path(out, "OUT"), progress
    return run(plan, target, force=force, threads=threads, verify=verify, progress=told, sha256=sha256, provenance=file)
