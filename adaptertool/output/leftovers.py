"""What other runs have left beside OUT: said when a run begins and when it ends, and removed where it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from adaptertool.errors import AdapterToolError, StorageError
from adaptertool.files.leftovers import Left, left_by_others, remove


class Leftovers:
    """The staging directories of other runs that were to make OUT. Each may be as large as a checkpoint."""

    def __init__(self, out: Path, own: Path, *, clean: bool) -> None:
        """own: the staging directory of this run; clean: remove the others when it has published OUT."""
        self._out, self._own, self._clean = out, own, clean

    def at_start(self) -> Iterator[str]:
        """Notes, before anything is computed."""
        for left in self._found():
            if left.held:
                yield f"another run is making {self._out} at this moment, in {left.folder}"
            elif self._clean and left.held is False and not left.holds_old:
                yield f"{_what(left)}, which is removed when this one is published"
            else:
                yield self._hint(left, f"{_what(left)}, which this one has no use for")

    def at_end(self) -> Iterator[str]:
        """Notes, after OUT was published. What a run at work holds is never removed."""
        for left in self._found():
            if left.held:
                continue
            if not self._clean or left.held is None or left.holds_old:
                yield self._hint(
                    left, f"what an earlier run has left is still there: {left.folder} ({left.size:,} bytes)"
                )
                continue
            try:
                remove(left.folder, self._out)
                yield f"{_what(left)}, which is removed"
            except AdapterToolError as error:
                yield f"{_what(left)}, which was not removed: {error}"

    def _found(self) -> list[Left]:
        with contextlib.suppress(StorageError):  # a directory that cannot be listed is no reason to fail
            return left_by_others(self._out, self._own)
        return []

    def _hint(self, left: Left, what: str) -> str:
        if left.held is None:
            return (
                f"there is {left.folder} ({left.size:,} bytes), of another run; the file system does not tell whether "
                f"that is at work. If it is not, remove it by hand: rm -r {left.folder}"
            )
        old = f"; it holds the old {self._out}, which a run that was killed was to replace" if left.holds_old else ""
        return f"{what}{old}; `adaptertool clean {self._out}` removes it{' with that' if old else ''}"


def _what(left: Left) -> str:
    return f"an earlier run has left {left.folder} ({left.size:,} bytes)"
