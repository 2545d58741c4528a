"""Signals that wait for a good moment.

A handler that raises does so wherever the main thread happens to be: in a callback of a weak reference, or while a
thread is being started, Python can only print "Exception ignored". So while threads of ours are alive, a signal is
noted, and those who wait for them look.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from adaptertool.errors import Interrupted

LOOK_EVERY = 0.1  # seconds: the longest wait between two looks

_state = {"deferring": False, "noted": False}  # only handlers and the main thread touch it


def interrupt() -> None:
    """For the handler of a signal: raises Interrupted, now or at the next look."""
    _state["noted"] = True
    if not _state["deferring"]:
        look()


def look() -> None:
    """Raises Interrupted if a signal was noted."""
    if _state["noted"]:
        _state["noted"] = False
        raise Interrupted("interrupted; nothing was published")


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within it, signals are noted; at its end, or that of the outermost, one that nobody has looked for raises."""
    if _state["deferring"]:
        yield
        return
    try:
        _state["deferring"] = True
        yield
    finally:
        _state["deferring"] = False
    look()
