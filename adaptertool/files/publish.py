"""OUT appears only when it is complete: one rename publishes what was made beside it (files.staging)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from pathlib import Path

from adaptertool.errors import OutputError, StorageError, UsageError, shown
from adaptertool.files import LOCAL, store_of, unfinished
from adaptertool.files.checkpoint import MANIFEST, SUMS, load_manifest
from adaptertool.files.pipeline import holds_weights

ASIDE = "old"  # name in the staging directory
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux: relative to the working directory; exchange both
_NO_SUCH_CALL = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # for files of this kind, or file system
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)

# Called with what is complete and about to be OUT: whoever notes it then knows it again, wherever the run is killed
BEFORE: ContextVar[Callable[[Path], None] | None] = ContextVar("BEFORE", default=None)


def require_local(out: Path) -> None:
    """Raise UsageError for an OUT in a store, of what works in it for longer."""
    if store_of(out) is not LOCAL:
        raise UsageError(f"OUT {out} is in a store, where this command does not write: choose one of this machine")


def check_target(
    out: Path,
    inputs: Sequence[Path],
    files: Iterable[Path] = (),
    *,
    as_file: bool,
    force: bool,
    is_adapter: Callable[[Path], bool] = lambda _: False,
) -> None:
    """Refuse an OUT that cannot or must not be written, before anything is read or computed.

    In the folder of an adapter there is room for it: what lies beside the adapter's own files is no part of it.
    inputs: as they were given. files: those that will be read; in `inputs` they may be links that lead into OUT.

    Raises UsageError, OutputError for what already stands there, or StorageError for a directory without permission.
    """
    if store_of(out) is not LOCAL:
        unfinished.check_target(out, inputs, as_file=as_file, force=force)
        return
    try:
        real = out.resolve()
    except (OSError, RuntimeError) as error:
        raise UsageError(f"OUT {out} is no usable path: {error}") from error
    for given in (*inputs, *(files if os.path.lexists(real) else ())):
        source = given.resolve()
        if (
            real == source
            or real in source.parents
            or (source in real.parents and not (is_adapter(source) and not holds_weights(source)))
        ):
            raise UsageError(f"OUT {out} and the input {given} overlap; inputs are never changed: choose another OUT")
    if real == Path.cwd():
        raise UsageError("OUT is the current directory; give a path that does not exist yet")
    if file := next((folder for folder in real.parents if folder.is_file()), None):
        raise UsageError(f"{file} is a file, so OUT {out} cannot be made in it; choose another OUT")
    if not real.parent.is_dir():
        above = next(folder for folder in real.parents if os.path.lexists(folder))
        if not above.is_dir():
            raise UsageError(f"OUT {out} would lie in {above}, which is a file and no directory; choose another OUT")
        raise UsageError(f"the directory {real.parent} for OUT does not exist; create it first")
    if not os.access(real.parent, os.W_OK | os.X_OK):
        raise StorageError(f"the directory {real.parent} for OUT cannot be written to")
    if out.is_symlink() and not out.exists():
        raise OutputError(f"{out} is a link that leads nowhere; remove it, or choose another OUT")
    _check_free(out, as_file=as_file, force=force)


def _check_free(out: Path, *, as_file: bool, force: bool) -> None:
    """Raise OutputError unless `out` is free, an empty directory, or (with force) a checkpoint that we made."""
    if not os.path.lexists(out) or (not as_file and out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        # --force replaces no files, and nothing that others have made
        way = "replace it with --force" if not as_file and (out / MANIFEST).is_file() else "remove it first"
        raise OutputError(f"{out} exists; choose another OUT, or {way}")
    if as_file or out.is_symlink() or not out.is_dir():
        raise OutputError(
            f"{out} is a file or a link, without a mark of adaptertool: --force does not replace it; remove it first"
        )
    if not (out / MANIFEST).is_file():
        raise OutputError(f"{out} was not made by adaptertool (it has no {MANIFEST}); --force does not replace it")
    ours = load_manifest(out).get("files")
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir()}
    present -= {MANIFEST, SUMS}
    if strange := sorted(present.difference(ours if isinstance(ours, dict | list) else ())):
        raise OutputError(f"{out} holds {shown(strange[0])}, which adaptertool did not put there; move it away first")


def check_space(out: Path, needed: int) -> bool:
    """Refuse a run that the disk cannot hold, before the first byte. Raises StorageError. False where the file system
    does not tell."""
    free = free_space(out)
    if free is not None and needed > free:
        raise StorageError(
            f"{out.resolve().parent} has {free:,} bytes free, but {needed:,} are needed; "
            "make room, or put OUT on another disk"
        )
    return free is not None


def free_space(out: Path) -> int | None:
    """The bytes that are free where OUT will be; None where the file system does not tell: some count no blocks at
    all."""
    try:
        usage = shutil.disk_usage(out.resolve().parent)
    except OSError:
        return None
    return usage.free if usage.total else None


def make_directory(folder: Path, mode: int = 0o777) -> None:
    """Make a folder, and those above it, unless it is there. Raises StorageError."""
    try:
        while True:
            try:
                folder.mkdir(mode, parents=True, exist_ok=True)
                return
            except FileExistsError:  # of a directory: another run removed it just now, and may have made it again
                with contextlib.suppress(FileNotFoundError):
                    if not stat.S_ISDIR(folder.lstat().st_mode):
                        raise
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}") from error


def sync_tree(folder: Path) -> bool:
    """Make the directory entries below `folder` durable; False where the file system cannot."""
    able = True
    for here, _, _ in os.walk(folder):
        able = sync_directory(Path(here)) and able
    return able


def sync_directory(folder: Path) -> bool:
    """Make the entries of a folder durable; False where the file system has no such call, and sees to that by itself or
    not. Raises StorageError."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _NO_SUCH_CALL:
            return False
        raise StorageError(f"making {folder} durable failed: {error.strerror}") from error
    return True


