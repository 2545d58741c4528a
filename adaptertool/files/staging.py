"""The directory beside OUT that a run works in. Its name belongs to OUT and to what is made, so that the same command
finds it again after a kill, a full disk or Ctrl-C, and goes on; another command never meets it.

In .OUT.adaptertool-KEY:
    lock      held (flock) while a run is at work
    journal   a line for each file that is finished: its name, size and hash
    work      what is to be OUT; files that are not finished have other names

Where the file system has no locks each run has a directory of its own, with a random KEY, and no other goes on from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

from adaptertool.errors import AdapterToolError, StorageError
from adaptertool.files import publish
from adaptertool.files.hashing import DEFAULT, Digests, digests_of
from adaptertool.files.leftovers import (
    JOURNAL,
    PART,
    WORK,
    NoLocksError,
    discard,
    locked,
    made_alone,
    only_plain,
    restore,
    staging_folder,
)
from adaptertool.files.publish import make_directory, sync_directory
from adaptertool.interrupts import deferred
from adaptertool.spec.tally import Fate, Tally, noted, noted_fates

_HEX = re.compile("[0-9a-f]{64}")


NOTHING = Tally()
Fates = Mapping[str, Fate]


class Finished(NamedTuple):
    """A file that is complete, durable and under its own name."""

    size: int
    digests: Digests
    tally: Tally = NOTHING  # of the elements that were edited in it
    fates: Fates = MappingProxyType({})  # of weights that stay codes, by family


class Staging:
    """The staging directory of a run, as a context: found or made, and held under lock; removed at the end.

    It stays where the run failed, or was interrupted, in a way that the same command may get over, and a file was
    finished: the next such run goes on from there. Where `precious` is set it stays after any failure, and where
    `stays` is set in any case.
    """

    def __init__(self, out: Path, key: str, hashes: tuple[str, ...] = DEFAULT) -> None:
        self._out, self._lock, self.hashes = out, -1, hashes
        self.folder = staging_folder(out, key)
        self.work = self.folder / WORK
        self._journal = self.folder / JOURNAL
        self.finished: dict[str, Finished] = {}
        self.precious = False  # what is there took more than our own work to make
        self.stays = False
        self.alone = False  # there are no locks: no other run finds it
        self._lacks: dict[str, None] = {}  # what the file system does not have, and what follows
        self._noted: list[Mapping[str, object]] = []
        self.inputs: dict[str, Digests] = {}  # that were read to their end, by path

    # Not a generator: a signal between its yield and the body of the `with` would leave the directory behind.
    def __enter__(self) -> Staging:
        try:
            with deferred():  # nor must one come between the lock and our knowing of it
                self._hold()
            restore(self.folder, self._out)
            only_plain(self.folder)
            make_directory(self.work)
            self._read_journal()
            self._remove_unfinished()
            return self
        except BaseException:
            self._leave(keep=bool(self.finished))
            raise

    def _hold(self) -> None:
        try:
            self._lock = locked(self.folder, self._out)
        except NoLocksError:
            self.alone = True
            self.folder, self._lock = made_alone(self._out)
            self.work, self._journal = self.folder / WORK, self.folder / JOURNAL
            self._lacks["locks, so the work is done in a directory of its own and cannot be continued"] = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the file system does not have, and the run went on without; one note at most."""
        if not self._lacks:
            return ()
        return (f"{self.folder.parent} is on a file system without {'; without '.join(self._lacks)}",)

    def require_space(self, needed: int) -> None:
        """Raises StorageError where the disk cannot hold so many bytes more."""
        if not publish.check_space(self._out, needed):
            self._lacks["a count of its free space, so a full disk is found only when it is full"] = None

    def sync(self, folder: Path | None = None) -> None:
        """Make the entries of a directory in it durable; of all of them, where None."""
        if not (publish.sync_tree(self.work) if folder is None else sync_directory(folder)):
            self._lacks["fsync of directories, so that OUT outlasts a power cut is not certain"] = None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        resumable = isinstance(error, AdapterToolError) and error.resumable and bool(self.finished) and not self.alone
        keep = resumable or self.stays or (error is not None and self.precious)
        self._leave(keep=keep)
        if keep and isinstance(error, AdapterToolError):
            count = f"{len(self.finished)} finished file{'s' if len(self.finished) > 1 else ''}"
            hint = f"the same command goes on from there; `adaptertool clean {self._out}` removes it"
            if self.alone:
                hint = "no command goes on from there, since the file system has no locks; remove it by hand"
            raise type(error)(f"{error}; {count} kept in {self.folder}: {hint}") from error

    def _leave(self, *, keep: bool) -> None:
        if self._lock < 0:
            return
        if not keep:
            discard(self.folder)
        os.close(self._lock)
        self._lock = -1

    def part(self, name: str) -> Path:
        """Where to write a file until it is finished: a name that no other run uses, in the directory of its own."""
        path = self.work / name
        make_directory(path.parent)
        return path.with_name(f"{PART}{secrets.token_hex(8)}")

    def finish(
        self, part: Path, name: str, digests: Digests, tally: Tally = NOTHING, fates: Fates = MappingProxyType({})
    ) -> None:
        """Give a complete, durable file its name, and note it. Raises StorageError."""
        path = self.work / name
        known = Finished(part.stat().st_size, digests, tally, fates)
        try:
            part.rename(path)
            self.sync(path.parent)
            self._note(
                {
                    "name": name,
                    "size": known.size,
                    **digests,
                    "tally": tally,
                    **({"fates": dict(fates)} if fates else {}),
                }
            )
        except OSError as error:
            raise StorageError(f"finishing {path} failed: {error.strerror}") from error
        self.finished[name] = known

    def discard(self, name: str) -> None:
        """Remove a file, or a directory and all in it. Raises StorageError."""
        path = self.work / name
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"removing {path} failed: {error.strerror}") from error
        inside = f"{name}/"
        self.finished = {key: known for key, known in self.finished.items() if not f"{key}/".startswith(inside)}

    def adopt(self, source: Path, name: str, digests: Digests) -> None:
        """Take a file over, as a link, if its hashes are these. Else, and where there are no links, nothing happens."""
        with contextlib.suppress(OSError, StorageError):
            if name not in self.finished and digests_of(source, self.hashes) == digests:
                part = self.part(name)
                os.link(source, part)
                self.finish(part, name, digests)

    def has_read(self, path: Path, digests: Digests) -> None:
        """Note the digests of an input with the next file, for a run that goes on from here and need not read it. They
        hold as long as the directory is found by its key, in which the stamps of all inputs are."""
        self._noted.append({"input": str(path), **digests})

    def _note(self, entry: Mapping[str, object]) -> None:
        lines = [json.dumps(one).encode() + b"\n" for one in (*self._noted, entry)]
        with self._journal.open("ab") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self._noted.clear()

    def _read_journal(self) -> None:
        """What an earlier run finished: a file is trusted by its hash only. Lines of another form are passed over."""
        content = self._journal.read_bytes() if self._journal.exists() else b""
        *lines, last = content.split(b"\n")
        if last:
            self._journal.write_bytes(content + b"\n")  # or the next line would become part of it
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError, OSError, StorageError):  # a line that a kill cut short
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    continue
                digests = {name: str(entry.get(name)) for name in self.hashes}
                if not all(map(_HEX.fullmatch, digests.values())):
                    continue
                if isinstance(given := entry.get("input"), str):
                    self.inputs[given] = digests
                tally, fates = noted(entry.get("tally")), noted_fates(entry.get("fates", {}))
                if "input" in entry or tally is None or fates is None:
                    continue
                if isinstance(name := entry.get("name"), str) and self._holds(name, entry.get("size"), digests):
                    self.finished[name] = Finished(entry["size"], digests, tally, fates)

    def _holds(self, name: str, size: object, digests: Digests) -> bool:
        """Whether this file is in `work`, itself and not through a link, and as it was noted."""
        path = self.work / name
        plain = PurePosixPath(name).as_posix() == name and not name.startswith("/")
        if not plain or type(size) is not int or path.resolve() != self.work.resolve() / name:
            return False
        return path.is_file() and path.stat().st_size == size and digests_of(path, self.hashes) == digests

    def _remove_unfinished(self) -> None:
        for path in self.work.rglob("*"):
            if path.is_file() and path.relative_to(self.work).as_posix() not in self.finished:
                path.unlink()
