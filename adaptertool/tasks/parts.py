"""`plan`, `run` and `finish`: a merge or an interpolation that is made in parts, by any number of processes on any
number of machines, which have nothing in common but a file system."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from adaptertool.arguments import Number, PathLike, as_path, given_settings
from adaptertool.engine.resources import thread_count
from adaptertool.errors import InputError, OutputError, StorageError, UsageError, shown
from adaptertool.methods import settings_of
from adaptertool.output import checkpoint
from adaptertool.output.checkpoint import hashes_of
from adaptertool.output.integrity import check_files
from adaptertool.output.options import Options
from adaptertool.output.parts import make_part, nothing_left, take_made
from adaptertool.output.published import is_published, remove_staging
from adaptertool.output.target import summary
from adaptertool.output.verified import check_verifiable, require_verifiable_alone, verify_outputs
from adaptertool.planning.deal import deal
from adaptertool.planning.sources import Reading
from adaptertool.reports.parts import PartReport, PartsReport, PublishedReport
from adaptertool.reports.run import RunReport
from adaptertool.spec.plan import Plan
from adaptertool.tasks.call import MERGE, WISE, call_of
from adaptertool.tasks.merge import MergeRecipe
from adaptertool.tasks.plan_file import Planned, read_plan, write_plan
from adaptertool.tasks.wise import WiseRecipe

Result = TypeVar("Result")


def plan_merge(
    base: PathLike, adapters: Sequence[PathLike], out: PathLike, file: PathLike, **options: Any
) -> PartsReport:
    """Write to `file` what `run_part` and `finish` need to make what `merge` would write to `out`.

    options: those of `merge`, but for threads, progress and verify, which belong to each part

    Raises AdapterToolError as `merge` does, before it computes; OutputError where `file` is anything but such a plan.

    >>> adaptertool.plan_merge("fixtures/base", ["fixtures/lora"], "merged", "plan.json").shards
    3
    """
    weights, how, reading = options.pop("weights", None), _options(options), _reading(options)
    names = {*MergeRecipe._fields} - {"settings"}
    recipe = {name: options.pop(name) for name in tuple(options) if name in names}
    recipe["settings"] = given_settings("plan_merge", settings_of(), options)
    return write_plan(call_of(MERGE, base, adapters, weights, MergeRecipe(**recipe), reading, out, how), file)


def plan_wise(
    base: PathLike,
    tuned: PathLike,
    out: PathLike,
    alphas: Number | Sequence[Number],
    file: PathLike,
    **options: Any,
) -> PartsReport:
    """The same of `wise`: the other arguments are those of `wise`.

    Raises AdapterToolError as `plan_merge` does.

    >>> adaptertool.plan_wise("fixtures/base", "fixtures/tuned", "half", "0.5", "plan.json").finished
    0
    """
    how, reading = _options(options), _reading(options)
    if unknown := options.keys() - set(WiseRecipe._fields):
        raise TypeError(f"plan_wise() got an unexpected keyword argument {min(unknown)!r}")
    return write_plan(call_of(WISE, base, [tuned], alphas, WiseRecipe(**options), reading, out, how), file)


def _options(options: dict[str, Any]) -> Options:
    if options.get("verify"):
        raise UsageError("parts are verified by each `run --verify`, or all by `finish --verify`")
    if options.get("scratch") is not None:
        raise UsageError("a plan holds no scratch folder, which is of one machine: TMPDIR says it to each `run`")
    return Options(**{name: options.pop(name) for name in tuple(options) if name in Options.__slots__})


def _reading(options: dict[str, Any]) -> Reading:
    return Reading(**{name: options.pop(name) for name in tuple(options) if name in Reading._fields})


def run_part(
    file: PathLike,
    part: int = 0,
    parts: int = 1,
    *,
    verify: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> PartReport:
    """Make the shards of one part of a plan that are not made yet. It may be called for the same part again, or by
    several at once, and with other numbers of parts: a shard that is finished is not made again. Where `finish` has
    published OUT nothing is made, and the report says so.

    verify: read back each shard from the disk and judge it, as `verify` does, before it counts

    Raises AdapterToolError; what is finished stays.

    >>> plan = adaptertool.plan_merge("fixtures/base", ["fixtures/lora"], "merged", "plan.json")
    >>> [len(adaptertool.run_part("plan.json", number, 2).made) for number in range(2)]
    [1, 2]
    """
    call, plan, out, key = read_plan(file)
    mine = deal(plan.shards, part, parts)
    if verify:
        require_verifiable_alone(plan)
    how = call.how(verify=verify, threads=threads, progress=progress)

    def make() -> PartReport:
        done = make_part(plan, out, mine, (part, parts), how, key)
        if not done.made or not is_published(plan, out, hashes_of(how), _since(file, how)):
            return done
        remove_staging(out, key)  # OUT was published while we began, and knew of no shard of others
        return nothing_left(plan, out, mine, (part, parts))

    done = _unless_published(plan, out, how, as_path(file, "FILE"), make)
    return nothing_left(plan, out, mine, (part, parts)) if done is None else done


def finish(
    file: PathLike,
    *,
    verify: bool = False,
    check: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    before_publish: Callable[[], None] | None = None,
) -> RunReport | PublishedReport:
    """Put together what the parts of a plan have made, with the other files and the manifest, and publish it: `out`
    then has the bytes that one machine would have written.

    Where `out` is there already, as this plan makes it, nothing is done, and the report says so.

    verify: read back all that was written and judge it before
    check: read the shards, and compare their hashes with what their makers have noted; their sizes always are
    before_publish: called when all is there, just before `out` changes

    Raises AdapterToolError; StorageError names the shards that are not made yet.

    >>> plan = adaptertool.plan_merge("fixtures/base", ["fixtures/lora"], "merged", "plan.json")
    >>> part = adaptertool.run_part("plan.json")
    >>> adaptertool.finish("plan.json").bytes_written
    1039279
    """
    planned = read_plan(file)
    call, plan, out, key = planned
    how = call.how(verify=verify, threads=threads, progress=progress, before_publish=before_publish)
    path = as_path(file, "FILE")
    done = _unless_published(plan, out, how, path, lambda: finish_planned(planned, how, path, check=check))
    if done is not None:
        return done
    remove_staging(out, key)  # what a part, or another `finish`, has left that came late
    return _published(plan, out, how, path, check=check)


def finish_planned(planned: Planned, options: Options, file: Path | None, *, check: bool = False) -> RunReport:
    """The same of what is planned already. Raises as `finish` does."""
    _, plan, out, key = planned
    return checkpoint.run(plan, out, options, lambda stage: take_made(plan, stage, file, check=check), key)


def _unless_published(plan: Plan, out: Path, how: Options, file: Path, make: Callable[[], Result]) -> Result | None:
    """What `make` returns; None where OUT is what the plan makes, before or since another has published it meanwhile.
    Raises as `make` does."""

    def there() -> bool:
        return is_published(plan, out, hashes_of(how), _since(file, how))

    if there():
        return None
    try:
        return make()
    except (InputError, OutputError, StorageError) as error:  # also where another, who is done, has cleaned up
        if there():
            return None
        if isinstance(error, OutputError) and os.path.lexists(out):
            raise OutputError(f"{error} (it is not what {file} makes, so that takes another plan)") from error
        raise


def _since(file: Path | PathLike, how: Options) -> float:
    """With --force OUT may be what is to be replaced: that is older than the plan."""
    return Path(file).stat().st_mtime if how.force else 0


def _published(plan: Plan, out: Path, how: Options, file: Path, *, check: bool) -> PublishedReport:
    """The report of an OUT that is there already; with --verify or --check it is read. Raises StorageError where it is
    not what it should be, or its provenance is not there."""
    if how.provenance is not None and not how.provenance.exists():
        raise StorageError(
            f"{out} is published, but {how.provenance} is not there: a run was killed between the two; a plan with "
            "--force makes both again"
        )
    if check and (wrong := check_files(out, how.progress, threads=how.threads).wrong):
        raise StorageError(f"{out} is published, but {shown(wrong[0].name)} in it is not as it was: {wrong[0].status}")
    if how.verify:
        check_verifiable(plan, out, how)
        verify_outputs(plan, out, thread_count(how.threads))
    told = summary(plan, out, 1)
    return PublishedReport(
        **{name: told[name] for name in ("command", "base", "sources", "out", "outputs", "notes")},
        plan=str(file),
        bytes=told["bytes_written"],
        verified=how.verify,
    )
