"""OUT in an object store. A files.stage.Published: nothing can be renamed there, so files get their names as they are
finished, and those without which nothing loads come last, each only where there is none.

Below OUT, until it is published:
    NAME                              a finished file
    .adaptertool-KEY/adaptertool.run  what the run is to make: by it others know what to remove
    .adaptertool-KEY/HASH.json        a receipt (files.receipts) of each, with the ETag that it had

Nobody can hold a lock there. Two runs of one command may be at work: whose receipt is placed first, counts; and all
that is published is what its receipt says, by its ETag. On the local disk is only what is not sent yet.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from adaptertool.errors import AdapterToolError, StorageError
from adaptertool.files import upload
from adaptertool.files.assets import RUN
from adaptertool.files.hashing import DEFAULT, Digests
from adaptertool.files.place import part_name
from adaptertool.files.receipts import Receipt, of_inputs, parsed
from adaptertool.files.scratch import make_scratch, require_scratch
from adaptertool.files.side_by_side import each
from adaptertool.files.stage import NO_FATES, NOTHING, Fates, Finished
from adaptertool.files.unfinished import FOLDER, Run, is_last, remove_old, require_ours, send
from adaptertool.spec.tally import Tally


class RemoteStaging:
    """The work of a run whose OUT is in a store, as a context."""

    unfinished = 1  # files that wait to be sent, beside those that are made: all of them are on the local disk
    alone = False

    def __init__(
        self,
        out: Path,
        key: str,
        hashes: tuple[str, ...] = DEFAULT,
        *,
        names: Sequence[str],
        largest: int = 0,
        labels: Mapping[Path, str] = MappingProxyType({}),
        scratch: Path | None = None,
        part: bool = False,
        force: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """names: of the files within OUT. largest: bytes that are on the local disk at the same time
        scratch: a folder of the local disk to work in. part: only some of the files are made here
        force: an OUT by adaptertool is removed first. stopped: whether no more is to be sent
        """
        self.out, self.hashes, self._stopped, self._part = out, hashes, stopped, part
        self.folder = out / f"{FOLDER}{key}"
        self._run, self._largest, self._scratch = Run(tuple(names)), largest, scratch
        self._labels, self._paths = labels, {label: path for path, label in labels.items()}
        self.finished: dict[str, Finished] = {}
        self.inputs: dict[Path, Digests] = {}
        self._tags: dict[str, str] = {}  # of those of `finished` that are in the store
        self._ours: set[str] = set()
        self._noted: dict[str, Digests] = {}
        self._published, self._force, self._replaced = False, force, False
        self.work = Path()  # set where it is entered

    def __enter__(self) -> RemoteStaging:
        if self._force:
            self._replaced = remove_old(self.out)
        self._require_ours(upload.objects_below(self.out))
        self._local = make_scratch(self._scratch)
        try:
            self.work = self._local / "work"
            self.work.mkdir()
            upload.create(self.folder / RUN, self._run.content())
            self._require_ours(upload.objects_below(self.out))  # of two that begin at once, both hear of it
            self.take_over(by_hash=True)
        except BaseException:
            self._discard()
            shutil.rmtree(self._local, ignore_errors=True)
            raise
        return self

    def _require_ours(self, there: Mapping[str, upload.Object]) -> None:
        require_ours(self.out, self.folder.name, self._run, there)

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def require_space(self, needed: int) -> None:
        """Raises StorageError where the scratch folder has no room for what is not sent yet."""
        require_scratch(self.work, min(needed, self._largest))

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        shutil.rmtree(self._local, ignore_errors=True)
        if self._published or self._part:
            return
        resumable = isinstance(error, AdapterToolError) and error.resumable
        if self._replaced and isinstance(error, AdapterToolError) and not (resumable and self._tags):
            self._discard()
            raise type(error)(f"{error}; what was in {self.out} is removed already") from error
        if not resumable or not self._tags:
            self._discard()
        elif isinstance(error, AdapterToolError):
            count = f"{len(self._tags)} finished file{'s' if len(self._tags) > 1 else ''}"
            hint = f"the same command goes on from there; `adaptertool clean {self.out}` removes it"
            raise type(error)(f"{error}; {count} kept in {self.out}: {hint}") from error

    def _discard(self) -> None:
        """Remove what we have made; where others are at work they make it anew."""
        try:
            receipts = [self._receipt(name).name for name in self._ours]
            upload.remove(self.folder, receipts)
            upload.remove(self.out, sorted(self._ours))
            if not [name for name in upload.objects_below(self.folder) if name != RUN]:
                upload.remove(self.folder, [RUN])
        except AdapterToolError:
            return  # the error that ended the run is the one to tell

    def _receipt(self, name: str) -> Path:
        return self.folder / f"{Receipt(name, '', Finished(0, {})).key}.json"

    def find(self, name: str) -> Finished | None:
        """The file, if it is finished: also by others, since we began."""
        if name not in self.finished and not is_last(name):
            self._take(upload.get(self._receipt(name)))
        return self.finished.get(name)

    def part(self) -> Path:
        """Where to write a file on the local disk until it is finished."""
        return self._local / part_name()

    def finish(self, part: Path, name: str, digests: Digests, tally: Tally = NOTHING, fates: Fates = NO_FATES) -> None:
        """Send a complete file, and let it count as the file of this name, unless another came first. What is to come
        last stays here until then. Raises StorageError."""
        ours = Finished(part.stat().st_size, digests, tally, fates)
        if is_last(name):
            self.finished[name] = ours
            self._place(name, part)
            return
        if self.find(name) is None:
            tag = upload.put_file(self.out / name, part, self._stopped)
            receipt = Receipt(name, part.name, ours, dict(self._noted))
            self._count(receipt, tag)
        part.unlink()

    def _count(self, receipt: Receipt, tag: str) -> None:
        """Place a receipt. Another may be there; which of them is right, the object tells."""
        content = _content(receipt, tag)
        path = self.folder / f"{receipt.key}.json"
        if not upload.create(path, content):
            there = upload.objects_below(self.out).get(receipt.name)
            if self._take(upload.get(path)) and there is not None and self._tags[receipt.name] == there.tag:
                return
            upload.put(path, content)
        self._noted.clear()
        self._ours.add(receipt.name)
        self._take(content)

    def _take(self, content: bytes | None) -> bool:
        """Know of a file by its receipt; whether it is one."""
        receipt = None if content is None else parsed(content, self.hashes)
        if content is None or receipt is None:
            return False
        if receipt.name:
            self.finished[receipt.name] = receipt.finished
            self._tags[receipt.name] = str(json.loads(content).get("tag"))
        self.inputs |= {self._paths[label]: one for label, one in receipt.inputs.items() if label in self._paths}
        return True

    def has_read(self, path: Path, digests: Digests) -> None:
        """Note the digests of an input with the next file."""
        if path in self._labels:
            self._noted[self._labels[path]] = digests

    def discard(self, names: Sequence[str]) -> None:
        """Remove files, and what says that they are finished. Raises StorageError."""
        upload.remove(self.out, [*names, *(f"{self.folder.name}/{self._receipt(name).name}" for name in names)])
        for name in names:
            self.finished.pop(name, None)
            self._tags.pop(name, None)

    def note_inputs(self) -> None:
        """Note the digests that no file came after. Raises StorageError."""
        if self._noted:
            receipt = of_inputs(dict(self._noted))
            upload.create(self.folder / f"{receipt.key}.json", _content(receipt, ""))
            self._noted.clear()

    def take_over(self, *, by_hash: bool) -> None:  # noqa: ARG002  # the tag stands for the bytes
        """What earlier runs have finished, or others at this moment. What is not as its receipt says is made anew.
        Raises StorageError."""
        there, stale = upload.objects_below(self.out), list[str]()
        names = sorted(name for name in there if name.startswith(f"{self.folder.name}/") and name.endswith(".json"))
        for name, content in zip(names, each(upload.get, [self.out / name for name in names]), strict=True):
            receipt = None if content is None else parsed(content, self.hashes)
            if receipt is None or content is None or (receipt.name and not _is_that(receipt, content, there)):
                stale.append(name)
            else:
                self._take(content)
        upload.remove(self.out, stale)

    def assemble(self, names: Iterable[str]) -> None:
        """Empty files in the place of what is in the store already."""
        for name in names:
            if name in self._tags:
                (self.work / name).parent.mkdir(parents=True, exist_ok=True)
                (self.work / name).touch()

    def sync(self) -> None:
        """An object is durable when the store has said that it is there."""

    def publish(self, work: Path, *, force: bool) -> None:  # noqa: ARG002  # there is nothing that is replaced
        """Send what comes last, when all that was sent is as it was. Raises OutputError where OUT came to exist, and
        StorageError."""
        there = upload.objects_below(self.out)
        self._require_ours(there)
        if wrong := [name for name, tag in self._tags.items() if name not in there or there[name].tag != tag]:
            upload.remove(self.folder, [self._receipt(name).name for name in wrong])
            for name in wrong:
                del self._tags[name]
            raise StorageError(f"{self.out / wrong[0]} was removed or changed during the run; run again")
        names = [path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()]
        send(self.out, work, [name for name in names if name not in self._tags], self._stopped)
        self._published = True
        upload.remove(self.out, [name for name in upload.objects_below(self.out) if name.startswith(self.folder.name)])

    def _place(self, name: str, part: Path) -> None:
        (self.work / name).parent.mkdir(parents=True, exist_ok=True)
        part.rename(self.work / name)


def _content(receipt: Receipt, tag: str) -> bytes:
    return json.dumps({**json.loads(receipt.content()), "tag": tag}).encode()


def _is_that(receipt: Receipt, content: bytes, there: Mapping[str, upload.Object]) -> bool:
    found = there.get(receipt.name)
    return found is not None and found.size == receipt.finished.size and found.tag == json.loads(content).get("tag")
