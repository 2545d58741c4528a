"""The lock of a staging directory. Runs that share the work share it; it protects them from whoever wants the directory
for himself: to clean it, or to make what cannot be shared."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from pathlib import Path

from adaptertool.errors import AdapterToolError, OutputError, StorageError
from adaptertool.files.place import LOCK, PARTS, RECEIPTS, discard, listed, staging_folder
from adaptertool.files.publish import ASIDE, make_directory
from adaptertool.interrupts import LOOK_EVERY, look

ALONE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH  # how it is held
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class NoLocksError(StorageError):
    """The file system has no locks."""


def locked(folder: Path, out: Path, *ways: int) -> tuple[int, int]:
    """The descriptor of the lock, and how it is held: in the first of these ways that can be had; alone, where none is
    given. The folder is made. Another run may remove it between our open and our lock: then what we hold is no longer
    the file of that name, and we begin again. Who may share it waits for those who hold it alone, which is not long.

    Raises OutputError where another run holds the lock, NoLocksError where there are none, and StorageError.
    """
    ways = ways or (ALONE,)
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
            how = next((how for how in ways if takes(lock, how)), None)
            if how is not None and is_lock_of(lock, folder):
                return lock, how
        except OSError as error:
            os.close(lock)
            if set(listed(folder)) == {LOCK}:  # what we made
                discard(folder)
            if error.errno in _NO_LOCKS:
                hint = f"if no run is at work in it, remove it by hand: rm -r {folder}"
                why = f"the file system has no locks ({error.strerror})"
                raise NoLocksError(f"{folder} cannot be locked: {why}; {hint}") from error
            raise StorageError(f"{folder} cannot be locked: {error.strerror}") from error
        os.close(lock)
        if how is None and SHARED not in ways:
            raise OutputError(f"another run is making {out} at this moment; wait for it, or stop it")
        if how is None:
            time.sleep(LOOK_EVERY)
            look()


def takes(lock: int, how: int) -> bool:
    """Whether the lock is held so now, by us; False where others hold it. Raises OSError."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def is_lock_of(lock: int, folder: Path) -> bool:
    """Whether it is the lock of the folder of this name, and not of one that was removed. Raises OSError."""
    try:
        return os.fstat(lock).st_ino == (folder / LOCK).lstat().st_ino
    except FileNotFoundError:
        return False


def made_alone(out: Path) -> tuple[Path, int]:
    """A staging directory for this run alone, where there are no locks: of a name that no other run takes, with the
    descriptor of the lock file in it, on which there is no lock. Raises StorageError."""
    folder = staging_folder(out, secrets.token_hex(8))
    try:
        folder.mkdir(0o700)
        return folder, os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}") from error


def discard_if_empty(folder: Path, out: Path) -> None:
    """Remove the directory unless there is anything that a run has made, or a run is at work."""
    if not folder.is_dir() or any(map(listed, (folder / PARTS, folder / RECEIPTS, folder / ASIDE))):
        return
    try:
        lock, _ = locked(folder, out)
    except NoLocksError:
        pass
    except AdapterToolError:
        return
    else:
        os.close(lock)
    discard(folder)
