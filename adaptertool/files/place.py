"""The staging directory as such (files.staging): its name beside OUT, what is in it, and how it is removed."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import secrets
import shutil
import stat
from pathlib import Path

from blake3 import blake3

from adaptertool.errors import OutputError, StorageError
from adaptertool.files.publish import ASIDE
from adaptertool.patterns import regex

_LONGEST = 200  # bytes of a name, of the 255 that file systems allow
PART = ".part-"
LOCK, PARTS, RECEIPTS, WORK, STEPS = "lock", "parts", "receipts", "work", "steps"
_NAMES = regex(  # the last by version 0.1
    rf"{LOCK}|{PARTS}|{RECEIPTS}|{STEPS}|{WORK}(-[0-9a-f]{{16}})?|{ASIDE}|journal"
)


def is_ours(name: str) -> bool:
    """Whether we call anything in a staging directory so."""
    return _NAMES.fullmatch(name) is not None


def staging_folder(out: Path, key: str) -> Path:
    place = out.resolve()
    return place.parent / f".{label_of(place)}.adaptertool-{key}"


def steps_of(out: Path) -> Path:
    """What the staging directory of a recipe's steps is named after, beside the one of its last step, which makes
    OUT."""
    return out.with_name(f"{out.name}.{STEPS}")


def label_of(place: Path) -> str:
    """The name of OUT in that of a staging directory; where it leaves no room for more, a part of it and a hash, so
    that no two have the same."""
    name = os.fsencode(place.name)
    return place.name if len(name) <= _LONGEST else f"{place.name[:40]}-{blake3(name).hexdigest(8)}"


@functools.cache
def host() -> str:
    """What the files of this machine are told by: the system as it was started, also within containers."""
    with contextlib.suppress(OSError):
        return blake3(Path("/proc/sys/kernel/random/boot_id").read_bytes()).hexdigest(4)
    return blake3(platform.node().encode()).hexdigest(4)


def part_name() -> str:
    """A name that no other run gives, which says what machine it is of."""
    return f"{PART}{host()}-{secrets.token_hex(8)}"


def listed(folder: Path) -> list[str]:
    """What is in a folder, by name; nothing, where there is none. Raises StorageError."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{folder} cannot be listed: {error.strerror}") from error


def discard(folder: Path) -> None:
    """Remove the directory, its lock last: who finds it there without a lock would begin to work in it."""
    for _ in range(2):  # what a single failing call left
        for name in sorted({*_all_in(folder)} - {LOCK}, key=lambda name: name != RECEIPTS):  # these say what is whole
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


def _all_in(folder: Path) -> list[str]:
    """What of ours is in it."""
    with contextlib.suppress(StorageError):
        return [name for name in listed(folder) if is_ours(name)]
    return []


def discard_at_once(folder: Path) -> None:
    """Remove the directory while others may be at work in it: it has another name first, so that they find nothing."""
    gone = folder.with_name(f"{folder.name[:-16]}{secrets.token_hex(8)}")
    try:
        folder.rename(gone)
    except OSError:
        gone = folder
    discard(gone)


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
    elsewhere. Of another user none is taken over: what receipts say is trusted."""
    info = folder.lstat()
    if info.st_uid != os.geteuid() and info.st_uid != _owner_of_new(folder):
        raise OutputError(f"{folder} belongs to another user; remove it, or choose another OUT")
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):  # other runs come and go
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
