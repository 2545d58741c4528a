"""`verify OUT` alone: whether the files of a checkpoint are those that its manifest was written for."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptertool.arguments import PathLike, as_input
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.engine.pool import Pool, Shared, all_done, drain
from adaptertool.engine.progress import expect
from adaptertool.engine.resources import thread_count
from adaptertool.errors import InputError, Interrupted, StorageError, UnsupportedError, shown
from adaptertool.files import LOCAL, store_of
from adaptertool.files.checkpoint import MANIFEST, SUMS, load_manifest
from adaptertool.files.hashing import BLAKE3, SHA256
from adaptertool.files.reader import digests_in, files_below, open_input, read_exact, stamp_of
from adaptertool.files.store import FOLDER
from adaptertool.interrupts import deferred
from adaptertool.output.manifest import sums
from adaptertool.patterns import regex
from adaptertool.reports.verify import FilesReport, FileStatus

_HEX = regex("[0-9a-f]{64}")
_SCHEMA = "manifest/1"

MISSING, EXTRA, NOT_A_FILE, SIZE, CONTENT = "missing", "not in the manifest", "no plain file", "size", "content"


def check_files(
    out: PathLike, progress: Callable[[int], None] | None = None, *, threads: int | None = None
) -> FilesReport:
    """Compare every file below `out` with `out`/adaptertool.manifest.json: that it is there, and no other, with the
    size and the hashes (BLAKE3; SHA-256 and SHA256SUMS where the manifest has them) that were written.

    The manifest itself is vouched for by nothing but SHA256SUMS, which whoever changes one can change too: against
    intent, keep the hash of the manifest, or a signed provenance, elsewhere. Links are not followed, and are wrong.

    progress: called with the number of bytes just read, from several threads
    threads:  the available cores, up to 8, where None

    Raises InputError where there is no manifest, or one that is malformed; StorageError for what cannot be read.

    >>> _ = adaptertool.merge("fixtures/base", ["fixtures/lora"], "merged")
    >>> adaptertool.check_files("merged").ok
    True
    """
    root = as_input(out, "OUT")
    files = files_told(root)
    found = sizes_below(root)
    present = {name for name, size in found.items() if size is not None}
    with_sums = any(SHA256 in facts for facts in files.values())
    expected = files.keys() | {MANIFEST} | ({SUMS} if with_sums else set())
    wrong = dict.fromkeys(found.keys() - present, NOT_A_FILE)
    wrong |= dict.fromkeys(expected - found.keys(), MISSING) | dict.fromkeys(present - expected, EXTRA)
    wrong |= {name: SIZE for name in files.keys() & present if files[name]["size"] != found[name]}
    due = [name for name in sorted(files) if name not in wrong]
    wrong |= dict.fromkeys(_differing(root, files, due, thread_count(threads), progress or (lambda _: None)), CONTENT)
    if with_sums and SUMS not in wrong and not _sums_agree(root, files):
        wrong[SUMS] = CONTENT
    return FilesReport(
        out=str(root),
        ok=not wrong,
        files=len(expected),
        right=len(expected - wrong.keys()),
        bytes=sum(files[name]["size"] for name in due),
        hashes=(BLAKE3, SHA256) if with_sums else (BLAKE3,),
        wrong=tuple(FileStatus(name, wrong[name]) for name in sorted(wrong)),
    )


def files_told(root: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says of each file. Raises InputError unless it has the form that we write."""
    path = root / MANIFEST
    look = store_of(root).look
    if look(root) != FOLDER:
        what = "does not exist" if look(root) is None else "is no directory"
        raise InputError(f"{root} {what}; the files of a checkpoint are checked against the {MANIFEST} in it")
    if look(path) is None:
        raise InputError(
            f"{root} has no {MANIFEST}: adaptertool did not write it, or it is not complete; "
            "what its tensors should be is judged beside a base: adaptertool verify MERGED BASE ADAPTER"
        )
    if store_of(path) is LOCAL and path.is_symlink():
        raise InputError(f"{path} is a link; a manifest is a plain file")
    content = load_manifest(root)
    if content.get("schema") != _SCHEMA:
        raise UnsupportedError(f"{path} is of schema {shown(content.get('schema'))[:80]}; this version reads {_SCHEMA}")
    files = content.get("files")
    if not isinstance(files, dict) or not files:
        raise InputError(f"{path} names no files; write the checkpoint again")
    for name, facts in files.items():
        _check_entry(path, name, facts)
    if len({frozenset(facts) for facts in files.values()}) > 1:
        raise InputError(f"{path} has sha256 of some files only; write the checkpoint again")
    return files


