"""How to run: what the callers of all commands that write something choose, beside what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adaptertool.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a run.

    force: replace an OUT that adaptertool made
    threads: the available cores, up to 8, where None
    dry_run: compute all that the report tells, and write nothing (what makes adapters)
    verify: read back what was written, from the disk, and judge it before it is published
    sha256: hash with sha256 too, and write SHA256SUMS
    scratch: where files are until they are sent, if OUT is in a store; where None, as TMPDIR says
    provenance: where to write a statement of provenance (output.provenance says when); implies sha256
    rate, nodes: with a dry run, what each of so many nodes reads and writes in a second, which its cost is told for
    clean: when OUT is published, remove what other runs have left beside it
    fail_if_unchanged: publish nothing where no element differs from the base's
    progress: told the number of bytes just written, by several threads
    before_publish: called when all is computed, just before OUT changes
    note: told what the user should know as soon as it is known
    """

    force: bool = False
    threads: int | None = None
    dry_run: bool = False
    verify: bool = False
    sha256: bool = False
    scratch: Path | None = None
    provenance: Path | None = None
    rate: int | None = None
    nodes: int = 1
    clean: bool = False
    fail_if_unchanged: bool = False
    progress: Callable[[int], None] | None = None
    before_publish: Callable[[], None] | None = None
    note: Callable[[str], None] | None = None

    def tell_progress(self, count: int) -> None:
        if self.progress is not None:
            self.progress(count)

    def tell_note(self, text: str) -> None:
        if self.note is not None:
            self.note(text)

    def begin_publishing(self) -> None:
        if self.before_publish is not None:
            self.before_publish()
