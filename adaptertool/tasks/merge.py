"""`merge`: adapters into a base checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from adaptertool.arguments import Number, PathLike, as_path, check_precision, decimals, thinning
from adaptertool.errors import UsageError, argument
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.formats.beside import left_out, require_used
from adaptertool.formats.checkpoints import open_checkpoint, require_merged
from adaptertool.methods import METHOD_BY_NAME
from adaptertool.output.checkpoint import run
from adaptertool.output.options import Options
from adaptertool.planning.blend import plan_blend
from adaptertool.planning.merge import plan_merge
from adaptertool.planning.sources import COMPOSITIONS, Prepared, Reading, check_compose, open_adapter, open_source
from adaptertool.planning.tokenizer import with_tokenizer
from adaptertool.reports.run import RunReport
from adaptertool.resolution.renaming import Renames, renaming
from adaptertool.resolution.resolve import open_base
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.choices import EXACT
from adaptertool.spec.plan import Blend, Plan


class MergeRecipe(NamedTuple):
    """How sources are combined. The fields are those of `merge`."""

    compose: str = COMPOSITIONS[0]
    precision: str = EXACT
    method: str | None = None
    density: Number | None = None
    seed: int | None = None
    tokenizer: str | None = None


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
    recipe = MergeRecipe(compose, precision, method, density, seed, tokenizer)
    return prepare(base, adapters, weights, recipe, Reading(renames, leave_out, expert_layout)).plan


def prepare(
    base: PathLike,
    adapters: Sequence[PathLike],
    weights: Sequence[Number] | None,
    recipe: MergeRecipe,
    reading: Reading,
) -> Prepared:
    """As `prepare_merge`, with what the plan was made of."""
    if isinstance(adapters, str | os.PathLike):
        raise UsageError("adapters must be a list of paths, also where there is only one")
    if not adapters:
        raise UsageError("no adapter given")
    check_compose(recipe.compose)
    numbers = [float(weight) for weight in decimals(weights, "weight", len(adapters))]
    blend = _blend(recipe, numbers)
    checkpoint = require_merged(open_checkpoint(as_path(base, "BASE")))
    paths = [as_path(path, "ADAPTER") for path in adapters]
    if blend is not None:
        done = _prepare_blend(checkpoint, paths, blend, reading)
    else:
        done = _prepare_sum(checkpoint, paths, numbers, recipe, reading)
    return done._replace(plan=with_tokenizer(done.plan, checkpoint, recipe.tokenizer))


def _prepare_sum(
    base: Checkpoint, paths: Sequence[Path], weights: Sequence[float], recipe: MergeRecipe, reading: Reading
) -> Prepared:
    """W + Σ w·Δ, one after the other or together."""
    with renaming(reading.renames) as own:
        opened = [open_adapter(path, base, reading, own) for path in paths]
    require_used(reading.leave_out, opened)
    subject = open_base(base)
    plan = plan_merge(subject, opened, weights, mixed=recipe.compose == "mixed")
    choices = {"compose": recipe.compose, "renames": list(own.texts), **left_out(opened), **reading.layout_chosen}
    plan = dataclasses.replace(plan, precision=check_precision(recipe.precision), choices=choices)
    return Prepared(plan, base, subject, opened)


def _blend(recipe: MergeRecipe, numbers: Sequence[float]) -> Blend | None:
    """The method that combines the changes, where one is asked for. Raises UsageError."""
    method = recipe.method
    if method is None:
        if recipe.density is not None or recipe.seed is not None:
            raise UsageError(f"{argument('density')} and {argument('seed')} belong to a method (--method)")
        return None
    if recipe.compose != COMPOSITIONS[0]:
        raise UsageError("a method says itself how adapters are composed; leave out --compose")
    precision = check_precision(recipe.precision)
    if method not in METHOD_BY_NAME:
        raise UsageError(f"method is {', '.join(METHOD_BY_NAME)}, not {method!r}")
    if precision != EXACT:
        raise UsageError(f"{method} has one precision: float64, rounded once")
    return Blend(method, tuple(numbers), *thinning(METHOD_BY_NAME[method], recipe.density, recipe.seed))


def _prepare_blend(base: Checkpoint, paths: Sequence[Path], blend: Blend, reading: Reading) -> Prepared:
    with renaming(reading.renames) as own:
        opened = [open_source(path, base, reading, own) for path in paths]
    adapters = [source for source in opened if isinstance(source, Adapter)]
    require_used(reading.leave_out, adapters)
    plan = plan_blend(base, opened, blend.weights, blend)
    choices: dict[str, object] = {
        "method": blend.method,
        "density": blend.density,
        "seed": blend.seed,
        "renames": list(own.texts),
    }
    choices |= {**left_out(adapters), **reading.layout_chosen}
    return Prepared(dataclasses.replace(plan, choices=choices), base, None, opened)


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
    recipe = MergeRecipe(compose, precision, method, density, seed, tokenizer)
    reading = Reading(renames, leave_out, expert_layout)
    options = Options(
        force=force,
        verify=verify,
        threads=threads,
        progress=progress,
        sha256=sha256,
        provenance=None if provenance is None else as_path(provenance, "the file for the provenance"),
        clean=clean,
        fail_if_unchanged=fail_if_unchanged,
    )
    return run(prepare(base, adapters, weights, recipe, reading).plan, as_path(out, "OUT"), options)
