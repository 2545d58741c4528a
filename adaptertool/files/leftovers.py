"""The staging directory as others find it: its name beside OUT, its lock, its removal, and whether it is ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from adaptertool.errors import OutputError, StorageError, shown
from adaptertool.files.publish import ASIDE, make_directory

_LONGEST = 200  # bytes of a name, of the 255 that file systems allow
PART = ".part-"
LOCK, JOURNAL, WORK = "lock", "journal", "work"
_OURS = {LOCK, JOURNAL, WORK, ASIDE}
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class NoLocksError(StorageError):
    """The file system has no locks."""


def staging_folder(out: Path, key: str) -> Path:
    place = out.resolve()
    return place.parent / f".{_label(place)}.adaptertool-{key}"


def left_behind(out: Path) -> list[Path]:
    """The staging directories of runs that were to make OUT. Raises StorageError where the directory cannot be
    listed."""
    place = out.resolve()
    named = re.compile(re.escape(f".{_label(place)}.adaptertool-") + "[0-9a-f]{16}")
    try:
        return sorted(
            Path(entry.path)
            for entry in os.scandir(place.parent)
            if named.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{place.parent} cannot be listed: {error.strerror}") from error


def _label(place: Path) -> str:
    """The name of OUT in that of a staging directory; where it leaves no room for more, a part of it and a hash, so
    that no two have the same."""
    name = os.fsencode(place.name)
    return place.name if len(name) <= _LONGEST else f"{place.name[:40]}-{blake3(name).hexdigest(8)}"


def remove(folder: Path, out: Path) -> None:
    """Remove what a run left behind. Raises OutputError where a run is at work there, or others have put something."""
    if strange := sorted(set(_listed(folder)) - _OURS):
        raise OutputError(f"{folder} holds {shown(strange[0])}, which adaptertool did not put there; move it away")
    lock = locked(folder, out)
    try:
        restore(folder, out)
        discard(folder)
    finally:
        os.close(lock)
    if left := _listed(folder):
        raise StorageError(f"removing {folder} failed: {', '.join(left)} cannot be removed")


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{folder} cannot be listed: {error.strerror}") from error


def discard(folder: Path) -> None:
    """Remove the directory, its lock last: who finds it there without a lock would begin to work in it."""
    for _ in range(2):  # what a single failing call left
        for name in (WORK, JOURNAL, ASIDE):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
    for last in ((folder / LOCK).unlink, folder.rmdir):
        for _ in range(2):
            with contextlib.suppress(OSError):
                last()
                break  # the next of that name would be another's


def restore(folder: Path, out: Path) -> None:
    """Where a run with --force was killed between two renames, put the old OUT back (files.publish). Raises
    StorageError where that fails."""
    place, aside = out.resolve(), folder / ASIDE
    if os.path.lexists(aside) and not os.path.lexists(place):
        try:
            aside.rename(place)
        except OSError as error:
            raise StorageError(f"the old {out} is {aside}, and cannot be put back: {error.strerror}") from error


def only_plain(folder: Path) -> None:
    """Raise OutputError unless the directory and all in it are plain files and directories: no links that lead
    elsewhere. Of another user none is taken over: what a journal says is trusted."""
    info = folder.lstat()
    if info.st_uid != os.geteuid() and info.st_uid != _owner_of_new(folder):
        raise OutputError(f"{folder} belongs to another user; remove it, or choose another OUT")
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            mode = (Path(here) / name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise OutputError(f"{Path(here) / name} is a link or no file; look at {folder}, and remove it")


def _owner_of_new(folder: Path) -> int:
    """Who owns what we make there: on some network file systems it is not us."""
    probe = folder / f"{PART}{secrets.token_hex(8)}"
    try:
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            return os.fstat(fd).st_uid
        finally:
            os.close(fd)
            probe.unlink()
    except OSError as error:
        raise StorageError(f"{folder} cannot be written to: {error.strerror}") from error


def locked(folder: Path, out: Path) -> int:
    """The descriptor of the lock, held; the folder is made. Another run may remove it between our open and our lock:
    then what we hold is no longer the file of that name, and we begin again.

    Raises OutputError where another run holds the lock, NoLocksError where there are none, and StorageError.
    """
    while True:
        make_directory(folder, 0o700)  # what is in it, nobody else is to change
        if folder.is_symlink():
            raise OutputError(f"{folder} is a link; remove it, or choose another OUT")
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except FileNotFoundError:
            continue
        except OSError as error:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if it is empty: ours, or of no use
            raise StorageError(f"{folder} cannot be locked: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_ino == (folder / LOCK).lstat().st_ino:
                return lock
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise OutputError(f"another run is making {out} at this moment; wait for it, or stop it") from error
            if set(_listed(folder)) == {LOCK}:  # what we made
                discard(folder)
            if error.errno in _NO_LOCKS:
                hint = f"if no run is at work in it, remove it by hand: rm -r {folder}"
                why = f"the file system has no locks ({error.strerror})"
                raise NoLocksError(f"{folder} cannot be locked: {why}; {hint}") from error
            raise StorageError(f"{folder} cannot be locked: {error.strerror}") from error
        os.close(lock)


def made_alone(out: Path) -> tuple[Path, int]:
    """A staging directory for this run alone, where there are no locks: of a name that no other run takes, with the
    descriptor of the lock file in it, on which there is no lock. Raises StorageError."""
    folder = staging_folder(out, secrets.token_hex(8))
    try:
        folder.mkdir(0o700)
        return folder, os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}") from error


class Left(NamedTuple):
    """A staging directory beside OUT, of another run than this one."""

    folder: Path
    size: int  # bytes of its files
    held: bool | None  # by a run that is at work; None: it cannot be told

    @property
    def holds_old(self) -> bool:
        """Whether the OUT that was to be replaced is in it (files.publish)."""
        return os.path.lexists(self.folder / ASIDE)


def left_by_others(out: Path, own: Path) -> list[Left]:
    """The staging directories of other runs that are, or were, to make OUT."""
    return [Left(folder, _size(folder), _held(folder)) for folder in left_behind(out) if folder != own]


def _held(folder: Path) -> bool | None:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    finally:
        os.close(lock)
    return False


def _size(folder: Path) -> int:
    """The bytes of all files in a folder; what cannot be looked at counts as nothing."""
    total = 0
    for here, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(here) / name).lstat().st_size
    return total
