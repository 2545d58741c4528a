"""What a file system does not have, and a run goes on without, and says so."""

from __future__ import annotations

from pathlib import Path

from adaptertool.files import publish


class Lacks:
    """What was asked for and was not there, each once, with what follows."""

    def __init__(self) -> None:
        self._what: dict[str, None] = {}

    def note(self, what: str) -> None:
        self._what[what] = None

    def told(self, folder: Path) -> tuple[str, ...]:
        """One note at most."""
        what = "; without ".join(self._what)
        return (f"{folder} is on a file system without {what}",) if what else ()

    def require_space(self, out: Path, needed: int) -> None:
        """Raises StorageError where the disk cannot hold so many bytes more."""
        if not publish.check_space(out, needed):
            self.note("a count of its free space, so a full disk is found only when it is full")

    def sync(self, folder: Path | None, tree: Path) -> None:
        """Make the entries of a folder durable; of a whole tree, where None."""
        if not (publish.sync_tree(tree) if folder is None else publish.sync_directory(folder)):
            self.note("fsync of directories, so that OUT outlasts a power cut is not certain")
