"""The folder of the local disk in which files are that are not sent to a store yet."""

from __future__ import annotations

import tempfile
from pathlib import Path

from adaptertool.errors import StorageError
from adaptertool.files.publish import free_space


def make_scratch(within: Path | None) -> Path:
    """A new folder, within that one; where None, where TMPDIR says. Raises StorageError."""
    try:
        return Path(tempfile.mkdtemp(prefix="adaptertool-", dir=within))
    except OSError as error:
        where = within or tempfile.gettempdir()
        raise StorageError(f"{where} cannot be written to: {error.strerror}; choose another (--scratch)") from error


def require_scratch(scratch: Path, needed: int) -> None:
    """Raises StorageError where there is no room for what is not sent yet."""
    free = free_space(scratch)
    if free is not None and free < needed:
        raise StorageError(
            f"{scratch.parent} has {free:,} bytes free, but {needed:,} are needed for what is not sent yet; "
            "choose another folder (--scratch, TMPDIR)"
        )
