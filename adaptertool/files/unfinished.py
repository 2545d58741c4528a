"""What runs whose OUT is in a store (files.remote) leave there until it is published: what it says, and its removal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from adaptertool.errors import InputError, OutputError, UsageError, shown
from adaptertool.files import upload
from adaptertool.files.assets import MANIFEST, RUN, SUMS
from adaptertool.files.jsonfile import parse_json

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


def check_target(out: Path, inputs: Sequence[Path], *, as_file: bool, force: bool) -> None:
    """Refuse an OUT that cannot or must not be written, unless a run was at work in it, which says so itself when it
    goes on. Raises UsageError, InputError where there is no such bucket, and OutputError for what stands there."""
    if len(out.parts) < 3:
        raise UsageError(f"OUT {out} is a whole bucket; give a {'name' if as_file else 'folder'} in it")
    for given in inputs:
        if out == given or out in given.parents or given in out.parents:
            raise UsageError(f"OUT {out} and the input {given} overlap; inputs are never changed: choose another OUT")
    there = upload.objects_below(out)
    if upload.look(out) is not None:
        hint = ", which --force does not replace; remove it first" if force else "; choose another OUT"
        raise OutputError(f"{out} is an object{hint}")
    if not there or (not as_file and any(name.startswith(FOLDER) for name in there)):
        return
    if as_file or not force:
        way = "replace it with --force" if MANIFEST in there and not as_file else "remove it first"
        raise OutputError(f"{out} exists; choose another OUT, or {way}")
    _require_replaceable(out, there)


def _require_replaceable(out: Path, there: Iterable[str]) -> None:
    """Raise OutputError for what is not by adaptertool, or holds more than that."""
    try:
        ours = parse_json(upload.get(out / MANIFEST) or b"", str(out / MANIFEST), halves=True).get("files")
    except InputError as error:
        raise OutputError(
            f"{out} was not made by adaptertool (it has no {MANIFEST}); --force does not replace it"
        ) from error
    if strange := sorted(set(there).difference(ours if isinstance(ours, dict | list) else (), (MANIFEST, SUMS))):
        raise OutputError(f"{out} holds {shown(strange[0])}, which adaptertool did not put there; move it away first")


def remove_old(out: Path) -> bool:
    """Remove an OUT that is to be replaced, unless a run is at work in it already; whether there was one. First goes
    what loaders look for, and last the manifest, by which this goes on when it was interrupted. Raises OutputError,
    StorageError."""
    there = upload.objects_below(out)
    if not there or any(name.startswith(FOLDER) for name in there):
        return False
    _require_replaceable(out, there)
    names = sorted(there, key=lambda name: (name == MANIFEST, -order(name)[0]))
    upload.remove(out, names[:-1])
    upload.remove(out, names[-1:])
    return True


def require_ours(out: Path, own: str, run: Run, there: Iterable[str]) -> None:
    """Raise OutputError where anything is in OUT that this very run, whose folder is `own`, does not make, or where it
    is published."""
    there = list(there)
    if there and not any(name.startswith(FOLDER) for name in there):
        raise OutputError(f"{out} exists; another run may have published it meanwhile")
    known = {*run.files, *(name for name in there if PurePosixPath(name).name in (MANIFEST, SUMS))}
    others = [name for name in there if name not in known and not name.startswith(f"{own}/")]
    if left := next((name for name in others if name.startswith(FOLDER)), None):
        raise OutputError(
            f"{out} holds {left.partition('/')[0]}, which another command has left, or is at work in: wait "
            f"for it, or `adaptertool clean {out}` removes it"
        )
    if others:
        raise OutputError(f"{out} holds {shown(others[0])}, which this run does not make; choose another OUT")


def send(out: Path, work: Path, names: Iterable[str], stopped: Callable[[], bool]) -> None:
    """Send files of a folder, those last without which nothing loads, each of these only where there is none. Raises
    OutputError for what came to exist, and StorageError."""
    for name in sorted(names, key=order):
        if not is_last(name):
            upload.put_file(out / name, work / name, stopped)
        elif not upload.create(out / name, (work / name).read_bytes()):
            raise OutputError(f"{out / name} came to exist during the run, and is not replaced")


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
