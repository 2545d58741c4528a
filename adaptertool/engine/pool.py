"""Threads that take jobs from one shared iterator, so that few exist at once. What they compute with is set here: each
uses one core, and the arithmetic is that of the standard.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from adaptertool.arithmetic.workspace import Workspace
from adaptertool.errors import Interrupted
from adaptertool.interrupts import LOOK_EVERY, deferred, look
from adaptertool.numerics.rounding import standard_arithmetic

Job = Callable[[Workspace], None]
Result = TypeVar("Result")


@contextlib.contextmanager
def one_core_each() -> Iterator[None]:
    """Signals wait until no thread is in the way, and products run on the thread that asks for them."""
    with deferred(), threadpool_limits(1, "blas"):
        yield


def run_jobs(jobs: Iterator[Job], threads: int) -> None:
    """Run all. Raises the first error of any; the rest then stop."""
    stop, shared = threading.Event(), Shared(jobs)
    with one_core_each(), Pool(threads) as pool:
        all_done(stop, [pool.submit(drain, stop, shared, Workspace()) for _ in range(threads)])


class Pool:
    """Threads that make calls in the order in which they are submitted, as a context: at its end all are made.

    Where the system starts fewer threads than asked for (it has a limit of them), those make all calls; where it starts
    none, a call is made by who submits it.
    """

    def __init__(self, threads: int, name: str = "adaptertool") -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        for number in range(threads):
            thread = threading.Thread(target=self._work, name=f"{name}_{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # how Python says that the system starts no more
                break
            self._threads.append(thread)

    @property
    def size(self) -> int:
        """How many calls are made at once."""
        return max(1, len(self._threads))

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for _thread in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, call: Callable[..., Result], *arguments: Any) -> Future[Result]:
        future: Future[Result] = Future()
        if self._threads:
            self._calls.put((future, functools.partial(call, *arguments)))
        else:
            _settle(future, functools.partial(call, *arguments))
        return future

    def cancel(self) -> None:
        """The calls that are not begun are not made."""
        with contextlib.suppress(Empty):
            while (waiting := self._calls.get_nowait()) is not None:
                waiting[0].cancel()

    def _work(self) -> None:
        while (waiting := self._calls.get()) is not None:
            _settle(*waiting)
            del waiting  # or what it holds would live until the next comes


def _settle(future: Future[Any], call: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            result = call()
        except BaseException as error:  # for who waits for the result
            future.set_exception(error)
        else:
            future.set_result(result)


def all_done(stop: threading.Event, futures: Sequence[Future[None]]) -> None:
    """Wait for all, then raise the first error. On Ctrl-C too all threads stop before files are closed. Raises what the
    futures raised, or Interrupted."""
    # Not concurrent.futures.wait: interrupted while it takes the locks of all futures, it would keep some for ever.
    try:
        for future in futures:
            look()
            while not future.done():
                with contextlib.suppress(TimeoutError):
                    future.exception(LOOK_EVERY)
                look()
    except BaseException:
        stop.set()
        for future in futures:
            future.exception()
        raise
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:  # of one that fails others may hear in the middle of their work, and stop: that is not what went wrong
        raise next((error for error in errors if not isinstance(error, Interrupted)), errors[0])


class Cores:
    """So many threads compute at once, each within this as a context."""

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)

    def __enter__(self) -> None:
        self._free.acquire()

    def __exit__(self, *_: object) -> None:
        self._free.release()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """A thread that computes waits for something else here, and another computes in its place."""
        self._free.release()
        try:
            yield
        finally:
            self._free.acquire()


class Shared:
    """An iterator that several threads draw from: jobs are made when they are taken, so few exist at once."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs, self._lock = jobs, threading.Lock()

    def take(self) -> Job | None:
        with self._lock:
            return next(self._jobs, None)


def drain(stop: threading.Event, jobs: Shared, workspace: Workspace) -> None:
    """Take jobs and do them, until there are none or `stop` is set. Raises what a job raises, and sets `stop` then."""
    try:
        standard_arithmetic()  # a thread has its own, from the one that started it
        with np.errstate(all="ignore"):  # what is not finite is looked for
            alone = threading.current_thread() is threading.main_thread()  # there are no others
            while not stop.is_set() and (job := jobs.take()) is not None:
                if alone:
                    look()
                job(workspace)
    except BaseException:
        stop.set()
        raise
