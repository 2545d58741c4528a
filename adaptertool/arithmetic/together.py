"""What the blocks of a tensor all wait for, found out once by all threads that come for it."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

Known = TypeVar("Known")
Item = TypeVar("Item")
Found = TypeVar("Found")


class Together(Generic[Known]):
    """A result that several threads ask for: the first one finds it out, and the others take a share of what it does
    by `each`."""

    def __init__(self, find: Callable[[], Known]) -> None:
        self._find = find
        self._changed = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._left = 0  # calls that have not ended
        self._begun = self._done = False
        self._failed: BaseException | None = None
        self._known: Any = None

    def get(self) -> Known:
        """The result. Raises what `find` raises, in every thread."""
        with self._changed:
            leads, self._begun = not self._begun, True
        if leads:
            try:
                self._known = self._find()
            except BaseException as error:
                self._failed = error
            with self._changed:
                self._done = True
                self._changed.notify_all()
        else:
            self._help(lambda: self._done)
        if self._failed is not None:
            raise self._failed
        known: Known = self._known
        return known

    def each(self, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        """What the function gives for each item, in order. Only for `find`. Raises what the function raises."""
        results: list[Any] = [None] * len(items)
        with self._changed:
            self._left = len(items)
            self._calls.extend(functools.partial(self._call, results, function, *own) for own in enumerate(items))
            self._changed.notify_all()
        self._help(lambda: self._left == 0)
        if self._failed is not None:
            raise self._failed
        return results

    def _call(self, results: list[Any], function: Callable[[Item], Found], number: int, item: Item) -> None:
        try:
            results[number] = function(item)
        except BaseException as error:
            with self._changed:
                self._failed = self._failed or error
                self._left -= len(self._calls)
                self._calls.clear()

    def _help(self, enough: Callable[[], bool]) -> None:
        """Make calls, until there are none and it is enough."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or enough())
                if not self._calls:
                    return
                call = self._calls.popleft()
            call()
            with self._changed:
                self._left -= 1
                if self._left == 0:
                    self._changed.notify_all()
