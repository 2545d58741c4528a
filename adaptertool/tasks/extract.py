"""`extract`: an adapter from a base and what was tuned from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptertool.algebra.extract import changed_of, in_order, jobs, specs_of
from adaptertool.architectures.conversion import architecture_of
from adaptertool.architectures.decoded_beside import as_numbers
from adaptertool.arguments import Number, PathLike, as_input, as_path, cut_of
from adaptertool.engine.resources import thread_count
from adaptertool.errors import InputError, MismatchError, UsageError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.hub import repository_of
from adaptertool.files.reader import Inputs, same_bytes
from adaptertool.formats import DEFAULT, is_adapter, writing
from adaptertool.formats.checkpoints import open_checkpoint, require_named
from adaptertool.formats.format import Written
from adaptertool.live import device_named
from adaptertool.output.adapter import AdapterJob, check_out, write_adapter
from adaptertool.output.options import Options
from adaptertool.output.target import config_notes
from adaptertool.planning.extract import FACTORS, SAVED, Selection, left_out, select
from adaptertool.planning.finetuned import no_copy, pairs_of
from adaptertool.planning.redraft import target_of
from adaptertool.reports.adapters import ExtractReport, TensorExtracted
from adaptertool.resolution.correspondence import aligned
from adaptertool.resolution.renaming import renaming
from adaptertool.resolution.resolve import open_base
from adaptertool.spec.choices import RankChoice
from adaptertool.tasks.in_format import extracted, in_format

if TYPE_CHECKING:  # numpy is loaded only where tensors are touched
    from adaptertool.algebra.extract import Extracted
    from adaptertool.numerics.device import Device
    from adaptertool.output.adapter import AdapterJob

_NAMED = 3  # tensors in a message
DTYPES: Mapping[str, str] = {"f32": "F32", "bf16": "BF16", "f16": "F16", "f64": "F64"}


def extract(
    base: PathLike,
    tuned: PathLike,
    out: PathLike,
    *,
    rank: int | None = None,
    energy: Number | None = None,
    max_error: Number | None = None,
    dtype: str = "f32",
    leave_out: Sequence[str] = (),
    to: str = DEFAULT.name,
    renames: Sequence[str] = (),
    force: bool = False,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Callable[[int], None] | None = None,
    before_publish: Callable[[], None] | None = None,
    clean: bool = False,
    device: str = "cpu",
) -> ExtractReport:
    """Write to `out` an adapter that, merged into `base`, gives the checkpoint `tuned`, as far as its rank goes.

    Exactly one of these is given, for each linear layer that was changed, by D = T − W:
    rank:      of B·A, at most
    energy:    the smallest rank that keeps this share of ‖D‖², in (0, 1]
    max_error: the smallest rank with ‖D − B·A‖ ≤ max_error·‖D‖, Frobenius norms, with the factors as they are stored
    dtype:     of the factors: "f32", "bf16", "f16" or "f64"
    leave_out: regexes; changes of tensors in whose names one is found are lost; the report says how large they were.
               Such tensors may have different shapes in `base` and `tuned`, or be in one of them only; this is said
    renames:   "regex=>replacement" on the names of `tuned` that the base does not have
    dry_run:   compute the report, and write nothing
    clean:     as for `merge`
    device:    "cpu", or one of torch, such as "cuda": large products and QR are then made there, in float64

    Only what was changed is in the adapter. Linear layers have factors, with s = 1; all else is saved whole, as it is
    in `tuned` (planning/extract.py). Layers that are hardly larger than the rank are decomposed exactly, others by
    subspace iteration (numerics.randomized_svd); for both the error is that of the stored factors, added up over all
    elements. The same inputs give the same bytes, whatever the threads. Raises AdapterToolError; `out` is then as it
    was before.

    >>> adaptertool.extract("fixtures/base", "fixtures/tuned", "extracted", rank=8).unchanged
    0
    """

    options = Options(
        force=force, threads=threads, dry_run=dry_run, clean=clean, progress=progress, before_publish=before_publish
    )
    cut = cut_of(rank=rank, energy=energy, max_error=max_error)
    if dtype not in DTYPES:
        raise UsageError(f"dtype is {', '.join(DTYPES)}, not {dtype!r}")
    computing = device_named(device)
    base_path, path, target = as_input(base, "BASE"), as_input(tuned, "TUNED"), as_path(out, "OUT")
    written = target_of(None if to == DEFAULT.name else to, DEFAULT.name, target)
    as_file = written is not None and written.as_file
    check_out(target, [base_path, path], force=options.force, as_file=as_file)
    if is_adapter(path):
        raise InputError(f"{path} is an adapter already; for a smaller rank there is `adaptertool truncate`")
    checkpoint = as_numbers(require_named(open_checkpoint(base_path)))
    with renaming(renames) as own:
        other = own.checkpoint(as_numbers(require_named(open_checkpoint(path))), checkpoint)
    selection, count, notes = _selection(checkpoint, other, leave_out, options)
    output = _output(checkpoint, other, selection, cut, DTYPES[dtype], notes, computing)
    names = {name: list(one) for name, one in (("leave_out", leave_out), ("renames", renames)) if one}
    output = dataclasses.replace(output, recipe={**output.recipe, **names})
    if written is not None:
        made = extracted(checkpoint, in_order(selection.choices, DTYPES[dtype]), cut, DTYPES[dtype])
        output = in_format(output, written, made, {})
    done = write_adapter(output, target, options)
    return ExtractReport(
        **done.summary(output, target, options),
        cut=cut.as_typed(),
        dtype=dtype,
        unchanged=count,
        tensors=tuple(map(_told, done.said)),
    )


def _told(one: Extracted) -> TensorExtracted:
    return TensorExtracted(one.choice.base.spec.name, one.choice.how, one.rank, one.norm, 1 - one.error**2, one.error)


def _selection(
    base: Checkpoint, tuned: Checkpoint, leave_out: Sequence[str], options: Options
) -> tuple[Selection, int, list[str]]:
    """What is to become of each tensor, how many were not changed, and notes, also on those that are left out and could
    not be compared. All headers are compared before any weight."""

    subject, named = open_base(base), aligned(base.tensors, base.config, tuned)[0]  # names are those of the base
    unwanted = left_out(leave_out, {**base.tensors, **named.tensors})
    pairs = pairs_of(base, tuned, unwanted)
    with Inputs({header.path: header.stamp for header in (*base.headers, *tuned.headers)}) as inputs:
        changed = changed_of(inputs, pairs.computed, pairs.fixed, thread_count(options.threads), options.progress)
    for end, source in pairs.copies:
        if not same_bytes(end, source):
            raise MismatchError(no_copy(end, source))
    if not changed - unwanted:
        lost = f" but in what --leave-out leaves out ({len(changed):,} tensors)" if changed else ""
        raise UsageError(f"{base.path} and {tuned.path} do not differ{lost}: there is nothing to extract")
    selection = select(subject, {**base.tensors, **pairs.tuned}, changed, unwanted)
    if not selection.of(FACTORS):
        raise UsageError(_no_factors(base, tuned, selection))
    notes = [*pairs.notes, *_misfits(base, tuned, pairs.passed)]
    return selection, len(pairs.computed) + len(pairs.fixed) - len(changed), notes


def _no_factors(base: Checkpoint, tuned: Checkpoint, selection: Selection) -> str:
    """What differs where nothing of it can be factors."""
    some = [one.base.spec.name for one in selection.of(SAVED)]
    named = f"{', '.join(map(shown, some[:_NAMED]))}{' ...' if len(some) > _NAMED else ''}"
    return (
        f"nothing differs between {base.path} and {tuned.path} that an adapter could hold as factors, and PEFT loads "
        f"none without any; what differs is {named}: copy it as it is"
    )


def _misfits(base: Checkpoint, tuned: Checkpoint, names: Collection[str]) -> Iterator[str]:
    for name in sorted(names):
        here, there = (str(one.tensors[name].spec) if name in one.tensors else "absent" for one in (base, tuned))
        yield f"{shown(name)} is left out: it is {here} in {base.path}, and {there} in {tuned.path}"


def _output(
    base: Checkpoint,
    tuned: Checkpoint,
    selection: Selection,
    cut: RankChoice,
    dtype: str,
    misfits: Sequence[str],
    device: Device,
) -> AdapterJob[Extracted]:

    choices = in_order(selection.choices, dtype)
    sources = (base, tuned)
    return AdapterJob(
        command="extract",
        recipe={
            "cut": cut.as_typed(),
            "dtype": dtype,
            "tensors": [(one.base.spec.name, one.how) for one in choices],
            **device.recipe,
        },
        sources=[source.path for source in sources],
        weights=DEFAULT.files.weights,
        stamps={header.path: header.stamp for source in sources for header in source.headers},
        largest=[spec for choice in choices for spec in specs_of(choice, cut, dtype)],
        metadata={"format": "pt"},
        jobs=lambda inputs: jobs(choices, cut, dtype, inputs, device),
        small=lambda said: {
            DEFAULT.files.named[0]: writing(DEFAULT).config_text(_fields(base, selection), _written(said))
        },
        notes=[*_notes(base, tuned, selection), *misfits],
        reserved=None if cut.rank else 0,
    )


def _notes(base: Checkpoint, tuned: Checkpoint, selection: Selection) -> Iterator[str]:
    yield from (*base.notes, *tuned.notes)
    decoded = [any(ref.made is not None for ref in one.tensors.values()) for one in (base, tuned)]
    if decoded[0] != decoded[1]:
        yield "what codes lose against the numbers that they were made of is part of what differs, and of the adapter"
    for note in config_notes("config.json", base.config, tuned.config):
        yield f"{note}; an adapter changes nothing of it"
    model_type, allowed = (base.config or {}).get("model_type"), writing(DEFAULT).takes_factors
    barred = [one for one in selection.of(SAVED) if one.module and not allowed(model_type, one.module)]
    if linear := [one for one in barred if len(one.base.shape) == 2]:
        yield (
            f"{len(linear)} linear layers are saved whole, {shown(linear[0].module)} and its like: in "
            f"{shown(model_type)} models PEFT does not load, or does not use, factors for them"
        )
    dtypes = {one.tuned.spec.dtype for one in selection.of(SAVED) if one.tuned.spec.dtype != one.base.spec.dtype}
    if dtypes:
        yield f"saved tensors are stored as {', '.join(sorted(dtypes))}, as in {tuned.path}"


def _written(said: Sequence[Extracted]) -> list[Written]:
    return [Written(one.choice.module, one.rank, 1.0) for one in said if one.rank]


def _fields(base: Checkpoint, selection: Selection) -> dict[str, Any]:
    named = (base.config or {}).get("_name_or_path")
    return writing(DEFAULT).new_fields(
        repository_of(base.path) or (named if isinstance(named, str) and named else base.path.resolve().name),
        biases=selection.biases,
        transposed=any(choice.transposed for choice in selection.choices),
        saved_modules=selection.saved_modules,
        causal=architecture_of(base.config).endswith("ForCausalLM"),
    )
