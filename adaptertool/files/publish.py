"""OUT appears only when it is complete: work goes on in a staging directory beside it, one rename publishes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from adaptertool.errors import OutputError, StorageError, UsageError
from adaptertool.files.checkpoint import MANIFEST

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def check_target(out: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse an OUT that cannot or must not be written, before anything is read or computed."""
    real = out.resolve()
    for given in inputs:
        source = given.resolve()
        if real == source or real in source.parents or source in real.parents:
            raise UsageError(f"OUT {out} and the input {given} overlap; inputs are never changed: choose another OUT")
    if not real.parent.is_dir():
        raise UsageError(f"the directory {real.parent} for OUT does not exist; create it first")
    if not os.access(real.parent, os.W_OK | os.X_OK):
        raise StorageError(f"the directory {real.parent} for OUT cannot be written to")
    if not os.path.lexists(out) or (real.is_dir() and not any(real.iterdir())):
        return
    if not force:
        raise OutputError(f"{out} exists; choose another OUT, or replace it with --force")
    ours = (real / MANIFEST).is_file() if real.is_dir() else real.is_file() and out.suffix == ".safetensors"
    if not ours or out.is_symlink():
        raise OutputError(f"{out} was not made by adaptertool (it has no {MANIFEST}); --force does not replace it")


def check_space(out: Path, needed: int) -> None:
    """Refuse a run that the disk cannot hold, before the first byte."""
    free = free_space(out)
    if needed > free:
        raise StorageError(
            f"{out.resolve().parent} has {free:,} bytes free, but {needed:,} are needed; "
            "make room, or put OUT on another disk"
        )


def free_space(out: Path) -> int:
    return shutil.disk_usage(out.resolve().parent).free


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A new directory beside OUT; removed with all that is in it if it was not published."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.adaptertool-", dir=out.resolve().parent))
    except OSError as error:
        raise StorageError(f"{out.resolve().parent} cannot be written to: {error.strerror}") from error
    folder.chmod(0o777 & ~_umask())
    try:
        yield folder
    finally:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_file(path: Path, data: bytes) -> None:
    """Write a small file and make it durable."""
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"writing {path} failed: {error.strerror}") from error


def sync_tree(folder: Path) -> None:
    """Make the directory entries below `folder` durable."""
    for here, _, _ in os.walk(folder):
        sync_directory(Path(here))


def sync_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        raise StorageError(f"making {folder} durable failed: {error.strerror}") from error
    finally:
        os.close(fd)


def publish(work: Path, out: Path) -> None:
    """Put `work` (a complete, durable file or directory) in the place of OUT, in one step."""
    target = out.resolve()
    try:
        # A plain rename replaces a file or an empty directory in one step. A full one is exchanged, so that
        # OUT is the old or the new and never absent; the old one then stands in `work`.
        if target.is_dir() and any(target.iterdir()):
            _exchange(work, target)
            shutil.rmtree(work)
        else:
            work.rename(target)
    except OSError as error:
        raise StorageError(f"publishing {out} failed: {error.strerror}") from error
    sync_directory(target.parent)


def _exchange(first: Path, second: Path) -> None:
    """renameat2(RENAME_EXCHANGE); where the file system has none, two renames with a short gap."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        paths = os.fsencode(first), os.fsencode(second)
        if libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
            return
    aside = Path(tempfile.mkdtemp(prefix=f".{second.name}.adaptertool-old-", dir=second.parent)) / "old"
    second.rename(aside)
    first.rename(second)
    aside.rename(first)
    aside.parent.rmdir()
