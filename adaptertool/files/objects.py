"""Object stores: S3 and what speaks like it, Google Cloud Storage, Azure. An object is a file, and a folder is what
keys have in common before a slash.

A file is what its ETag says: all ranges are asked for on the condition that it is still that one. `look` and `entries`
may know of a folder what was there up to two seconds ago; what is opened is asked anew.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from blake3 import blake3

from adaptertool.errors import InputError, StorageError
from adaptertool.files.ahead import Ahead
from adaptertool.files.bucket import ask, client_of, is_gone, key_of, library, reason, told
from adaptertool.files.store import FILE, FOLDER, Entry, InputFile, Store
from adaptertool.spec.tensors import Stamp

_FRESH = 2.0  # seconds that a listing is good for
_KEPT = 64  # listings

_listings: dict[Path, tuple[float, dict[str, bool]]] = {}  # of folders: when, and names -> whether it is a folder
_lock = threading.Lock()


def _open(path: Path) -> InputFile:
    found = _head(path)
    if found is None:
        raise InputError(f"{path} {'does not exist' if _look(path) is None else 'is not a regular file'}")
    obstore, client, key, tag = library(path.parts[0]), client_of(path), key_of(path), found["e_tag"]
    strong = tag and not tag.startswith("W/")
    options: dict[str, Any] = {"if_match": tag} if strong else {}
    same = ("e_tag", "size") if strong else ("e_tag", "size", "last_modified", "version")

    def fetch(begin: int, end: int) -> Any:
        try:
            reply = obstore.get(client, key, options={"range": (begin, end), **options})
            if any(reply.meta[name] != found[name] for name in same):
                raise InputError(f"{path} changed since it was first read; nothing was published, run again")
            data = reply.bytes()
        except Exception as error:
            if is_gone(error) or type(error).__name__ == "PreconditionError" or isinstance(error, InputError):
                raise told(error, path, "read") from error
            raise OSError(None, reason(error)) from error
        if len(data) != end - begin:
            raise OSError(None, f"the store sent {len(data):,} bytes, and not {end - begin:,}")
        return data

    ahead = Ahead(found["size"], fetch)
    return InputFile(path, found["size"], _stamp(found), ahead.read_at, ahead.close)


def _stamp(found: Any) -> Stamp:
    """By the ETag and the version; where there is no strong ETag, by the time too."""
    tag = found["e_tag"]
    told_by = tag if tag and not tag.startswith("W/") else f"{tag}\0{found['last_modified']}"
    state = blake3(f"{told_by}\0{found['version']}".encode()).digest()
    return 0, 0, found["size"], int.from_bytes(state[:7], "big"), int.from_bytes(state[7:14], "big")


def _head(path: Path) -> Any:
    """What the store says of an object; None where there is none. Raises StorageError."""

    def head(obstore: Any, client: Any, key: str) -> Any:
        with contextlib.suppress(FileNotFoundError, ValueError):  # ValueError: a name that no key has
            return obstore.head(client, key)
        return None

    return ask(path, "opened", head) if key_of(path) else None


def _look(path: Path) -> str | None:
    with _lock:
        known = path.parent in _listings
    if known:
        is_folder = _listing(path.parent).get(path.name)
        return None if is_folder is None else FOLDER if is_folder else FILE
    if _head(path) is not None:
        return FILE
    return FOLDER if _listing(path) else None


def _listing(folder: Path) -> dict[str, bool]:
    """The names in a folder, and whether each is one itself; of what is no folder there are none. Raises InputError for
    a bucket that is not there, and StorageError."""
    with _lock:
        when, names = _listings.get(folder, (-_FRESH, {}))
    if time.monotonic() - when < _FRESH:
        return names

    def request(obstore: Any, client: Any, key: str) -> Any:
        with contextlib.suppress(ValueError):
            return obstore.list_with_delimiter(client, key or None)
        return {"common_prefixes": [], "objects": []}

    when, found, key = time.monotonic(), ask(folder, "listed", request), key_of(folder)
    begin = len(key) + 1 if key else 0
    names = {prefix.rstrip("/")[begin:]: True for prefix in found["common_prefixes"]}
    # A key that ends in a slash is what some programs make to have an empty folder
    names |= {one["path"][begin:]: False for one in found["objects"] if one["path"].rstrip("/") != key}
    names.pop("", None)
    with _lock:
        if names:
            while len(_listings) >= _KEPT:
                _listings.pop(next(iter(_listings)))
            _listings[folder] = when, names
        else:
            _listings.pop(folder, None)
    return names


def _entries(folder: Path) -> list[Entry]:
    try:
        # Some stores go on telling of a folder from which all is gone
        if (names := _listing(folder)) or (key_of(folder) and _listing(folder.parent).get(folder.name)):
            return sorted(Entry(name, is_folder) for name, is_folder in names.items())
    except InputError as error:
        raise StorageError(str(error)) from error
    raise StorageError(f"{folder} cannot be listed: No such file or directory")


def _real(path: Path) -> Path:
    return path


def _when(path: Path) -> float | None:
    found = _head(path)
    return None if found is None else float(found["last_modified"].timestamp())


def forget() -> None:
    """Forget what is known of folders."""
    with _lock:
        _listings.clear()


S3, GS, AZ = (
    Store(scheme=scheme, open=_open, look=_look, entries=_entries, real=_real, when=_when)
    for scheme in ("s3", "gs", "az")
)
