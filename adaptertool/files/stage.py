"""What the engine wants of the place that a run works in. There may be several at once, in several processes or on
several machines: each file is made by whoever comes to it, and the one whose receipt (files.receipts) is placed first
counts.

`files.staging` is a directory beside OUT. What is to be published elsewhere, an object store for instance, fills the
same two protocols: `part` gives a file on the local disk, `finish` brings it to where it belongs and then places its
receipt, `publish` brings the small files, those last without which nothing loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from adaptertool.files.hashing import Digests
from adaptertool.spec.tally import Fate, Tally

NOTHING = Tally()
Fates = Mapping[str, Fate]
NO_FATES: Fates = MappingProxyType({})


class Finished(NamedTuple):
    """A file that is complete and durable."""

    size: int
    digests: Digests
    tally: Tally = NOTHING  # of the elements that were edited in it
    fates: Fates = NO_FATES  # of weights that stay codes, by family


class Stage(Protocol):
    """Where files are made until they are published: what the engine wants of it."""

    hashes: tuple[str, ...]  # that each file is to have
    work: Path  # a folder of the local disk, that files are named by in messages
    unfinished: int  # files that may wait to be finished, of each output one at least
    finished: dict[str, Finished]  # by name within OUT; as far as this process has heard
    inputs: dict[Path, Digests]  # of inputs that were read to their end, by whomever

    def find(self, name: str) -> Finished | None:
        """The file, if it is finished: also by another, since this run began."""
        ...

    def part(self) -> Path:
        """Where to write a file until it is finished: a name that nobody else uses. Raises OutputError, and
        StorageError."""
        ...

    def finish(self, part: Path, name: str, digests: Digests, tally: Tally = NOTHING, fates: Fates = NO_FATES) -> None:
        """A part is complete and durable: from now on it is the file of that name, unless another came first. Then
        the other is in `finished`, and the part is removed. Raises OutputError, StorageError."""

    def has_read(self, path: Path, digests: Digests) -> None:
        """Note the digests of an input with the next file, for others."""


class Published(Stage, Protocol):
    """A stage from which OUT is published, as a context: what `output` wants of it. Its end removes what is of no more
    use, and keeps what the same command goes on with."""

    folder: Path  # what messages say where the work is kept

    def __enter__(self) -> Published: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the place does not have, and the run goes on without."""
        ...

    def require_space(self, needed: int) -> None:
        """Raises StorageError where there is no room for so many bytes more."""

    def take_over(self, *, by_hash: bool) -> None:
        """Hear of all that is finished. What is not as its receipt says is removed."""

    def note_inputs(self) -> None:
        """Note the digests that no file came after."""

    def assemble(self, names: Iterable[str]) -> None:
        """Finished files are to be in `work`, or as good as: small ones are then written there, the manifest last."""

    def sync(self) -> None:
        """Make all that is to be published durable."""

    def publish(self, work: Path, *, force: bool) -> None:
        """Let `work`, or a file in it, be OUT. Raises OutputError where OUT came to exist, StorageError."""
