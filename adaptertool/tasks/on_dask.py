"""Workers of Dask distributed (https://distributed.dask.org, 2026.8), by the address of a scheduler, or its file.

Dask repeats a task whose worker died, three times, and then gives up (KilledWorker). A future is `lost` for a moment
while its result is made again; that the scheduler is gone, only the status of the client tells.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adaptertool.errors import StorageError, UsageError
from adaptertool.interrupts import LOOK_EVERY, deferred, look
from adaptertool.tasks.spread import RunAll, Task, make_shard, told

_PATIENCE = 30  # seconds for a scheduler to answer


def on_dask(address: str) -> RunAll:
    """Workers of the scheduler at an address (tcp://...), or of the one that wrote a file (scheduler.json). Each should
    have one thread: a process makes one shard at a time."""

    def run_all(tasks: Sequence[Task]) -> Iterator[Task]:
        if not tasks:
            return
        client = _connected(address)
        try:
            yield from _as_done(client, tasks, address)
        finally:
            with contextlib.suppress(Exception):
                client.close(timeout=2)

    return run_all


def _connected(address: str) -> Any:
    """A client. Raises UsageError where Dask is not installed, StorageError where nobody answers."""
    try:
        from distributed import Client  # noqa: PLC0415  # heavy, and not installed as a rule
    except ImportError as error:
        raise UsageError("Dask is not installed here: pip install 'adaptertool[dask]'") from error
    # It prints tracebacks of its own, and some of its parts have a level of their own
    parts = [name for name in logging.Logger.manager.loggerDict if name.startswith("distributed.")]
    for name in ("distributed", *parts):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    if address.endswith(".json") and not Path(address).is_file():  # which a client would wait for
        raise StorageError(
            f"no Dask scheduler answers at {address}: there is no such file; is it up, and of this name?"
        )
    where = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        with deferred():
            connect: Any = Client
            return connect(**where, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(
            f"no Dask scheduler answers at {address}: {error}; is it up, and the address right?"
        ) from error


def _as_done(client: Any, tasks: Sequence[Task], address: str) -> Iterator[Task]:
    waiting = {client.submit(make_shard, task, pure=False): task for task in tasks}
    try:
        while waiting:
            look()
            if client.status not in ("running", "connecting"):
                raise StorageError(f"the Dask scheduler at {address} is gone; what is finished stays, run again")
            done = [future for future in waiting if future.status in ("finished", "error", "cancelled")]
            for future in done:
                task, status = waiting.pop(future), future.status
                if status == "error":
                    raise told(future.exception(), task)
                if status == "cancelled":  # all are, as soon as the connection is lost
                    gone = f"the Dask scheduler at {address} is gone, or has cancelled {task.shard}"
                    raise StorageError(f"{gone}; what is finished stays, run again")
                yield task
            if not done:
                time.sleep(LOOK_EVERY)
    finally:
        with contextlib.suppress(Exception):
            client.cancel(list(waiting))
