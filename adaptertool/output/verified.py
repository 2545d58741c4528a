"""What was written is read back, and compared with what the plan makes, computed again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from adaptertool.errors import InputError, StorageError, UnsupportedError, UsageError, shown
from adaptertool.files import LOCAL, store_of
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.remote import RemoteStaging
from adaptertool.files.stage import Published
from adaptertool.files.writer import forget
from adaptertool.formats.checkpoints import open_checkpoint
from adaptertool.late import late
from adaptertool.output.options import Options
from adaptertool.output.target import makes_file
from adaptertool.resolution.resolve import open_base
from adaptertool.spec.choices import EXACT
from adaptertool.spec.plan import Plan

# What few runs need
check = late("adaptertool.verification.check", "check")
as_weights = late("adaptertool.verification.written", "as_weights")
unlike = late("adaptertool.verification.written", "unlike")


def check_verifiable(plan: Plan, out: Path, options: Options) -> None:
    """Refuse to verify what cannot be. Raises UsageError, UnsupportedError."""
    require_verifiable(plan, verify=options.verify)
    if options.verify and store_of(out) is not LOCAL and not makes_file(plan, out):
        require_verifiable_alone(plan)


def require_verifiable(plan: Plan, *, verify: bool) -> None:
    """Refuse to verify what cannot be. Raises UsageError for adapters, methods and Fisher weights."""
    if verify and plan.as_adapter:
        raise UsageError("verifying is for checkpoints; an adapter is verified by what it makes of one")
    if verify and any(step.blend or step.fisher for step in plan.steps()):
        raise UsageError("verifying is for sums of changes and plain interpolation, not for methods and Fisher weights")


def require_verifiable_alone(plan: Plan) -> None:
    """Refuse to verify shards one by one where one is no checkpoint by itself, or weights are not whole in one. Raises
    UsageError, UnsupportedError."""
    require_verifiable(plan, verify=True)
    way = "one by one, as parts and in stores: give --verify to `adaptertool finish`, or run `adaptertool verify` later"
    if any("/" in shard.name for shard in plan.shards):
        raise UnsupportedError(f"the models of a pipeline are verified together, not {way}")
    if "quantise" in plan.choices:
        raise UnsupportedError(
            f"codes and their scales may lie in different shards, so with --quantise keep these are not verified {way}"
        )


def verify_outputs(plan: Plan, folder: Path, threads: int) -> None:
    """Raise StorageError unless each output holds what the plan makes. It is computed again for that."""
    dtype = plan.choices.get("dtype")
    subject = open_base(open_checkpoint(plan.base, None if dtype is None else str(dtype)))
    for output in plan.outputs:
        path = folder / output.folder
        written = _ours(open_checkpoint(path / plan.shards[0].name if plan.single_file else path))
        for header in written.headers:
            if store_of(header.path) is LOCAL:
                forget(header.path)
        alone = dataclasses.replace(plan, outputs=(output,))
        try:
            weights, candidate = as_weights(alone, written)
        except InputError as error:
            raise StorageError(f"{path} was written, but cannot be read: {error}; is the disk sound?") from error
        report = check(weights, subject, candidate, {}, strict=plan.precision == EXACT, threads=threads)
        bad = [f"{shown(one.name)} is {one.status}" for one in report.tensors if one.status != "exact"]
        if report.ok:
            bad = [f"{shown(name)} has other codes or scales" for name in unlike(alone, written, threads)]
        if bad or not report.ok:
            what = [*bad, *report.problems][0]
            raise StorageError(f"{path} was written, but is not what was computed: {what}; is the disk sound?")


def _ours(written: Checkpoint) -> Checkpoint:
    """The same, where it is no matter when the files' own records changed: others who finish this plan at the same time
    make links to them, and remove these."""
    headers = tuple(dataclasses.replace(header, stamp=header.stamp[:4]) for header in written.headers)
    return dataclasses.replace(written, headers=headers)


def verify_stage(plan: Plan, stage: Published, out: Path, threads: int) -> None:
    """Raise StorageError unless all is as it was computed; what was sent is read from the store, shard by shard."""
    if not isinstance(stage, RemoteStaging):
        verify_outputs(plan, stage.work, threads)
        return
    for shard in plan.shards:
        try:
            verify_outputs(dataclasses.replace(plan, shards=(shard,), single_file=True), out, threads)
        except StorageError:
            stage.discard([f"{output.folder}/{shard.name}".lstrip("/") for output in plan.outputs])
            raise  # the same command makes it anew
