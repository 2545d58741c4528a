"""What is loaded when it is first used: commands, and functions that few runs need.

`import` stands at the top of each file, and for most that is soon enough. Here is the way for those modules that would
prolong each start and are mostly not used: how formats are written that nobody asked for, what verifies an output.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from adaptertool.interrupts import deferred


def load(module: str, name: str) -> Any:
    """What a module has under a name. Raises Interrupted when it is loaded, where a signal came meanwhile."""
    here = threading.current_thread() is threading.main_thread()  # others get no signals
    with deferred() if here else contextlib.nullcontext(), _uncollected():
        # An exception amid the machinery of imports could be lost in a callback
        return getattr(import_module(module), name)


def late(module: str, name: str) -> Callable[..., Any]:
    """The function of a module under a name; that is loaded when it is first called.

    Both are written out where this is called: the tests read there what a file imports.
    """

    @functools.cache
    def found() -> Callable[..., Any]:
        function: Callable[..., Any] = load(module, name)
        return function

    def call(*arguments: Any, **options: Any) -> Any:
        return found()(*arguments, **options)

    return call


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Nobody looks for garbage: what is loaded stays, and a look at all of it, time and again, prolongs the loading."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()
