"""What tells an input from every other, without reading all of a large one."""

from __future__ import annotations

import os
from pathlib import Path

from blake3 import blake3

_WHOLE = 64 << 20  # bytes of a file that is hashed from end to end
_END = 1 << 20  # bytes at each end of a larger one that are
_LETTERS = 32  # of the hash
_SUFFIXES = (".safetensors", ".json", ".gguf", ".npz", ".txt")


def identity(path: str) -> str:
    """In words: the size of a file, or of a directory's weights and configs, and a BLAKE3 hash of them. Of a directory
    it is that of the lines `name size hash`, sorted; of a file above 64 MiB the first and the last MiB are hashed, and
    it is said. What is not on this disk, or cannot be read, is said to have no hash."""
    try:
        place = Path(path)
        if place.is_file():
            digest, sampled = _hashed(place)
            return _told(place.stat().st_size, digest, sampled=sampled)
        files = sorted(file for file in place.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
        found = [(file, *_hashed(file)) for file in files]
        sizes = [file.stat().st_size for file in files]
    except OSError:
        found = []
    if not found:
        return "no hash: it is not a file or directory that can be read here"
    lines = [
        f"{file.relative_to(place).as_posix()} {size} {digest}\n"
        for (file, digest, _), size in zip(found, sizes, strict=True)
    ]
    whole = blake3("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return _told(sum(sizes), whole, sampled=any(sampled for *_, sampled in found))


def _hashed(file: Path) -> tuple[str, bool]:
    """The hash of a file, and whether it is of its ends alone."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size <= _WHOLE:
            return blake3(opened.read()).hexdigest(), False
        state = blake3(opened.read(_END))
        opened.seek(-_END, os.SEEK_END)
        return state.update(opened.read(_END)).hexdigest(), True


def _told(size: int, digest: str, *, sampled: bool) -> str:
    of = " of the first and last MiB of large files" if sampled else ""
    return f"{size:,} bytes, BLAKE3{of} {digest[:_LETTERS]}"
