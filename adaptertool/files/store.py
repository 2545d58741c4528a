"""The record of a store: where inputs lie, and how they are looked at and read. Outputs are published by a
rename, which is for local ones, or otherwise (files.remote).

A path belongs to a store by its first part: `s3:/bucket/model` to that of the scheme "s3" (`s3://bucket/model` is the
same path, as `pathlib` has it). All others are local. So a path stays a `pathlib.Path`, whose `name`, `parent` and `/`
are right in every store (files.address prints it as typed); but `resolve`, and all else that asks the disk, is for
outputs.

What a store that is not on this machine has to bring:

- *Identity.* `InputFile.stamp` changes whenever the content may have: five integers, the third of which is the size. An
  ETag or a version goes into the others as a number. `Inputs` compares it when a file is opened again, and for all
  inputs at the end of a run: what is opened asks the store anew then, and never a cache.
- *Ranges.* `read_at` fills the begin of a buffer from any offset, for several threads at once; 0 is the end of the
  file. It is asked for 2 to 16 MB of weights, and for headers. A reply that is refused or cut off is asked for again, a
  few times, by the store itself; then it raises OSError, whose `strerror` ends the message. A byte that is flipped on
  its way is found by no one but who knows the digests.
- *Errors.* `open` raises InputError for what is not there or is no file, StorageError for what may work another time;
  `entries` StorageError. Credentials come from the environment and are in no message.
- *Links* are of file systems: elsewhere `real` is the path itself, and no entry is a link.
- *Start.* Its libraries are imported by its functions, not by its file, which everybody imports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from adaptertool.records import dataclass
from adaptertool.spec.tensors import Stamp

FOLDER, FILE, OTHER, BROKEN = "folder", "file", "other", "broken"  # OTHER: a pipe, a device; BROKEN: a link to nothing


@dataclass(frozen=True, slots=True)
class InputFile:
    """An open file and what identified it when it was opened."""

    path: Path
    size: int
    stamp: Stamp
    read_at: Callable[[int, memoryview], int]  # fills the begin of a buffer from an offset on; returns how many bytes
    close: Callable[[], None]
    fd: int | None = None  # what the kernel may copy from; None: not a file of this machine

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Entry(NamedTuple):
    """What lies in a folder, under a name. A link to a folder is one, and a link."""

    name: str
    is_folder: bool
    is_link: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Files of one kind of place. The paths that it is given are its own."""

    scheme: str
    open: Callable[[Path], InputFile]  # for reading; raises InputError, StorageError
    look: Callable[[Path], str | None]  # FOLDER, FILE, OTHER, BROKEN; None: nothing there. Raises nothing for any name
    entries: Callable[[Path], Sequence[Entry]]  # all that is in a folder, by name; raises StorageError
    real: Callable[[Path], Path]  # where links lead; raises OSError or RuntimeError where that is nowhere
    # When a file was last written, in seconds of the epoch; None where there is none, or nobody knows. Raises OSError,
    # StorageError
    when: Callable[[Path], float | None] = lambda _: None
