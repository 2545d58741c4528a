"""From a plan to a published OUT: the part that all commands that write checkpoints share."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from adaptertool.engine.budget import bytes_to_write
from adaptertool.engine.execute import run_plan
from adaptertool.engine.forms import forms_of
from adaptertool.engine.preflight import require_equal, require_finite_factors
from adaptertool.engine.reads import to_hash
from adaptertool.engine.resources import peak_memory, thread_count
from adaptertool.errors import StorageError, UsageError
from adaptertool.files import LOCAL, store_of
from adaptertool.files.hashing import DEFAULT, WITH_SHA256
from adaptertool.files.reader import Inputs
from adaptertool.files.remote import RemoteStaging
from adaptertool.files.sent import SentStaging
from adaptertool.files.stage import Published
from adaptertool.files.staging import Staging
from adaptertool.files.writer import write_small
from adaptertool.numerics.compiled import FUNCTIONS
from adaptertool.output.leftovers import Leftovers
from adaptertool.output.manifest import Record, labels_of, names_of, recipe_key, write_manifests
from adaptertool.output.options import Options
from adaptertool.output.outcome import fields_of, kept_of, notes_of, require_changed, tallies_of
from adaptertool.output.provenance import Prepared, check_provenance, statement
from adaptertool.output.target import check_output, makes_file, summary
from adaptertool.output.verified import check_verifiable, verify_stage
from adaptertool.reports.run import KeptReport, RunReport
from adaptertool.spec.plan import Plan

USUAL = Options()
_FILES = 150  # open at the same time, beside three for each output
_LEAST = 100  # beside two: one that is written, one that is made durable


def run(
    plan: Plan,
    out: Path,
    options: Options,
    take_made: Callable[[Published], None] | None = None,
    key: str | None = None,
) -> RunReport:
    """Check, compute in a staging directory, publish. On any error OUT is as it was before.

    take_made: takes over the shards, which others have made in parts; raises where there are not all of them
    key: that of the plan, where it is known
    """
    start = time.perf_counter()
    threads = thread_count(options.threads)
    check_call(plan, out, options)
    allow_files(len(plan.outputs))
    provenance, force, told = options.provenance, options.force, options.tell_progress
    hashes = hashes_of(options)
    with contextlib.ExitStack() as opened, Inputs(plan.inputs, hashes) as inputs:
        notes = require_finite_factors(plan, inputs) if take_made is None else []
        require_equal(plan, inputs)
        with staging_of(
            plan, out, hashes, part=take_made is not None, key=key, inputs=inputs, options=options
        ) as stage:
            if take_made is not None:
                take_made(stage)
            others = Leftovers(out, stage.folder, clean=options.clean)
            for note in (*notes, *others.at_start()):
                options.tell_note(note)
            stage.require_space(bytes_to_write(plan) - sum(file.size for file in stage.finished.values()))
            inputs.digests |= stage.inputs
            hash_inputs = provenance is not None or not makes_file(plan, out)  # one file has no manifest
            hashed, forms = to_hash(plan) if hash_inputs else ((), ()), forms_of(plan)
            started = run_plan(plan, stage, inputs, threads, told, hashed, forms)
            stage.assemble(stage.finished)
            for output in plan.outputs:
                for name, content in output.files:
                    write_small(stage.work / output.folder / name, content)
                    told(len(content))
            inputs.check_unchanged()
            tallies, kept = tallies_of(plan, stage), kept_of(plan, stage)
            if options.fail_if_unchanged:
                require_changed(plan, tallies)
            record = Record(plan, stage, inputs.digests, kept)
            work = _complete(record, out)
            if options.verify:
                verify_stage(plan, stage, out, threads)
            if provenance is not None:
                files = record.outputs(stage.work)
                subjects = files if work == stage.work else {out.name: files[work.name]}
                prepared = opened.enter_context(Prepared(provenance, statement(record, subjects), force=force))
            options.begin_publishing()
            stage.publish(work, force=force)
            notes += [*fewer(started, threads), *stage.notes, *notes_of(plan, tallies, kept or ()), *others.at_end()]
        if provenance is not None:  # the staging is gone: what fails here does not begin again
            prepared.publish()
    seconds = time.perf_counter() - start
    fields = {**summary(plan, out, started, forms), **fields_of(plan, tallies, forms)}
    return _report(fields, kept, notes, seconds, verified=options.verify)


def staging_of(
    plan: Plan,
    out: Path,
    hashes: tuple[str, ...],
    *,
    part: bool,
    key: str | None = None,
    inputs: Inputs | None = None,
    options: Options = USUAL,
) -> Published:
    """Where the files of a plan are made: beside OUT, or in a store. part: some of them, while others make the rest.

    key: that of the plan, where it is known: of a large one it takes a second
    inputs: what tells that the run is to stop. Raises UsageError for a part of one file
    """
    key, labels = recipe_key(plan, hashes) if key is None else key, labels_of(plan)
    if store_of(out) is LOCAL:
        return Staging(out, key, hashes, labels=labels, shared=True, part=part)
    stopped = (lambda: False) if inputs is None else inputs.stopped.is_set
    if makes_file(plan, out):
        if part:
            raise UsageError(f"OUT {out} is one file, which is sent to a store whole: use the command without parts")
        return SentStaging(out, key, hashes, labels=labels, scratch=options.scratch, stopped=stopped)
    return RemoteStaging(
        out,
        key,
        hashes,
        names=names_of(plan),
        largest=2 * len(plan.outputs) * max((shard.size for shard in plan.shards), default=0),
        labels=labels,
        scratch=options.scratch,
        part=part,
        force=options.force,
        stopped=stopped,
    )


def hashes_of(options: Options) -> tuple[str, ...]:
    """The hashes that a manifest is to have."""
    return WITH_SHA256 if options.sha256 or options.provenance is not None else DEFAULT


def check_call(plan: Plan, out: Path, options: Options) -> None:
    """Refuse what cannot be done, before anything is read. Raises UsageError, OutputError, StorageError."""
    if store_of(out) is LOCAL and options.scratch is not None:
        raise UsageError("--scratch is for an OUT in a store; beside an OUT of this machine nothing else is needed")
    check_verifiable(plan, out, options)
    if options.fail_if_unchanged and plan.as_adapter:
        raise UsageError("--fail-if-unchanged is for checkpoints; an adapter has no elements of the base")
    check_output(plan, out, force=options.force, sha256=options.sha256)
    if options.provenance is not None:
        check_provenance(plan, out, options.provenance, force=options.force)


def fewer(started: int, threads: int) -> Iterator[str]:
    """A note where the system did not start as many threads as there were to be."""
    if started < threads:
        yield f"the system started no more than {started} of {threads} threads, which did the work (see ulimit -u)"


def _report(
    fields: dict[str, Any],
    kept: tuple[KeptReport, ...] | None,
    notes: Sequence[str],
    seconds: float,
    *,
    verified: bool,
) -> RunReport:
    fields["notes"] += tuple(notes)
    return RunReport(
        **fields,
        kept=kept,
        seconds=seconds,
        bytes_per_second=(fields["bytes_read"] + fields["bytes_written"]) / seconds,
        peak_memory=peak_memory(),
        compiled=bool(FUNCTIONS),
        verified=verified,
    )


def _complete(record: Record, out: Path) -> Path:
    """Write what speaks of the other files, and make all durable. Returns what is to become OUT."""
    work = record.stage.work
    record.require_all()
    if not makes_file(record.plan, out):
        write_manifests(record)
    record.stage.sync()
    return work / record.plan.shards[0].name if makes_file(record.plan, out) else work


def allow_files(outputs: int) -> None:
    """Raise the number of files that this process may have open, as far as it is allowed to: a sweep has many. Raises
    StorageError where that is too few."""
    count, least = 3 * outputs + _FILES, 2 * outputs + _LEAST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if most < least and outputs > 1:
        raise StorageError(
            f"{outputs:,} outputs at once need {least:,} open files, but this process may have {most:,}: give fewer "
            "alphas at a time, or have the limit raised (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
