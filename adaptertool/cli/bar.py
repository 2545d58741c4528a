"""The progress of a command on stderr: a bar on a terminal, elsewhere (a log) a line now and then."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from adaptertool.cli.boundary import say
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
    lines = _Lines(title, total)
    tqdm.monitor_interval = 0  # no thread beside ours
    terminal = sys.stderr is not None and sys.stderr.isatty()
    with tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        desc=title,
        disable=quiet or not terminal,
        leave=False,
        dynamic_ncols=True,
    ) as shown:

        def progress(count: int) -> None:
            with lock:
                if terminal:
                    shown.update(count)
                elif not quiet:
                    lines.update(count)

        def expect(count: int) -> None:
            with lock:
                shown.reset(count)
                lines.begin(count)

        progress.expect = expect  # type: ignore[attr-defined]
        yield progress


class _Lines:
    """What a log is told: nothing of what is done soon, and of what takes long a line every half minute."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title = title
        self._said = time.monotonic()
        self.begin(total)

    def begin(self, total: int | None) -> None:
        """So much is to be done from here: what has two parts begins twice."""
        self.total, self._done, self._began = total, 0, time.monotonic()

    def update(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._said < _SECONDS:
            return
        self._said, seconds = now, now - self._began
        line = f"{self._title}: {size(self._done)} in {seconds:.0f} s"
        if self.total and self._done:
            left = seconds * max(self.total - self._done, 0) / self._done
            line += f", {min(self._done / self.total, 1):.0%} of {size(self.total)}, about {left:.0f} s left"
        say(line, sys.stderr)
