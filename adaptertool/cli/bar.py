"""The progress bar."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

from tqdm import tqdm


@contextlib.contextmanager
def bar(title: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if that is a terminal; what it gives is told the bytes that are done, by any thread."""

    lock = threading.Lock()
    # disable=None: no bar where stderr is not a terminal
    tqdm.monitor_interval = 0  # no thread beside ours
    hidden = True if quiet or sys.stderr is None else None
    with tqdm(total=total, unit="B", unit_scale=True, desc=title, disable=hidden) as shown:

        def progress(count: int) -> None:
            with lock:
                shown.update(count)

        yield progress
