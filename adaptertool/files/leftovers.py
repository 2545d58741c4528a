"""The staging directories that runs have left beside OUT: how they are found, and removed."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from adaptertool.errors import OutputError, StorageError, shown
from adaptertool.files import LOCAL, store_of
from adaptertool.files.lock import ALONE, locked, takes
from adaptertool.files.place import LOCK, discard, is_ours, label_of, listed, restore
from adaptertool.files.publish import ASIDE


def left_behind(out: Path) -> list[Path]:
    """The staging directories of runs that were to make OUT, and links in their place, which come last. Raises
    StorageError where the directory cannot be listed."""
    if store_of(out) is not LOCAL:
        return []
    place = out.resolve()
    named = re.compile(re.escape(f".{label_of(place)}.adaptertool-") + "[0-9a-f]{16}")
    try:
        found = [
            (entry.is_symlink(), Path(entry.path))
            for entry in os.scandir(place.parent)
            if named.fullmatch(entry.name) and (entry.is_symlink() or entry.is_dir())
        ]
        return [path for _, path in sorted(found)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{place.parent} cannot be listed: {error.strerror}") from error


def remove(folder: Path, out: Path) -> None:
    """Remove what a run left behind. Raises OutputError where a run is at work there, others have put something there,
    or it is a link."""
    if folder.is_symlink():
        raise OutputError(
            f"{folder} is a link, which adaptertool did not make; look at where it leads, and remove both"
        )
    if strange := [name for name in listed(folder) if not is_ours(name)]:
        raise OutputError(f"{folder} holds {shown(strange[0])}, which adaptertool did not put there; move it away")
    lock, _ = locked(folder, out)
    try:
        restore(folder, out)
        discard(folder)
    finally:
        os.close(lock)
    if left := listed(folder):
        raise StorageError(f"removing {folder} failed: {', '.join(left)} cannot be removed")


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
        return not takes(lock, ALONE)
    except OSError:
        return None
    finally:
        os.close(lock)


def _size(folder: Path) -> int:
    """The bytes of all files in a folder; what cannot be looked at counts as nothing."""
    total = 0
    for here, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(here) / name).lstat().st_size
    return total
