"""The file that `plan` writes: the call, where OUT is to be, the key of the run, and the shards with their sizes.
Nothing in it is trusted: who reads it plans anew, and refuses what has another key."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from adaptertool.arguments import PathLike, as_local, as_path
from adaptertool.engine.budget import bytes_to_read, bytes_to_write
from adaptertool.errors import InputError, OutputError, StorageError, UsageError, shown
from adaptertool.files.jsonfile import load_json
from adaptertool.files.publish import sync_directory
from adaptertool.files.writer import write_small
from adaptertool.output.checkpoint import check_call, hashes_of, staging_of
from adaptertool.output.manifest import recipe_key
from adaptertool.output.parts import names_of
from adaptertool.reports.parts import PartsReport
from adaptertool.spec.plan import Plan
from adaptertool.tasks.call import Call, call_from
from adaptertool.version import __version__

SCHEMA = "parts/1"
_FIELDS = {"schema", "adaptertool", "call", "out", "key", "shards"}


class Planned(NamedTuple):
    """A call, planned."""

    call: Call
    plan: Plan
    out: Path
    key: str


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
    with staging_of(plan, out, hashes_of(options), part=True, key=planned.key) as stage:
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
        found = f"its schema is {shown(fields['schema'])[:80]}" if "schema" in fields else "it has no schema"
        raise InputError(f"{path} is no plan of `adaptertool plan`: {found}")
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
