"""`plan`, `run` and `finish`: a merge or an interpolation that is made in parts, by any number of processes on any
number of machines, which have nothing in common but a file system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adaptertool.arguments import Number, PathLike, given_settings
from adaptertool.errors import UsageError
from adaptertool.methods import settings_of
from adaptertool.output import checkpoint
from adaptertool.output.options import Options
from adaptertool.output.parts import make_part, require_made, require_verifiable_alone
from adaptertool.planning.deal import deal
from adaptertool.planning.sources import Reading
from adaptertool.reports.parts import PartReport, PartsReport
from adaptertool.reports.run import RunReport
from adaptertool.spec.plan import Plan
from adaptertool.tasks.call import MERGE, WISE, call_of
from adaptertool.tasks.merge import MergeRecipe
from adaptertool.tasks.plan_file import read_plan, write_plan
from adaptertool.tasks.wise import WiseRecipe


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
    several at once, and with other numbers of parts: a shard that is finished is not made again.

    verify: read back each shard from the disk and judge it, as `verify` does, before it counts

    Raises AdapterToolError; what is finished stays.

    >>> plan = adaptertool.plan_merge("fixtures/base", ["fixtures/lora"], "merged", "plan.json")
    >>> [len(adaptertool.run_part("plan.json", number, 2).made) for number in range(2)]
    [1, 2]
    """
    call, plan, out, _ = read_plan(file)
    mine = deal(plan.shards, part, parts)
    if verify:
        require_verifiable_alone(plan)
    how = call.how(verify=verify, threads=threads, progress=progress)
    return make_part(plan, out, mine, (part, parts), how)


def finish(
    file: PathLike,
    *,
    verify: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    before_publish: Callable[[], None] | None = None,
) -> RunReport:
    """Put together what the parts of a plan have made, with the other files and the manifest, and publish it: `out`
    then has the bytes that one machine would have written.

    verify: read back all that was written and judge it before
    before_publish: called when all is there, just before `out` changes

    Raises AdapterToolError; StorageError names the shards that are not made yet.

    >>> plan = adaptertool.plan_merge("fixtures/base", ["fixtures/lora"], "merged", "plan.json")
    >>> part = adaptertool.run_part("plan.json")
    >>> adaptertool.finish("plan.json").bytes_written
    1039279
    """
    call, plan, out, _ = read_plan(file)
    how = call.how(verify=verify, threads=threads, progress=progress, before_publish=before_publish)
    return finish_planned(plan, out, how, Path(file))


def finish_planned(plan: Plan, out: Path, options: Options, file: Path | None) -> RunReport:
    """The same of what is planned already. Raises as `finish` does."""
    return checkpoint.run(plan, out, options, lambda finished: require_made(plan, finished, file))
