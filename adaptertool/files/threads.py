"""Threads that wait for a network."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from adaptertool.interrupts import LOOK_EVERY

Result = TypeVar("Result")

_THREADS = 16  # calls at once


class Threads:
    """Threads that make requests, begun with the first. They are daemons: an exit does not wait for a store that does
    not answer."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._lock, self._count, self._idle = threading.Lock(), 0, threading.Semaphore(0)

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        if not self._idle.acquire(blocking=False):
            with self._lock:
                if self._count < _THREADS:
                    self._count += 1
                    threading.Thread(target=self._work, name="adaptertool-store", daemon=True).start()
        self._calls.put((future, call))
        return future

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # for who waits for the result
                    future.set_exception(error)
            del future, call  # or what they hold would live until the next comes
            self._idle.release()


def waited(future: Future[Any]) -> None:
    """Wait for a result, or an error. A signal ends it."""
    while not future.done():
        with contextlib.suppress(TimeoutError):
            future.exception(LOOK_EVERY)
