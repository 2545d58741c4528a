"""Bytes on disk: strict headers and indexes, block reads, shard writes, atomic publishing.

And the stores that inputs are read from, one file each. To add one: write the file, add one line here.
"""

from pathlib import Path

from adaptertool.files.local import LOCAL
from adaptertool.files.objects import AZ, GS, S3
from adaptertool.files.store import Store

STORES: tuple[Store, ...] = (LOCAL, S3, GS, AZ)


def store_of(path: Path) -> Store:
    """The store that a path belongs to, by the scheme that it begins with."""
    first = path.parts[:1]
    return next((store for store in STORES if store.scheme and first == (f"{store.scheme}:",)), LOCAL)


__all__ = ["LOCAL", "STORES", "Store", "store_of"]
