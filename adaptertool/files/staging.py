"""The directory beside OUT that a run works in. Its name belongs to OUT and to what is made, so that the same command
finds it again after a kill, a full disk or Ctrl-C, and goes on; another command never meets it.

In .OUT.adaptertool-KEY:
    lock      held (flock) while a run is at work
    journal   a line for each file that is finished: its name, size and hash
    work      what is to be OUT; files that are not finished have other names
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from adaptertool.errors import AdapterToolError, OutputError, StorageError
from adaptertool.files.publish import make_directory, sync_directory
from adaptertool.interrupts import deferred

_CHUNK = 4 << 20
_LONGEST = 200  # bytes of a name, of the 255 that file systems allow
_PART = ".part-"


class Finished(NamedTuple):
    """A file that is complete, durable and under its own name."""

    size: int
    digest: str  # BLAKE3, hexadecimal


def digest_of(path: Path) -> str:
    """BLAKE3 of a whole file."""
    state, buffer = blake3(), bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(memoryview(buffer)[:count])
    return state.hexdigest()


class Staging:
    """The staging directory of a run, as a context: found or made, and held under lock; removed at the end.

    It stays where the run failed, or was interrupted, in a way that the same command may get over, and a file was
    finished: the next such run goes on from there. Where `precious` is set it stays after any failure, and where
    `stays` is set in any case.
    """

    def __init__(self, out: Path, key: str) -> None:
        self._out, self._lock = out, -1
        self.folder = staging_folder(out, key)
        self.work = self.folder / "work"
        self._journal = self.folder / "journal"
        self.finished: dict[str, Finished] = {}
        self.precious = False  # what is there took more than our own work to make
        self.stays = False

    # Not a generator: a signal between its yield and the body of the `with` would leave the directory behind.
    def __enter__(self) -> Staging:
        try:
            with deferred():  # nor must one come between the lock and our knowing of it
                self._lock = _locked(self.folder, self._out)
            make_directory(self.work)
            self.finished = dict(self._trusted())
            self._remove_unfinished()
            return self
        except BaseException:
            self._leave(keep=bool(self.finished))
            raise

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        resumable = isinstance(error, AdapterToolError) and error.resumable and bool(self.finished)
        keep = resumable or self.stays or (error is not None and self.precious)
        self._leave(keep=keep)
        if keep and isinstance(error, AdapterToolError):
            count = f"{len(self.finished)} finished file{'s' if len(self.finished) > 1 else ''}"
            hint = f"the same command goes on from there; `adaptertool clean {self._out}` removes it"
            raise type(error)(f"{error}; {count} kept in {self.folder}: {hint}") from error

    def _leave(self, *, keep: bool) -> None:
        if self._lock < 0:
            return
        if not keep:
            for _ in range(2):  # what a single failing call left
                shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1

    def part(self, name: str) -> Path:
        """Where to write a file until it is finished: a name that no other run uses, in the directory of its own."""
        path = self.work / name
        make_directory(path.parent)
        return path.with_name(f"{_PART}{secrets.token_hex(8)}")

    def finish(self, part: Path, name: str, digest: str) -> None:
        """Give a complete, durable file its name, and note it."""
        path = self.work / name
        known = Finished(part.stat().st_size, digest)
        entry = {"name": name, "size": known.size, "blake3": known.digest}
        try:
            part.rename(path)
            sync_directory(path.parent)
            with self._journal.open("ab") as file:
                file.write(json.dumps(entry).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"finishing {path} failed: {error.strerror}") from error
        self.finished[name] = known

    def discard(self, name: str) -> None:
        """Remove a file, or a directory and all in it."""
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

    def adopt(self, source: Path, name: str, digest: str) -> None:
        """Take a file over, as a link, if its hash is this. Else, and where there are no links, nothing happens."""
        with contextlib.suppress(OSError):
            if name not in self.finished and digest_of(source) == digest:
                part = self.part(name)
                os.link(source, part)
                self.finish(part, name, digest)

    def _trusted(self) -> Iterator[tuple[str, Finished]]:
        """What an earlier run finished: a file is trusted by its hash only."""
        lines = self._journal.read_bytes().split(b"\n")[:-1] if self._journal.exists() else []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, OSError):  # a line that a kill cut short
                entry = json.loads(line)
                path, known = self.work / entry["name"], Finished(entry["size"], entry["blake3"])
                if path.is_file() and path.stat().st_size == known.size and digest_of(path) == known.digest:
                    yield entry["name"], known

    def _remove_unfinished(self) -> None:
        for path in self.work.rglob("*"):
            if path.is_file() and path.relative_to(self.work).as_posix() not in self.finished:
                path.unlink()


def staging_folder(out: Path, key: str) -> Path:
    place = out.resolve()
    return place.parent / f".{_label(place)}.adaptertool-{key}"


def left_behind(out: Path) -> list[Path]:
    """The staging directories of runs that were to make OUT."""
    place = out.resolve()
    return sorted(place.parent.glob(f".{glob.escape(_label(place))}.adaptertool-*"))


def _label(place: Path) -> str:
    """Its name; where that leaves no room for more, a part of it and a hash, so that no two have the same."""
    name = os.fsencode(place.name)
    return place.name if len(name) <= _LONGEST else f"{place.name[:40]}-{blake3(name).hexdigest(8)}"


def remove(folder: Path, out: Path) -> None:
    """Remove what a run left behind. Raises OutputError where a run is at work there."""
    lock = _locked(folder, out)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise StorageError(f"removing {folder} failed: {error.strerror}") from error
    finally:
        os.close(lock)


def _locked(folder: Path, out: Path) -> int:
    """The descriptor of the lock, held; the folder is made. Another run may remove it between our open and our lock:
    then what we hold is no longer the file of that name, and we begin again."""
    while True:
        make_directory(folder)
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue
        except OSError as error:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if it is empty: ours, or of no use
            raise StorageError(f"{folder} cannot be locked: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_ino == (folder / "lock").stat().st_ino:
                return lock
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise OutputError(f"another run is making {out} at this moment; wait for it, or stop it") from error
            raise StorageError(f"{folder} cannot be locked: {error.strerror}") from error
        os.close(lock)
