"""Whether OUT is what a plan makes, and published already: a part that comes late, or again, then has nothing to do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from adaptertool.errors import AdapterToolError
from adaptertool.files import LOCAL, store_of, unfinished
from adaptertool.files.checkpoint import MANIFEST, SUMS, load_manifest
from adaptertool.files.place import discard_at_once, staging_folder
from adaptertool.files.reader import digests_in
from adaptertool.output.integrity import files_told, sizes_below
from adaptertool.output.manifest import names_of, recipe_of
from adaptertool.output.parts import names_of as files_of
from adaptertool.output.target import makes_file
from adaptertool.spec.plan import Plan
from adaptertool.version import __version__

_SMALL = 16 << 20  # bytes of a file of the base that is hashed for the answer
_HASHED, _HASHED_ANEW = 256 << 20, 32 << 30  # bytes of the sources that are; the latter where OUT may be an older one


def is_published(plan: Plan, out: Path, hashes: tuple[str, ...], since: float = 0) -> bool:
    """Whether OUT is there with all its files, and its manifest is the one that this plan would write: of the same
    version, recipe, hashes and files, of inputs of the same names and sizes. Small inputs have the hashes that it tells
    of them; a large one was last written before the manifest was. No shard is read.

    since: seconds of the epoch; what was written before is what is to be replaced (--force). Clocks may differ, so the
    time of a source counts for nothing then

    An OUT that is one file has no manifest: of it this is not known.
    """
    if makes_file(plan, out):
        return False
    with contextlib.suppress(AdapterToolError, OSError):  # what cannot be looked at is none that we know
        written = store_of(out).when(out / MANIFEST)
        if written is not None and written >= since:
            return _has_files(plan, out, hashes) and _is_of(plan, load_manifest(out), hashes, written, anew=since > 0)
    return False


def remove_staging(out: Path, key: str) -> None:
    """Remove what was made for an OUT that others have published meanwhile. Raises StorageError."""
    if store_of(out) is LOCAL:
        discard_at_once(staging_folder(out, key))
    else:
        unfinished.clean(out)


def _has_files(plan: Plan, out: Path, hashes: tuple[str, ...]) -> bool:
    """All files of the plan and no others, with these hashes, of the sizes that the manifest tells and the plan."""
    told = files_told(out)
    found = {name: size for name, size in sizes_below(out).items() if not name.startswith(unfinished.FOLDER)}
    own = {name for name in told if PurePosixPath(name).name not in (MANIFEST, SUMS)}
    shards = [(name, shard.size) for shard in plan.shards for name in files_of(shard, plan.outputs)]
    return (
        own == {*names_of(plan)}
        and all(facts.keys() == {"size", *hashes} for facts in told.values())
        and found.keys() - told.keys() <= {MANIFEST, SUMS}
        and all(found.get(name) == facts["size"] for name, facts in told.items())
        and all(found[name] == size for name, size in shards)
    )


def _is_of(plan: Plan, manifest: Mapping[str, Any], hashes: tuple[str, ...], written: float, *, anew: bool) -> bool:
    """Whether a manifest that was written then is of this recipe, and of these inputs."""
    recipe = json.loads(json.dumps(recipe_of(plan, [output.alpha for output in plan.outputs])))
    if (manifest.get("adaptertool"), manifest.get("recipe")) != (__version__, recipe):
        return False
    told = _inputs_told(manifest)
    if [one.keys() for one in told] != [one.keys() for one in plan.files]:
        return False
    left = _HASHED_ANEW if anew else _HASHED
    # Sources first: they are what is made again under the same name, and as large as before
    for number in (*range(1, len(told)), 0):
        for name, path in sorted(plan.files[number].items(), key=lambda item: plan.inputs[item[1]][2]):
            size, known = (
                plan.inputs[path][2],
                {kind: one for kind, one in told[number][name].items() if kind != "size"},
            )
            if told[number][name].get("size") != size or not known.keys() <= {*hashes}:
                return False
            if known and size <= (left if number else _SMALL):
                left -= size if number else 0
                if digests_in(store_of(path).real(path), tuple(known)) != known:
                    return False
            elif (number and anew) or not _was_there(path, written):
                return False
    return True


def _was_there(path: Path, when: float) -> bool:
    last = store_of(path).when(path)
    return last is not None and last <= when


def _inputs_told(manifest: Mapping[str, Any]) -> list[dict[str, dict[str, Any]]]:
    """What a manifest says of the files of the base, and of each source; nothing, where it does not have that form."""
    inputs = manifest.get("inputs")
    if not isinstance(inputs, dict) or not isinstance(inputs.get("sources"), list):
        return []
    told = [inputs.get("base"), *inputs["sources"]]
    good = all(isinstance(one, dict) and all(isinstance(facts, dict) for facts in one.values()) for one in told)
    return told if good else []