def _check_entry(path: Path, name: str, facts: object) -> None:
    parts = name.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\0" in name or name in (MANIFEST, SUMS):
        raise InputError(f"{path} names the file '{shown(name)[:500]}'; files are named by plain paths within OUT")
    if not isinstance(facts, dict) or not {"size", BLAKE3} <= facts.keys() <= {"size", BLAKE3, SHA256}:
        raise InputError(f"{path}: {shown(name)} must have size, {BLAKE3} and at most {SHA256}")
    if type(facts["size"]) is not int or facts["size"] < 0:
        raise InputError(f"{path}: the size of {shown(name)} is no number of bytes")
    for kind in facts.keys() - {"size"}:
        if not isinstance(facts[kind], str) or not _HEX.fullmatch(facts[kind]):
            raise InputError(f"{path}: the {kind} of {shown(name)} is not 64 hexadecimal digits")


def sizes_below(root: Path) -> dict[str, int | None]:
    """The size of every file below `root`; None for links, devices and the like, which are not looked into. Raises
    StorageError."""

    def fail(error: OSError) -> None:
        raise StorageError(f"{error.filename} cannot be listed: {error.strerror}")

    if store_of(root) is not LOCAL:
        return {path.relative_to(root).as_posix(): stamp_of(path)[2] for path in files_below(root)}
    found: dict[str, int | None] = {}
    for folder, folders, files in os.walk(root, onerror=fail):
        here = Path(folder)
        for name in (*files, *(name for name in folders if (here / name).is_symlink())):
            info = (here / name).lstat()
            own = (here / name).relative_to(root).as_posix()
            found[own] = info.st_size if stat.S_ISREG(info.st_mode) else None
    return found


def _differing(
    root: Path, files: Mapping[str, Mapping[str, Any]], names: list[str], threads: int, progress: Callable[[int], None]
) -> list[str]:
    """The names of the files whose hashes are others. Threads take one file after the other, the largest first."""
    stop, wrong = threading.Event(), list[str]()

    def told(count: int) -> None:
        if stop.is_set():
            raise Interrupted("interrupted")
        progress(count)

    def check(name: str) -> None:
        hashes = tuple(kind for kind in (BLAKE3, SHA256) if kind in files[name])
        digests = digests_in(root / name, hashes, told)
        if any(digests[kind] != files[name][kind] for kind in hashes):
            wrong.append(name)

    def jobs() -> Iterator[Callable[[object], None]]:
        for name in sorted(names, key=lambda name: -files[name]["size"]):
            yield lambda _, name=name: check(name)  # type: ignore[misc]

    expect(progress, sum(files[name]["size"] for name in names))
    shared = Shared(jobs())
    with deferred(), Pool(threads) as pool:
        all_done(stop, [pool.submit(drain, stop, shared, Workspace()) for _ in range(threads)])
    return wrong


def _sums_agree(root: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    own = digests_in(root / MANIFEST, (SHA256,))[SHA256]
    expected = sums({**{name: facts[SHA256] for name, facts in files.items()}, MANIFEST: own})
    with open_input(root / SUMS) as file:
        return file.size == len(expected) and read_exact(file, 0, file.size) == expected
