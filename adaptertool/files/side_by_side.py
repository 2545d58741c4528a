"""What is asked of many files in a store: several at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from adaptertool.files import LOCAL, store_of
from adaptertool.files.threads import Threads, waited

Result = TypeVar("Result")

_CALLS = Threads()  # of many requests each, which others make


def each(call: Callable[[Path], Result], paths: Iterable[Path]) -> list[Result]:
    """What a call returns of each path, in their order: of those in a store several at once. Raises what the first of
    them raises that fails."""
    paths = list(paths)
    if len(paths) < 2 or all(store_of(path) is LOCAL for path in paths):
        return [call(path) for path in paths]
    futures = [_CALLS.submit(functools.partial(call, path)) for path in paths]
    try:
        for future in futures:
            waited(future)
            future.result()
    finally:
        for future in futures:
            future.cancel()
    return [future.result() for future in futures]
