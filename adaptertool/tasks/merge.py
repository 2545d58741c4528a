"""`merge`: adapters into a base checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence

from adaptertool.blend_plan import plan_blend
from adaptertool.errors import UsageError
from adaptertool.files.checkpoint import open_checkpoint
from adaptertool.formats.peft import is_adapter, read_adapter
from adaptertool.methods import METHOD_BY_NAME
from adaptertool.plan import plan_merge
from adaptertool.renaming import Renames, renaming
from adaptertool.reports import RunReport
from adaptertool.spec import EXACT, Blend, Plan
from adaptertool.tasks.arguments import Number, PathLike, as_path, check_precision, decimals, thinning

COMPOSITIONS = ("sequential", "mixed")


def check_compose(compose: str) -> None:
    if compose not in COMPOSITIONS:
        raise UsageError(f"compose is {' or '.join(COMPOSITIONS)}, not {compose!r}")


def prepare_merge(
    base: PathLike,
    adapters: Sequence[PathLike],
    weights: Sequence[Number] | None = None,
    *,
    compose: str = "sequential",
    renames: Sequence[str] | Renames = (),
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
        return _prepare_blend(base, adapters, numbers, renames, check_precision(precision), method, density, seed)
    if density is not None or seed is not None:
        raise UsageError("density and seed belong to a method (--method)")
    checkpoint = open_checkpoint(as_path(base, "BASE"))
    with renaming(renames) as own:
        has = own.holder(checkpoint)
        opened = [own.adapter(read_adapter(as_path(path, "ADAPTER"), has)) for path in adapters]
    plan = plan_merge(checkpoint, opened, numbers, mixed=compose == "mixed")
    choices = {"compose": compose, "renames": list(own.texts)}
    return dataclasses.replace(plan, precision=check_precision(precision), choices=choices)


def _prepare_blend(
    base: PathLike,
    sources: Sequence[PathLike],
    numbers: Sequence[float],
    renames: Sequence[str] | Renames,
    precision: str,
    method: str,
    density: Number | None,
    seed: int | None,
) -> Plan:
    if method not in METHOD_BY_NAME:
        raise UsageError(f"method is {', '.join(METHOD_BY_NAME)}, not {method!r}")
    if precision != EXACT:
        raise UsageError(f"{method} has one precision: float64, rounded once")
    chosen = METHOD_BY_NAME[method]
    share, seed = thinning(chosen, density, seed)
    checkpoint, paths = open_checkpoint(as_path(base, "BASE")), [as_path(path, "ADAPTER") for path in sources]
    with renaming(renames) as own:
        has = own.holder(checkpoint)
        opened = [
            own.adapter(read_adapter(path, has))
            if is_adapter(path)
            else own.checkpoint(open_checkpoint(path), checkpoint)
            for path in paths
        ]
    plan = plan_blend(checkpoint, opened, numbers, Blend(method, tuple(numbers), share, seed))
    choices = {"method": method, "density": share, "seed": seed, "renames": list(own.texts)}
    return dataclasses.replace(plan, choices=choices)


def merge(
    base: PathLike,
    adapters: Sequence[PathLike],
    out: PathLike,
    *,
    weights: Sequence[Number] | None = None,
    compose: str = "sequential",
    renames: Sequence[str] = (),
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
    renames:  "regex=>replacement" on the tensor names of the sources, where they are not those of the base
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
    plan = prepare_merge(
        base,
        adapters,
        weights,
        compose=compose,
        renames=renames,
        precision=precision,
        method=method,
        density=density,
        seed=seed,
    )
    from adaptertool.tasks.run import run  # noqa: PLC0415  # loads numpy: only where tensors are touched

    file = None if provenance is None else as_path(provenance, "the file for the provenance")
    target, told = as_path(out, "OUT"), progress
    return run(plan, target, force=force, threads=threads, verify=verify, progress=told, sha256=sha256, provenance=file)
