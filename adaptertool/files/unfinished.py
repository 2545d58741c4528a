"""What runs whose OUT is in a store (files.remote) leave there until it is published: what it says, and its removal."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from adaptertool.errors import OutputError
from adaptertool.files import upload
from adaptertool.files.assets import MANIFEST, RUN, SUMS

FOLDER = ".adaptertool-"
_SCHEMA = "run/1"
_CONFIGS = ("config.json", "adapter*config.json", "model_index.json")  # of a model, an adapter, a pipeline


class Run(NamedTuple):
    """What a run is to make: names within OUT."""

    files: tuple[str, ...]  # but the manifests

    def content(self) -> bytes:
        return json.dumps({"schema": _SCHEMA, "files": sorted(self.files)}).encode()


def run_of(content: bytes | None) -> Run:
    """As it was written; of anything else, a run that makes nothing."""
    try:
        fields = json.loads(content or b"{}")
        names = [name for name in fields["files"] if isinstance(name, str) and fields["schema"] == _SCHEMA]
    except (ValueError, RecursionError, KeyError, TypeError):
        return Run(())
    return Run(tuple(name for name in names if name and not {"", ".", ".."} & set(name.split("/"))))


def _is_config(own: str) -> bool:
    return any(fnmatchcase(own, pattern) for pattern in _CONFIGS)


def is_last(name: str) -> bool:
    """Whether nothing loads without that file, as a rule: it is published after all others."""
    own = PurePosixPath(name).name
    return _is_config(own) or own in (MANIFEST, SUMS) or own.endswith(".index.json")


def order(name: str) -> tuple[int, str]:
    """What files are sorted by for publishing: sums and manifests, then indexes, then configs."""
    own = PurePosixPath(name).name
    return (3 if _is_config(own) else 2 if own.endswith(".index.json") else 1 if is_last(name) else 0), name


def check_empty(out: Path) -> None:
    """Raise OutputError where OUT holds anything, unless a run was at work in it, which says so itself when it goes
    on. Raises InputError where there is no such bucket."""
    there = upload.objects_below(out)
    if there and not any(name.startswith(FOLDER) for name in there):
        raise OutputError(f"{out} exists; choose another OUT, or remove it first: nothing in a store is replaced")
    if upload.get(out) is not None:
        raise OutputError(f"{out} is an object; choose another OUT")


def clean(out: Path) -> list[str]:
    """Remove what runs that were to make OUT have left, and what they had finished unless all of it is there; returns
    the names of their folders. Nobody can tell whether one is at work. Raises StorageError."""
    there = upload.objects_below(out)
    folders = sorted({name.partition("/")[0] for name in there if name.startswith(FOLDER)})
    for folder in folders:
        files = run_of(upload.get(out / folder / RUN)).files
        more = [name for name in there if PurePosixPath(name).name in (MANIFEST, SUMS)]
        if not more or not all(name in there for name in files):
            upload.remove(out, [*(name for name in files if name in there), *more])
        upload.remove(out, [name for name in there if name.startswith(f"{folder}/")])
    return [str(out / folder) for folder in folders]
