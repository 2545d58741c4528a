"""Threads that take jobs from one shared iterator, so that few exist at once. What they compute with is set here: each
uses one core, and the arithmetic is that of the standard.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from adaptertool.blocks import Workspace
from adaptertool.errors import Interrupted
from adaptertool.interrupts import LOOK_EVERY, deferred, look
from adaptertool.numerics.rounding import standard_arithmetic

Job = Callable[[Workspace], None]


@contextlib.contextmanager
def one_core_each() -> Iterator[None]:
    """Signals wait until no thread is in the way, and products run on the thread that asks for them."""
    with deferred(), threadpool_limits(1, "blas"):
        yield


def run_jobs(jobs: Iterator[Job], threads: int) -> None:
    """Run all. Raises the first error of any; the rest then stop."""
    stop, shared = threading.Event(), Shared(jobs)
    with one_core_each(), ThreadPoolExecutor(threads, thread_name_prefix="adaptertool") as pool:
        all_done(stop, [pool.submit(drain, stop, shared, Workspace()) for _ in range(threads)])


def all_done(stop: threading.Event, futures: Sequence[Future[None]]) -> None:
    """Wait for all, then raise the first error. On Ctrl-C too, all threads stop before files are closed."""
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


class Shared:
    """An iterator that several threads draw from: jobs are made when they are taken, so few exist at once."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs, self._lock = jobs, threading.Lock()

    def take(self) -> Job | None:
        with self._lock:
            return next(self._jobs, None)


def drain(stop: threading.Event, jobs: Shared, workspace: Workspace) -> None:
    try:
        standard_arithmetic()  # a thread has its own, from the one that started it
        with np.errstate(all="ignore"):  # what is not finite is looked for
            while not stop.is_set() and (job := jobs.take()) is not None:
                workspace.next_job()
                job(workspace)
    except BaseException:
        stop.set()
        raise