def publish(work: Path, out: Path, *, force: bool) -> None:
    """Put `work` (a complete, durable file or directory) in the place of OUT, in one step.

    What came to stand there since `check_target` is not replaced. If the step cannot be made durable it is undone.

    Raises OutputError where OUT came to exist during the run, and StorageError.
    """
    target = out.resolve()
    as_file = work.is_file()
    _check_free(out, as_file=as_file, force=force)
    # A full directory is exchanged, so that OUT is the old or the new and never absent.
    exchange = not as_file and target.is_dir() and any(target.iterdir())
    if (before := BEFORE.get()) is not None:
        before(work)
    try:
        if exchange:
            _exchange(work, target)
        elif as_file:
            place_file(work, target)
        else:
            work.rename(target)  # replaces an empty directory, and nothing else
    except OSError as error:
        if error.errno in _TAKEN:
            raise OutputError(f"{out} came to exist during the run, and is not replaced") from error
        raise StorageError(f"publishing {out} failed: {error.strerror}") from error
    try:
        sync_directory(target.parent)
    except StorageError:
        if exchange:
            _exchange(work, target)
        elif as_file:
            target.unlink()
        else:
            target.rename(work)
        raise


def place_file(work: Path, target: Path) -> None:
    """Give a file its name, which must be free, in one step. Raises OSError."""
    try:
        os.link(work, target)  # unlike a rename, never replaces
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or os.path.lexists(target):
            raise
        work.rename(target)  # a file system without hard links


def _exchange(first: Path, second: Path) -> None:
    """renameat2(RENAME_EXCHANGE); where the file system has none, two renames with a short gap."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        paths = os.fsencode(first), os.fsencode(second)
        if libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
            return
    aside = first.with_name(ASIDE)  # from where files.staging puts it back after a kill
    second.rename(aside)
    try:
        first.rename(second)
    except BaseException:
        aside.rename(second)
        raise
    aside.rename(first)
