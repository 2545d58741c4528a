"""`merge` and `wise`: a plan is made, and run. Plans alone (tasks/merge.py, tasks/wise.py) need no engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from adaptertool.arguments import Number, PathLike, as_local, as_path, given_settings
from adaptertool.methods import settings_of
from adaptertool.output.checkpoint import run
from adaptertool.output.options import Options
from adaptertool.planning.schedules import Given
from adaptertool.planning.settings import GivenSetting
from adaptertool.planning.sources import Reading
from adaptertool.reports.run import RunReport
from adaptertool.spec.choices import EXACT
from adaptertool.tasks import merge as merge_task
from adaptertool.tasks import wise as wise_task
from adaptertool.tasks.call import MERGE, WISE, call_of
from adaptertool.tasks.merge import MergeRecipe
from adaptertool.tasks.spread import by_executor, spread
from adaptertool.tasks.wise import WiseRecipe


def merge(
    base: PathLike,
    adapters: Sequence[PathLike],
    out: PathLike,
    *,
    weights: Sequence[Given] | None = None,
    compose: str = "sequential",
    renames: Sequence[str] = (),
    expert_layout: str | None = None,
    precision: str = EXACT,
    method: str | None = None,
    density: GivenSetting | None = None,
    seed: int | None = None,
    leave_out: Sequence[str] = (),
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tokenizer: str | None = None,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    quantise: str | None = None,
    as_trained: str | None = None,
    force: bool = False,
    verify: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    sha256: bool = False,
    provenance: PathLike | None = None,
    scratch: PathLike | None = None,
    clean: bool = False,
    fail_if_unchanged: bool = False,
    executor: Executor | None = None,
    **settings: GivenSetting | None,
) -> RunReport:
    """Write to `out` the checkpoint `base` with `adapters` merged: W' = W + Σ w_i·Δ_i, in order.

    base:     a directory with safetensors (single or sharded), or one .safetensors file
    adapters: PEFT adapter directories
    weights:  one for each adapter, by order; 1 where None. "0:0.5:1" is a gradient over the layers. Beside them
              "PATTERN=NUMBERS" for tensors whose names fit: one number or gradient for all adapters, or one for each,
              as in "layers.0-15.mlp=0.5,1"; of several that fit the last one counts (adaptertool.spec.schedule)
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
    density:  the share of each change that stays, where the method drops some; as of other settings that are no whole
              numbers, a gradient "0.3:0.8", or several: one for each source, and "PATTERN=NUMBERS", as in weights
    seed:     of what is dropped by chance; 0 where None
    settings: others that a method has
    leave_out: files beside the adapters that may hold weights, and are to play no part: regexes that are found in their
              names, or paths. Others are read where their tensors have names of the base, or the merge is refused.
              Or models of a pipeline (unet, text_encoder, text_encoder_2, text_encoder_3), as if it did not change them
    only, exclude: patterns as in weights: only tensors of the base whose names fit one of the first, and none of the
              others, are edited
    tokenizer: "base" or "adapter": whose tokenizer and chat template the output has; where None the base's, but the
              adapter's where the vocabulary is the adapter's
    dtype:    "bf16", "f16" or "f32": codes of a quantised base are decoded, edits made to their exact numbers, and all
              that is not stored wider than the base as a whole is stored so, rounded once; None: as in the base
    max_shard_size: "5GB" (10⁹ bytes each), "4GiB" or a number of bytes: tensors are in files of at most that size, a
              larger one in a file of its own; None: in files as the base's are
    quantise: "keep": a quantised base stays in its own format. Each code is the nearest to the exact value on the scale
              beside it, and a scale changes only where it does not hold the block any more; the report has what of the
              change survives (`kept`). Instead of dtype
    as_trained: "nf4", "nf4-double", "fp4" or "fp4-double": the adapters come from QLoRA runs, which had `base` in 4
              bits of bitsandbytes. All weights that it quantises are taken as it decodes them, also those that nothing
              changes
    force:    replace an `out` that adaptertool made
    verify:   read back what was written and judge it, as `verify` does, before it is published
    threads:  the available cores, up to 8, where None; the result does not depend on it
    progress: called with the number of bytes just written, from several threads
    sha256:   sha256 beside BLAKE3 in the manifest, and a file SHA256SUMS (as `sha256sum -c` reads it)
    provenance: where to write an in-toto statement with SLSA provenance; implies sha256
    scratch:  where files are until they are sent, if `out` is in a store; where None, as TMPDIR says
    clean:    once `out` is published, remove what runs that were killed have left beside it
    fail_if_unchanged: raise UnchangedError, and publish nothing, where no element differs from the base's
    executor: any of concurrent.futures: its workers make the shards, each of them with so many threads, and all see
              the same files. A worker that is lost loses the shard in hand; the same call goes on

    Raises AdapterToolError (see `adaptertool.errors`); `out` is then as it was before.

    >>> report = adaptertool.merge("fixtures/base", ["fixtures/lora"], "merged", weights=[0.5])
    >>> report.tensors_edited, report.tensors_copied
    (28, 11)
    """
    given = given_settings("merge", settings_of(), {"density": density, "seed": seed, **settings})
    recipe = MergeRecipe(compose, precision, method, given, tokenizer, dtype, max_shard_size, quantise, as_trained)
    reading = Reading(renames, leave_out, expert_layout, only, exclude)
    options = Options(
        force=force,
        verify=verify,
        threads=threads,
        progress=progress,
        sha256=sha256,
        provenance=None if provenance is None else as_local(provenance, "the file for the provenance"),
        scratch=None if scratch is None else as_local(scratch, "the scratch folder"),
        clean=clean,
        fail_if_unchanged=fail_if_unchanged,
    )
    if executor is not None:
        call = call_of(MERGE, base, adapters, weights, recipe, reading, out, options)
        return spread(call, options, by_executor(executor))
    return run(merge_task.prepare(base, adapters, weights, recipe, reading).plan, as_path(out, "OUT"), options)


def wise(
    base: PathLike,
    tuned: PathLike,
    out: PathLike,
    alphas: Number | Sequence[Number],
    *,
    renames: Sequence[str] = (),
    expert_layout: str | None = None,
    precision: str = EXACT,
    as_adapter: bool = False,
    fisher: tuple[PathLike, PathLike] | None = None,
    weights: Sequence[Given] | None = None,
    leave_out: Sequence[str] = (),
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tokenizer: str | None = None,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    quantise: str | None = None,
    as_trained: str | None = None,
    force: bool = False,
    verify: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    sha256: bool = False,
    provenance: PathLike | None = None,
    scratch: PathLike | None = None,
    clean: bool = False,
    fail_if_unchanged: bool = False,
    executor: Executor | None = None,
) -> RunReport:
    """Write W + α·(T − W) for each α: to `out` itself for one, to `out`/alpha-0.300 and so on for several.

    base:   a checkpoint, as for `merge`
    tuned:  an adapter (T is then the merged checkpoint), or a fine-tuned checkpoint of the same tensors, under the same
            names or those that correspond to them (resolution/correspondence.py)
    renames: as for `merge`; also on the names of a tuned checkpoint, and of Fisher weights
    alphas: a number, several, or text as on the command line ("0:1:0.1"); a float counts as the decimal that Python
            prints for it. α = 0 gives the base byte for byte, α = 1 the tuned checkpoint (or the merge).
    as_adapter: write not the checkpoint, but the adapter that makes it when it is merged into the base
    fisher: two checkpoints of weights F₀, F₁ ≥ 0 with the tensors of the base, such as the diagonals of the Fisher
            information of both models: writes ((1 − α)·F₀·W + α·F₁·T) / ((1 − α)·F₀ + α·F₁) for α in 0..1; where both
            are 0, W + α·(T − W). TUNED is a checkpoint then. Computed in float64 and rounded once.
    weights: what α is multiplied by, as for `merge` of one adapter: ["0:1"], or ["layers.0-15=0.5"]; α·f is computed in
            decimal and rounded once
    The rest as for `merge`. The base is read once, however many alphas there are; with as_adapter only where needed,
    under DoRA more than once.
    Source: M. Wortsman et al., "Robust fine-tuning of zero-shot models" (arXiv:2109.01903);
    of the weights M. Matena, C. Raffel, "Merging Models with Fisher-Weighted Averaging" (arXiv:2111.09832).

    >>> adaptertool.wise("fixtures/base", "fixtures/tuned", "sweep", "0:1:0.5").outputs
    ('sweep/alpha-0.000', 'sweep/alpha-0.500', 'sweep/alpha-1.000')
    """
    recipe = WiseRecipe(precision, as_adapter, fisher, tokenizer, dtype, max_shard_size, quantise, as_trained, weights)
    reading = Reading(renames, leave_out, expert_layout, only, exclude)
    options = Options(
        force=force,
        verify=verify,
        threads=threads,
        progress=progress,
        sha256=sha256,
        provenance=None if provenance is None else as_local(provenance, "the file for the provenance"),
        scratch=None if scratch is None else as_local(scratch, "the scratch folder"),
        clean=clean,
        fail_if_unchanged=fail_if_unchanged,
    )
    if executor is not None:
        call = call_of(WISE, base, [tuned], alphas, recipe, reading, out, options)
        return spread(call, options, by_executor(executor))
    return run(wise_task.prepare(base, tuned, alphas, recipe, reading).plan, as_path(out, "OUT"), options)
