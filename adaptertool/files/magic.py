"""Files that are something else than their name says, known by their first bytes."""

from __future__ import annotations

from adaptertool.errors import shown

START = 512  # so many bytes are looked at: where a tar archive says what it is

_PICKLE = "is a pickle, not safetensors; pickles are never opened: save it as safetensors"
_PAGE = "is an HTML or XML page, not the file itself: the download failed, download it again"
_MAGICS = (
    (b"version https://git-lfs", "is a git-LFS pointer, not the file itself: run `git lfs pull`"),
    (b"<!doctype", _PAGE),
    (b"<html", _PAGE),
    (b"<?xml", _PAGE),
    (b"gguf", "is a GGUF file, not safetensors: give it a name that ends in .gguf, and its own path"),
    (b"pk\x03\x04", "is a zip archive (a PyTorch pickle?), not safetensors; pickles are never opened"),
    *((b"\x80" + bytes([protocol]), _PICKLE) for protocol in range(2, 6)),
    (b"\x1f\x8b", "is compressed by gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it first"),
    (b"\xfd7zxz", "is compressed by xz: unpack it first"),
    (b"bzh", "is compressed by bzip2: unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
    (b"\x89hdf", "is an HDF5 file, not safetensors: convert it first"),
    (b"\x93numpy", "is a NumPy file, not safetensors: convert it first"),
)


def told_apart(start: bytes) -> str:
    """What a file is that begins so, and what to do about it; empty where it is not known."""
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    low = start[:32].lower()
    return next((remark for magic, remark in _MAGICS if low.startswith(magic)), "")


def as_text(start: bytes) -> str:
    """What a file is that should hold no text, and begins with some: what an error of a server was saved as. Empty
    where it does not."""
    head = start[:60]
    if len(head) < 8 or not all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return ""
    return f"is text, not safetensors (the download failed?); it begins: {shown(head.decode())}"
