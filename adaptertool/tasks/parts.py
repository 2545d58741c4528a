"""`plan`, `run` and `finish`: a merge or an interpolation that is made in parts, by any number of processes on any
number of machines, which have nothing in common but a file system.

`plan` writes a file: the call, where OUT is to be, the key of the run, and the shards with their sizes. Nothing in it
is trusted: `run` and `finish` plan anew, and refuse what has another key.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.arguments import Number, PathLike, as_local, as_path, given_settings
from adaptertool.engine.budget import bytes_to_read, bytes_to_write
from adaptertool.errors import InputError, OutputError, StorageError, UsageError, shown
from adaptertool.files.jsonfile import load_json
from adaptertool.files.publish import sync_directory
from adaptertool.files.writer import write_small
from adaptertool.methods import settings_of
from adaptertool.output import checkpoint
from adaptertool.output.checkpoint import check_call, hashes_of, staging_of
from adaptertool.output.manifest import recipe_key
from adaptertool.output.options import Options
from adaptertool.output.parts import make_part, names_of, require_made
from adaptertool.planning.deal import deal
from adaptertool.planning.sources import Reading
from adaptertool.reports.parts import PartReport, PartsReport
from adaptertool.reports.run import RunReport
from adaptertool.spec.plan import Plan
from adaptertool.tasks.call import MERGE, WISE, Call, call_from, call_of
from adaptertool.tasks.merge import MergeRecipe
from adaptertool.tasks.wise import WiseRecipe
from adaptertool.version import __version__

SCHEMA = "parts/1"
_FIELDS = {"schema", "adaptertool", "call", "out", "key", "shards"}


class Planned(NamedTuple):
    """A call, planned."""

    call: Call
    plan: Plan
    out: Path
    key: str


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


def write_plan(call: Call, file: PathLike) -> PartsReport:
    """Plan a call, and write it down. Raises as the call would, before it computes; OutputError for a file that holds
    something else, and StorageError."""
    path, planned = as_local(file, "FILE"), planned_of(call)
    plan, out, options = planned.plan, planned.out, call.how()
    check_call(plan, out, options)
    _require_free(path, out)
    shards = [{"name": shard.name, "size": shard.size} for shard in plan.shards]
    fields = {
        "schema": SCHEMA,
        "adaptertool": __version__,
        "call": call._asdict(),
        "out": call.out,
        "key": planned.key,
        "shards": shards,
    }
    _replace(path, (json.dumps(fields, indent=1) + "\n").encode())
    with staging_of(plan, out, hashes_of(options), part=True) as stage:
        done = sum(all(stage.find(name) for name in names_of(shard, plan.outputs)) for shard in plan.shards)
    return PartsReport(
        command=plan.command,
        base=str(plan.base),
        sources=tuple(map(str, plan.sources)),
        out=str(out),
        plan=str(path),
        key=planned.key,
        shards=len(plan.shards),
        largest=max((shard.size for shard in plan.shards), default=0),
        bytes_read=bytes_to_read(plan),
        bytes_written=bytes_to_write(plan),
        finished=done,
        notes=plan.notes,
    )


def planned_of(call: Call) -> Planned:
    """Plan a call. Raises as its preparing does."""
    plan = call.prepare().plan
    return Planned(call, plan, as_path(call.out, "OUT"), recipe_key(plan, hashes_of(call.how())))


def read_plan(file: PathLike) -> Planned:
    """Plan anew what a file says. Raises InputError where that is no plan, or where another comes out."""
    path = as_local(file, "FILE")
    fields = load_json(path)
    if fields.get("schema") != SCHEMA:
        raise InputError(f"{path} is no plan of `adaptertool plan`: its schema is {shown(fields.get('schema'))[:80]}")
    if fields.get("adaptertool") != __version__:
        theirs = shown(fields.get("adaptertool"))[:80]
        raise InputError(f"{path} was written by adaptertool {theirs}, and this is {__version__}: use one everywhere")
    if set(fields) != _FIELDS:
        raise InputError(f"{path} does not hold what a plan does; write it again")
    planned = planned_of(call_from(fields["call"], str(path)))
    shards = [{"name": shard.name, "size": shard.size} for shard in planned.plan.shards]
    if (fields["key"], fields["out"], fields["shards"]) != (planned.key, planned.call.out, shards):
        raise InputError(
            f"{path} is not what comes out now: an input is no longer what it was, or is another on this machine, or "
            "the file was changed; write the plan again (what was made from the old one is of no more use)"
        )
    return planned


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
        checkpoint.require_verifiable_alone(plan)
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


def _require_free(path: Path, out: Path) -> None:
    """Raises OutputError unless there is nothing, or a plan."""
    real = path.resolve()
    if real.is_relative_to(out.resolve()):
        raise UsageError(f"the plan {path} would lie in OUT; give a path elsewhere")
    if not real.parent.is_dir():
        raise UsageError(f"the directory {real.parent} for the plan does not exist; create it first")
    if not os.path.lexists(path):
        return
    ours = False
    with contextlib.suppress(InputError, StorageError):
        ours = path.is_file() and load_json(path).get("schema") == SCHEMA
    if not ours:
        raise OutputError(f"{path} exists, and is no plan; choose another path, or remove it first")


def _replace(path: Path, content: bytes) -> None:
    """Write a file, durable, in the place of what is there. Raises StorageError."""
    part = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}")
    try:
        write_small(part, content)
        part.rename(path)
    except OSError as error:
        raise StorageError(f"writing {path} failed: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    sync_directory(path.resolve().parent)
