"""`merge`: adapters into a base checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from adaptertool.arguments import Number, PathLike, as_path, check_precision, decimals, thinning
from adaptertool.errors import UsageError, argument
from adaptertool.files.checkpoint import Checkpoint, open_checkpoint, require_merged
from adaptertool.formats.beside import left_out, require_used
from adaptertool.formats.peft.read import is_adapter
from adaptertool.methods import METHOD_BY_NAME
from adaptertool.output.checkpoint import run_as
from adaptertool.planning.blend import plan_blend
from adaptertool.planning.merge import plan_merge
from adaptertool.planning.sources import COMPOSITIONS, check_compose, layout_chosen, open_adapter
from adaptertool.planning.tokenizer import with_tokenizer
from adaptertool.reports.run import RunReport
from adaptertool.resolution.renaming import Renames, renaming
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.choices import EXACT
from adaptertool.spec.plan import Blend, Plan


def prepare_merge(
    base: PathLike,
    adapters: Sequence[PathLike],
    weights: Sequence[Number] | None = None,
    *,
    compose: str = "sequential",
    renames: Sequence[str] | Renames = (),
    expert_layout: str | None = None,
    precision: str = EXACT,
    method: str | None = None,
    density: Number | None = None,
    seed: int | None = None,
    leave_out: Sequence[str] = (),
    tokenizer: str | None = None,
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
        blend = _blend(method, numbers, density, seed, check_precision(precision))
        checkpoint = require_merged(open_checkpoint(as_path(base, "BASE")))
        way = renames, leave_out, expert_layout
        return with_tokenizer(_prepare_blend(checkpoint, adapters, blend, *way), checkpoint, tokenizer)
    if density is not None or seed is not None:
        raise UsageError(f"{argument('density')} and {argument('seed')} belong to a method (--method)")
    checkpoint = require_merged(open_checkpoint(as_path(base, "BASE")))
    paths = [as_path(path, "ADAPTER") for path in adapters]
    with renaming(renames) as own:
        opened = [open_adapter(path, checkpoint, own, leave_out, expert_layout) for path in paths]
    require_used(leave_out, opened)
    plan = plan_merge(checkpoint, opened, numbers, mixed=compose == "mixed")
    choices = {"compose": compose, "renames": list(own.texts), **left_out(opened), **layout_chosen(expert_layout)}
    plan = dataclasses.replace(plan, precision=check_precision(precision), choices=choices)
    return with_tokenizer(plan, checkpoint, tokenizer)


def _blend(method: str, numbers: Sequence[float], density: Number | None, seed: int | None, precision: str) -> Blend:
    if method not in METHOD_BY_NAME:
        raise UsageError(f"method is {', '.join(METHOD_BY_NAME)}, not {method!r}")
    if precision != EXACT:
        raise UsageError(f"{method} has one precision: float64, rounded once")
    return Blend(method, tuple(numbers), *thinning(METHOD_BY_NAME[method], density, seed))


def _prepare_blend(
    checkpoint: Checkpoint,
    sources: Sequence[PathLike],
    blend: Blend,
    renames: Sequence[str] | Renames,
    leave_out: Sequence[str],
    expert_layout: str | None,
) -> Plan:
    paths = [as_path(path, "ADAPTER") for path in sources]
    with renaming(renames) as own:
        opened = [
            open_adapter(path, checkpoint, own, leave_out, expert_layout)
            if is_adapter(path)
            else own.checkpoint(require_merged(open_checkpoint(path)), checkpoint)
            for path in paths
        ]
    adapters = [source for source in opened if isinstance(source, Adapter)]
    require_used(leave_out, adapters)
    plan = plan_blend(checkpoint, opened, blend.weights, blend)
    choices = {"method": blend.method, "density": blend.density, "seed": blend.seed, "renames": list(own.texts)}
    return dataclasses.replace(plan, choices={**choices, **left_out(adapters), **layout_chosen(expert_layout)})


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
    leave_out: Sequence[str] = (),
    tokenizer: str | None = None,
    force: bool = False,
    verify: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    sha256: bool = False,
    provenance: PathLike | None = None,
    clean: bool = False,
    fail_if_unchanged: bool = False,
) -> RunReport:
    """Write to `out` the checkpoint `base` with `adapters` merged: W' = W + Σ w_i·Δ_i, in order.

    base:     a directory with safetensors (single or sharded), or one .safetensors file
    adapters: PEFT adapter directories
    weights:  one for each adapter, by order; 1 where None
    compose:  "sequential": each adapter is applied to what the ones before it produced. "mixed": they act together,
              as unmerged adapters do at inference. For LoRA these are the same, for DoRA they are not.
    renames:  "regex=>replacement" on the tensor names of the sources, where they are not those of the base
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
    leave_out: files beside the adapters that may hold weights, and are to play no part: regexes that are found in their
              names, or paths. Others are read where their tensors have names of the base, or the merge is refused
    tokenizer: "base" or "adapter": whose tokenizer and chat template the output has; where None the base's, but the
              adapter's where the vocabulary is the adapter's
    force:    replace an `out` that adaptertool made
    verify:   read back what was written and judge it, as `verify` does, before it is published
    threads:  the available cores, up to 8, where None; the result does not depend on it
    progress: called with the number of bytes just written, from several threads
    sha256:   sha256 beside BLAKE3 in the manifest, and a file SHA256SUMS (as `sha256sum -c` reads it)
    provenance: where to write an in-toto statement with SLSA provenance; implies sha256
    clean:    once `out` is published, remove what runs that were killed have left beside it
    fail_if_unchanged: raise UnchangedError, and publish nothing, where no element differs from the base's

    Raises AdapterToolError (see `adaptertool.errors`); `out` is then as it was before.
    """
    recipe: dict[str, Any] = {"compose": compose, "renames": renames, "precision": precision, "leave_out": leave_out}
    recipe |= {"method": method, "density": density, "seed": seed, "tokenizer": tokenizer}
    plan = prepare_merge(base, adapters, weights, **recipe, expert_layout=expert_layout)

    how: dict[str, Any] = {"force": force, "verify": verify, "threads": threads, "progress": progress, "clean": clean}
    return run_as(plan, out, provenance, sha256=sha256, fail_if_unchanged=fail_if_unchanged, **how)
