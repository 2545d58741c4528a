"""The directory beside OUT that runs work in. Its name belongs to OUT and to what is made, so that the same command
finds it again after a kill, a full disk or Ctrl-C, and goes on; and so do others that make a part of the same, on this
machine or on another that has the file system. Another command never meets it.

In .OUT.adaptertool-KEY:
    receipts  a file for each file that is finished (files.receipts): what is not named there is not finished
    parts     the files themselves, under names that nobody else gives
    work-...  what is to be OUT, of one run: links to the parts, and small files
    lock      held (flock) while a run is at work, so that nobody cleans: several share it

A run that cannot share its work, since it writes to `work` itself, holds the lock alone. Where there are no locks such
a run has a directory of its own, with a random KEY, and no other goes on from it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from adaptertool.errors import AdapterToolError, InputError, StorageError
from adaptertool.files import publish
from adaptertool.files.hashing import DEFAULT, Digests
from adaptertool.files.lacks import Lacks
from adaptertool.files.lock import ALONE, SHARED, discard_if_empty, held, is_lock_of, made_alone, takes
from adaptertool.files.place import WORK, discard, discard_at_once, only_plain, restore, staging_folder
from adaptertool.files.publish import make_directory
from adaptertool.files.receipts import Receipt, of_inputs
from adaptertool.files.shelf import Shelf
from adaptertool.files.stage import NO_FATES, NOTHING, Fates, Finished
from adaptertool.interrupts import deferred
from adaptertool.spec.tally import Tally


class Staging:
    """The staging directory of a run, as a context: found or made; removed at the end. A files.stage.Stage.

    It stays where the run failed, or was interrupted, in a way that the same command may get over, and a file was
    finished. Where `precious` is set it stays after any failure, and where `stays` is set in any case. While others are
    at work in it, it is theirs, unless OUT is published.
    """

    def __init__(
        self,
        out: Path,
        key: str,
        hashes: tuple[str, ...] = DEFAULT,
        *,
        labels: Mapping[Path, str] = MappingProxyType({}),
        shared: bool = False,
        part: bool = False,
    ) -> None:
        """labels: of inputs, in receipts. shared: with others at work at the same time, who may make only a `part`"""
        self._out, self._lock, self.hashes = out, -1, hashes
        self._shared, self._part, self._labels = shared, part, labels
        self._paths = {label: path for path, label in labels.items()}
        self._in(staging_folder(out, key))
        self.finished: dict[str, Finished] = {}
        self._named: dict[str, Receipt] = {}  # the receipts of these
        self._made: list[Receipt] = []  # those that are ours
        self.precious = False  # what is there took more than our own work to make
        self.stays = part
        self.alone, self.unfinished = False, 16  # no other run finds it; files written and not yet durable, all open
        self._lockless = self._published = False
        self._unfinished: set[Path] = set()
        self._lacks = Lacks()
        self._noted: dict[str, Digests] = {}
        self.inputs: dict[Path, Digests] = {}  # that were read to their end

    def _in(self, folder: Path) -> None:
        self.folder, self._shelf, self.work = (
            folder,
            Shelf(folder, self.hashes),
            folder / f"{WORK}-{secrets.token_hex(8)}",
        )

    # Not a generator: a signal between its yield and the body of the `with` would leave the directory behind.
    def __enter__(self) -> Staging:
        try:
            with deferred():  # nor must one come between the lock and our knowing of it
                how = self._hold()
            if how == ALONE or self._lockless:
                restore(self.folder, self._out)
            only_plain(self.folder)
            self._shelf.make()
            if how == ALONE:
                self._shelf.remove_unfinished()
            make_directory(self.work)
            if how == ALONE and self._shared:
                takes(self._lock, SHARED)
            if not self._part:
                self.take_over(by_hash=True)
            return self
        except BaseException:
            self._leave(keep=self.stays or self._shelf.holds_any())  # also what we have not heard of yet
            raise

    def _hold(self) -> int | None:
        """Returns how the lock is held; None where there are none. Alone at first, to remove what dead runs left."""
        ways = (SHARED,) if self._part else (ALONE, SHARED) if self._shared else (ALONE,)
        self._lock, how = held(self.folder, self._out, *ways)
        self._lockless = how is None
        if self._lockless and self._shared:
            self._lacks.note("locks, so it cannot be told whether a run is at work in what one leaves there")
        elif self._lockless:
            self.alone, (folder, self._lock) = True, made_alone(self._out)
            self._in(folder)
            self._lacks.note("locks, so the work is done in a directory of its own and cannot be continued")
        return how

    @property
    def notes(self) -> tuple[str, ...]:
        """What the file system does not have, and the run went on without."""
        return self._lacks.told(self.folder.parent)

    def require_space(self, needed: int) -> None:
        """Raises StorageError where there is no room for so many bytes more."""
        self._lacks.require_space(self._out, needed)

    def sync(self, folder: Path | None = None) -> None:
        """Make the entries of a directory durable; of all that is to be OUT, where None."""
        self._lacks.sync(folder, self.work)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        resumable = isinstance(error, AdapterToolError) and error.resumable and bool(self.finished) and not self.alone
        keep = resumable or self.stays or (error is not None and self.precious)
        if isinstance(error, InputError):  # what we made may be of inputs that have changed meanwhile
            with contextlib.suppress(OSError):
                for receipt in self._made:
                    self._shelf.remove(receipt)
        self._leave(keep=keep)
        if keep and isinstance(error, AdapterToolError) and self.finished and not self._part:
            count = f"{len(self.finished)} finished file{'s' if len(self.finished) > 1 else ''}"
            hint = f"the same command goes on from there; `adaptertool clean {self._out}` removes it"
            if self.alone:
                hint = "no command goes on from there, since the file system has no locks; remove it by hand"
            raise type(error)(f"{error}; {count} kept in {self.folder}: {hint}") from error

    def _leave(self, *, keep: bool) -> None:
        """Remove what is only ours; and the directory, unless it is to be kept, or others are at work in it."""
        if self._lock < 0 and not self._lockless:
            return
        mine, lock = not self._shared, self._lock
        with contextlib.suppress(OSError):
            mine = mine or (lock >= 0 and is_lock_of(lock, self.folder) and takes(lock, ALONE))
        if self._published and self._shared:
            discard_at_once(self.folder)
        elif mine and not keep:
            discard(self.folder)
        else:
            shutil.rmtree(self.work, ignore_errors=True)
            for path in self._unfinished:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        if lock >= 0:
            os.close(lock)
        if (self._lockless or self._part) and not (self._published or self.alone):
            discard_if_empty(self.folder, self._out)
        self._lock, self._lockless = -1, False

    def find(self, name: str) -> Finished | None:
        """The file, if it is finished: also by others, since we began; then it is as large as its receipt says."""
        found = None if name in self.finished else self._shelf.receipts.find(name)
        if found is not None and self._shelf.holds(found, by_hash=False):
            self._take(found)
        return self.finished.get(name)

    def part(self) -> Path:
        """Where to write a file until it is finished. Raises OutputError where the directory is not there any more."""
        self._shelf.require_there(self._out)
        path = self._shelf.new()
        self._unfinished.add(path)
        return path

    def finish(self, part: Path, name: str, digests: Digests, tally: Tally = NOTHING, fates: Fates = NO_FATES) -> None:
        """Let a complete, durable file count as the file of this name, unless another came first. Raises StorageError,
        and OutputError where the directory is not there any more."""
        with self._unless_gone(name):
            ours = Finished(part.stat().st_size, digests, tally, fates)
            self.sync(part.parent)
            placed = self._shelf.place(Receipt(name, part.name, ours, dict(self._noted)))
            self.sync(self._shelf.receipts.folder)
            if placed.part == part.name:
                self._made.append(placed)
                self._noted.clear()
            else:
                part.unlink(missing_ok=True)
        self._unfinished.discard(part)
        self._take(placed)
        if not self._shared:
            self.assemble([name])

    def has_read(self, path: Path, digests: Digests) -> None:
        """Note the digests of an input with the next file, for others: sizes and times of all inputs are in the key."""
        if path in self._labels:
            self._noted[self._labels[path]] = digests

    def note_inputs(self) -> None:
        """Note the digests that no file came after. Raises StorageError."""
        if self._noted:
            self._shelf.receipts.place(of_inputs(dict(self._noted)))
            self.sync(self._shelf.receipts.folder)
            self._noted.clear()

    def assemble(self, names: Iterable[str]) -> None:
        """Put finished files into `work`, under their names. Raises StorageError, and OutputError where the directory
        is not there any more."""
        for name in names:
            with self._unless_gone(name):
                self._shelf.put(self._named[name], self.work / name)

    def publish(self, work: Path, *, force: bool) -> None:
        """Put `work`, or a file in it, in the place of OUT. Raises as `publish.publish` does."""
        publish.publish(work, self._out, force=force)
        self._published = True

    def discard(self, name: str) -> None:
        """Remove a file, or a directory and all in it. Raises StorageError."""
        path, inside = self.work / name, f"{name}/"
        try:
            for key in [key for key in self._named if f"{key}/".startswith(inside)]:
                self.finished.pop(key)
                self._shelf.remove(self._named.pop(key))
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"removing {path} failed: {error.strerror}") from error

    def take_over(self, *, by_hash: bool) -> None:
        """Hear of all that is finished. What is not as its receipt says is removed. Raises StorageError."""
        for receipt in tuple(self._shelf.receipts.all()):
            if not receipt.name or self._shelf.holds(receipt, by_hash=by_hash):
                self._take(receipt)
                continue
            with contextlib.suppress(OSError):
                self._shelf.remove(receipt)
        if not self._shared:
            self.assemble(self.finished)

    @contextlib.contextmanager
    def _unless_gone(self, name: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            self._shelf.require_there(self._out)
            raise
        except OSError as error:
            self._shelf.require_there(self._out)
            raise StorageError(f"finishing {self.work / name} failed: {error.strerror}") from error

    def _take(self, receipt: Receipt) -> None:
        if receipt.name:
            self._named[receipt.name], self.finished[receipt.name] = receipt, receipt.finished
        self.inputs |= {self._paths[label]: one for label, one in receipt.inputs.items() if label in self._paths}
