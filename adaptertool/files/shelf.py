"""The finished files of a staging directory: parts, and the receipts that say which file each is."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path, PurePosixPath

from adaptertool.errors import OutputError, StorageError
from adaptertool.files.hashing import digests_of
from adaptertool.files.place import PART, PARTS, RECEIPTS, WORK, host, listed, part_name
from adaptertool.files.publish import make_directory
from adaptertool.files.receipts import NO_LINKS, Receipt, Receipts


class Shelf:
    """They stay where they were written, and get links where they are to be used."""

    def __init__(self, folder: Path, hashes: tuple[str, ...]) -> None:
        self._folder, self._hashes = folder, hashes
        self.parts, self.receipts = folder / PARTS, Receipts(folder / RECEIPTS, hashes)

    def make(self) -> None:
        for folder in (self.receipts.folder, self.parts):
            make_directory(folder)

    def holds_any(self) -> bool:
        """Whether there is any receipt, be it as it may; also where that cannot be told."""
        try:
            return bool(listed(self.receipts.folder))
        except StorageError:
            return True

    def new(self) -> Path:
        """Where to write a part."""
        return self.parts / part_name()

    def holds(self, receipt: Receipt, *, by_hash: bool) -> bool:
        """Whether its file is there, as large as it says; and of these bytes, where it is to be read."""
        with contextlib.suppress(OSError, StorageError):
            path = self._located(receipt)
            if path is None or path.stat().st_size != receipt.finished.size:
                return False
            return not by_hash or digests_of(path, self._hashes) == receipt.finished.digests
        return False

    def place(self, receipt: Receipt) -> Receipt:
        """Have a receipt count, unless there is one of a file that is there; returns the one that counts. Raises
        StorageError, OSError."""
        placed = self.receipts.place(receipt)
        if placed.part == receipt.part or self.holds(placed, by_hash=False):
            return placed
        self.remove(placed)
        return self.receipts.place(receipt)

    def put(self, receipt: Receipt, target: Path) -> None:
        """Give its file another name, by a link; where there are none, instead of its own. Raises StorageError."""
        source = self._located(receipt)
        if source is None:
            raise StorageError(f"{receipt.name} is gone from {self._folder}; run again")
        make_directory(target.parent)
        if source == target:
            return
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            source.rename(target)

    def remove(self, receipt: Receipt) -> None:
        """Remove a receipt and its file. Raises OSError."""
        self.receipts.remove(receipt)
        if (path := self._located(receipt)) is not None:
            path.unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Remove what no receipt names, of runs of this machine that are dead. Of others we may not have heard, where
        locks are those of one machine."""
        receipts = list(self.receipts.all())
        named, ours = {receipt.part for receipt in receipts}, f"{PART}{host()}-"
        moved = [receipt.name for receipt in receipts if receipt.name and not (self.parts / receipt.part).exists()]
        with contextlib.suppress(OSError):
            for path in (*self.parts.iterdir(), *self.receipts.folder.iterdir()):
                if path.name.startswith(ours) and path.name not in named:
                    path.unlink(missing_ok=True)
        for path in self._works():
            if not any((path / name).exists() for name in moved):
                shutil.rmtree(path, ignore_errors=True)

    def require_there(self, out: Path) -> None:
        """Raises OutputError where the directory was removed, as by another run that has published OUT."""
        if not self.parts.is_dir():
            raise OutputError(
                f"{self._folder} is gone: another run of the same command has published {out}, or "
                "`adaptertool clean` removed it"
            )

    def _located(self, receipt: Receipt) -> Path | None:
        """Where its file is: where there are no links it may have been on its way into OUT when a run was killed."""
        name = PurePosixPath(receipt.name)
        if name.as_posix() != receipt.name or name.is_absolute() or ".." in name.parts or "\0" in receipt.name:
            return None
        with contextlib.suppress(OSError, ValueError, StorageError):
            for path in (self.parts / receipt.part, *(one / name for one in self._works())):
                if path.is_file() and path.resolve() == path.parent.resolve() / path.name:
                    return path
        return None

    def _works(self) -> list[Path]:
        """The folders of runs, in which they put together what is to be OUT. Raises StorageError."""
        return [self._folder / name for name in listed(self._folder) if name.startswith(f"{WORK}-")]
