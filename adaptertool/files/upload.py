"""Objects that are written: in parts where they are large, made only where there is none, listed, removed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from adaptertool.errors import Interrupted
from adaptertool.files.bucket import ask, key_of, require_signing
from adaptertool.files.objects import forget

Result = TypeVar("Result")

_PART, _PARTS = 8 << 20, 9_000  # bytes of a part; parts of one object, of the 10,000 that S3 allows
WHOLE = 64 << 20  # bytes of what is sent at once on the condition that there is none: of parts no store is asked that
_AT_ONCE = 6  # parts on their way at the same time: 50 MB of memory


class Object(NamedTuple):
    """What a store says of an object."""

    tag: str  # its ETag, or version: another after each change
    size: int


def put_file(path: Path, source: Path, stopped: Callable[[], bool]) -> str:
    """Write an object that holds what a file does, or replace one; returns its tag. The object is there whole, or as it
    was before: what was sent of it in vain is taken back, but by a process that is killed, or where the reply that
    names the upload broke off.

    Raises Interrupted, StorageError.
    """
    size = source.stat().st_size
    part = max(_PART, -(-size // _PARTS >> 20) << 20)

    def pieces() -> Iterator[bytes]:
        with source.open("rb") as file:
            while data := file.read(part):
                if stopped():
                    raise Interrupted("interrupted; nothing was published")
                yield data

    def put(obstore: Any, client: Any, key: str) -> Any:
        if size <= part:
            return obstore.put(client, key, source.read_bytes(), mode="overwrite", use_multipart=False)
        return obstore.put(client, key, pieces(), chunk_size=part, max_concurrency=_AT_ONCE, use_multipart=True)

    return _tag(_written(path, put))


def put(path: Path, content: bytes) -> str:
    """Write a small object, or replace one; returns its tag. Raises StorageError."""
    return _tag(_written(path, lambda obstore, client, key: obstore.put(client, key, content, mode="overwrite")))


def create(path: Path, content: bytes) -> bool:
    """Write a small object where there is none; returns whether it holds this now. Where a reply is lost it may be ours
    that was there already. Raises StorageError."""

    def put(obstore: Any, client: Any, key: str) -> bool:
        try:
            obstore.put(client, key, content, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return bytes(obstore.get(client, key).bytes()) == content
        return True

    return _written(path, put)


def keeps(path: Path, content: bytes) -> bool:
    """Whether the store does not replace this object, which is there and holds this, where it is asked to make it. Some
    servers do not know of conditions. Raises StorageError."""
    if not create(path, content + b"\n"):
        return True
    put(path, content)
    return False


def _written(path: Path, call: Callable[[Any, Any, str], Result]) -> Result:
    require_signing(path)
    return ask(path, "written", call)


def get(path: Path) -> bytes | None:
    """The content of a small object; None where there is none. Raises StorageError."""

    def read(obstore: Any, client: Any, key: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return bytes(obstore.get(client, key).bytes())
        return None

    return ask(path, "read", read)


def look(path: Path) -> Object | None:
    """What there is of that very name. Raises StorageError."""

    def head(obstore: Any, client: Any, key: str) -> Object | None:
        with contextlib.suppress(FileNotFoundError):
            found = obstore.head(client, key)
            return Object(_tag(found), found["size"])
        return None

    return ask(path, "looked at", head)


def objects_below(folder: Path) -> dict[str, Object]:
    """All objects whose keys begin with that of a folder, by the rest of their keys. Raises InputError where there is
    no such bucket, and StorageError."""
    begin = len(key_of(folder)) + 1 if key_of(folder) else 0

    def listed(obstore: Any, client: Any, key: str) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = obstore.list(client, key or None).collect()
        return found

    found = ask(folder, "listed", listed)
    return {one["path"][begin:]: Object(_tag(one), one["size"]) for one in found if one["path"][begin:]}


def remove(folder: Path, names: Sequence[str]) -> None:
    """Remove objects; those that are gone already are no matter. Raises StorageError."""
    forget()
    for begin in range(0, len(names), 500):
        some = [key_of(folder / name) for name in names[begin : begin + 500]]
        ask(folder, "removed", lambda obstore, client, _, some=some: _delete(obstore, client, some))  # type: ignore[misc]


def _delete(obstore: Any, client: Any, keys: Sequence[str]) -> None:
    """All at once; where some are gone already, as Azure and Google say, one after the other."""
    with contextlib.suppress(FileNotFoundError):
        obstore.delete(client, list(keys))
        return
    for key in keys:
        with contextlib.suppress(FileNotFoundError):
            obstore.delete(client, key)


def _tag(facts: Any) -> str:
    """Without its quotes: Azure's lists have none."""
    return str(facts["e_tag"] or facts["version"]).strip('"')
