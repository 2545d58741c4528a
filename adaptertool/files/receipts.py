"""Receipts: what says that a file is finished, and that it is this one. Each is a small file of JSON, written whole and
made durable before it takes its place, by a link: so it is there or not, and the first of several counts.

    {"schema": "receipt/1", "name": the file within OUT, "part": the file that it is, "size": 1234, "blake3": "...",
     "tally": [...], "fates": {...}, "inputs": {"0/model.safetensors": {"blake3": "..."}}}

inputs: of each file of the base (0) and of the sources (1, ...) that was read to its end for this file. A receipt may
be of inputs alone, without the other fields.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from blake3 import blake3

from adaptertool.errors import StorageError
from adaptertool.files.hashing import Digests
from adaptertool.files.place import PART, listed, part_name
from adaptertool.files.stage import Finished
from adaptertool.files.writer import write_small
from adaptertool.patterns import regex
from adaptertool.spec.tally import noted, noted_fates

SCHEMA = "receipt/1"
_HEX = regex("[0-9a-f]{64}")
_PART = regex(re.escape(PART) + "[0-9a-f-]{1,80}")
_END = ".json"
# Where there are no links: two folders or files may not be joined so
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)
_WRITING = 1.0  # seconds in which others have written a receipt, where it takes its place before it is whole


class Receipt(NamedTuple):
    """What a receipt says."""

    name: str  # of the file within OUT; empty: of inputs alone
    part: str  # name of the file that it is
    finished: Finished
    inputs: Mapping[str, Digests] = MappingProxyType({})

    def content(self) -> bytes:
        """As it is written."""
        fields: dict[str, Any] = {"schema": SCHEMA}
        if self.name:
            size, digests, tally, fates = self.finished
            fields |= {"name": self.name, "part": self.part, "size": size, **digests, "tally": tally}
            fields |= {"fates": dict(fates)} if fates else {}
        fields |= {"inputs": {label: dict(digests) for label, digests in sorted(self.inputs.items())}}
        return json.dumps(fields).encode()

    @property
    def key(self) -> str:
        """What it is found by: the file's name, hashed, since that may be long."""
        return blake3(os.fsencode(self.name) if self.name else self.content()).hexdigest(16)


def of_inputs(inputs: Mapping[str, Digests]) -> Receipt:
    """A receipt of inputs alone."""
    return Receipt("", "", Finished(0, {}), inputs)


def parsed(content: bytes, hashes: tuple[str, ...]) -> Receipt | None:
    """The receipt; None for anything else: it may have been cut short, or be of other hashes."""
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(content)
        if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
            return None
        given = fields.get("inputs")
        found = {label: _digests(one, hashes) for label, one in given.items()} if isinstance(given, dict) else {}
        inputs = {label: digests for label, digests in found.items() if digests is not None}
        if "name" not in fields:
            return of_inputs(inputs)
        name, part, size = fields["name"], fields.get("part"), fields.get("size")
        digests, tally = _digests(fields, hashes), noted(fields.get("tally"))
        fates = noted_fates(fields.get("fates", {}))
        if not isinstance(name, str) or not name or not isinstance(part, str) or not _PART.fullmatch(part):
            return None
        if type(size) is not int or size < 0 or digests is None or tally is None or fates is None:
            return None
        return Receipt(name, part, Finished(size, digests, tally, fates), inputs)
    return None


def _digests(fields: object, hashes: tuple[str, ...]) -> Digests | None:
    if not isinstance(fields, dict):
        return None
    found = {name: str(fields.get(name)) for name in hashes}
    return found if all(map(_HEX.fullmatch, found.values())) else None


class Receipts:
    """The receipts in a folder."""

    def __init__(self, folder: Path, hashes: tuple[str, ...]) -> None:
        self.folder, self._hashes = folder, hashes

    def find(self, name: str) -> Receipt | None:
        """The receipt of a file, if it is finished."""
        found = self._read(self._path(name))
        return found if found is not None and found.name == name else None

    def all(self) -> Iterator[Receipt]:
        """All of them, in an order that is always the same. Raises StorageError."""
        for name in listed(self.folder):
            path = self.folder / name
            if name.endswith(_END) and (found := self._read(path)) is not None and self._path_of(found) == path:
                yield found

    def place(self, receipt: Receipt) -> Receipt:
        """Have it count, unless there is one for this name; returns the one that counts. Raises StorageError."""
        target = self._path_of(receipt)
        try:
            while not self._takes(target, receipt.content()):
                found = self._read(target)
                if found is None:  # of a run that was killed where there are no links, or others are at it
                    time.sleep(_WRITING)
                    found = self._read(target)
                if found is not None:
                    return found
                target.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"noting {receipt.name or 'inputs'} in {target} failed: {error.strerror}") from error
        return receipt

    def remove(self, receipt: Receipt) -> None:
        """Remove this receipt; another that came in its place stays. Raises OSError."""
        path = self._path_of(receipt)
        if self._read(path) == receipt:
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{blake3(os.fsencode(name)).hexdigest(16)}{_END}"

    def _path_of(self, receipt: Receipt) -> Path:
        return self.folder / f"{receipt.key}{_END}"

    def _read(self, path: Path) -> Receipt | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            with open(fd, "rb", closefd=False) as file:
                return parsed(file.read(), self._hashes)
        except IsADirectoryError:
            return None
        finally:
            os.close(fd)

    def _takes(self, target: Path, content: bytes) -> bool:
        """Whether it took its place, which was free. Raises OSError."""
        whole = self.folder / part_name()
        try:
            write_small(whole, content)
            try:
                os.link(whole, target)
            except FileExistsError:
                return whole.stat().st_nlink > 1 and target.samefile(whole)  # the answer to the first try was lost
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return _written(target, content)
            return True
        finally:
            with contextlib.suppress(OSError):
                whole.unlink()


def _written(target: Path, content: bytes) -> bool:
    """Write a file that must not be there, at its own place, where there are no links."""
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink()
        raise
    return True
