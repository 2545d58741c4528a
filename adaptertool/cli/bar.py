"""The progress of a command on stderr: a bar on a terminal, elsewhere (a log) a line now and then."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from adaptertool.cli.boundary import say
from adaptertool.cli.table import load
from adaptertool.cli.within import within
from adaptertool.render.text import size

_SECONDS = 30.0  # between two lines of a log


@contextlib.contextmanager
def bar(title: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show how much is done; what it gives is told the bytes that are done, by any thread, and may be told how many
    there will be (engine.progress)."""
    if around := within():
        title = f"{around.title}{title}"
    lock = threading.Lock()
    terminal = sys.stderr is not None and sys.stderr.isatty()
    with contextlib.ExitStack() as opened:
        shown: Shown = _Lines(title, total, quiet=quiet)
        if terminal and not quiet:
            shown = opened.enter_context(load("terminal_bar", "terminal_bar")(title, total))

        def progress(count: int) -> None:
            with lock:
                shown.update(count)

        def expect(count: int) -> None:
            with lock:
                shown.reset(count)

        progress.expect = expect  # type: ignore[attr-defined]
        yield progress


class Shown(Protocol):
    """What progress is told to: bytes that are done since the last time, and how many are to be done from here."""

    def update(self, count: int) -> object: ...

    def reset(self, total: int) -> object: ...


class _Lines:
    """What a log is told: nothing of what is done soon, and of what takes long a line every half minute."""

    def __init__(self, title: str, total: int | None, *, quiet: bool) -> None:
        self._title, self._quiet = title, quiet
        self._said = time.monotonic()
        self.reset(total)

    def reset(self, total: int | None) -> None:
        """So much is to be done from here: what has two parts begins twice."""
        self.total, self._done, self._began = total, 0, time.monotonic()

    def update(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if self._quiet or now - self._said < _SECONDS:
            return
        self._said, seconds = now, now - self._began
        line = f"{self._title}: {size(self._done)} in {seconds:.0f} s"
        if self.total and self._done:
            left = seconds * max(self.total - self._done, 0) / self._done
            line += f", {min(self._done / self.total, 1):.0%} of {size(self.total)}, about {left:.0f} s left"
        say(line, sys.stderr)
