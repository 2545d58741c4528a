"""A merge or an interpolation whose shards are made by workers, in other processes or on other machines, and put
together here. What is finished lies in the staging directory, so workers and whoever sends them work need not be
trusted: one that is lost loses the shard in hand, and the same call goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from typing import NamedTuple

from adaptertool.errors import AdapterToolError, InputError, StorageError, UsageError
from adaptertool.interrupts import LOOK_EVERY, look
from adaptertool.output.checkpoint import check_call, hashes_of, staging_of
from adaptertool.output.options import Options
from adaptertool.output.parts import make_part, names_of
from adaptertool.reports.run import RunReport
from adaptertool.tasks.call import Call
from adaptertool.tasks.parts import finish_planned
from adaptertool.tasks.plan_file import Planned, planned_of

_alone = threading.Lock()  # signals and the threads of libraries belong to a process: one shard at a time in each
_known: dict[str, Planned] = {}  # the plan that this worker was last asked for: it is made once, and not for each shard


class Task(NamedTuple):
    """One shard, for a worker: plain data."""

    call: Call
    key: str
    shard: str
    threads: int | None


RunAll = Callable[[Sequence[Task]], Iterator[Task]]  # has workers make them; gives those that are made. Raises as these


def make_shard(task: Task) -> str:
    """What a worker does: it plans for itself, and makes one shard unless that is there. It may be called again, or
    twice at once. Raises InputError where its inputs are others than those of who sent it, and as `run_part` does."""
    with _alone:
        planned = _known.get(task.key)
        if planned is None or planned.call != task.call:
            planned = planned_of(task.call)
            if planned.key != task.key:
                raise InputError(
                    f"a worker finds other inputs at {task.call.base} or {task.call.sources[0]}, or is another "
                    "version of adaptertool: all must see the same files at the same place"
                )
            _known.clear()
            _known[task.key] = planned
        shards = [shard for shard in planned.plan.shards if shard.name == task.shard]
        make_part(planned.plan, planned.out, shards, (0, 1), task.call.how(threads=task.threads))
    return task.shard


def spread(call: Call, options: Options, run_all: RunAll) -> RunReport:
    """Have the missing shards made, the largest first, and publish. Raises AdapterToolError; what is finished stays."""
    planned = planned_of(call)
    plan, out = planned.plan, planned.out
    check_call(plan, out, options)
    with staging_of(plan, out, hashes_of(options), part=True) as stage:
        left = [one for one in plan.shards if not all(stage.find(name) for name in names_of(one, plan.outputs))]
    left.sort(key=lambda shard: -shard.size)
    sizes = {shard.name: shard.size * len(plan.outputs) for shard in left}
    for task in run_all([Task(call, planned.key, shard.name, options.threads) for shard in left]):
        options.tell_progress(sizes.pop(task.shard))
    return finish_planned(plan, out, options, None)


def by_executor(executor: Executor) -> RunAll:
    """Workers of any executor: processes of this machine, or of others (Dask, MPI, loky)."""

    def run_all(tasks: Sequence[Task]) -> Iterator[Task]:
        try:
            futures = {executor.submit(make_shard, task): task for task in tasks}
        except (BrokenExecutor, RuntimeError) as error:
            raise StorageError(f"the executor takes no work: {error}") from error
        try:
            yield from _as_done(futures)
        finally:
            for future in futures:
                future.cancel()

    return run_all


def _as_done(futures: dict[Future[str], Task]) -> Iterator[Task]:
    waiting = set(futures)
    while waiting:
        look()
        done, waiting = wait(waiting, LOOK_EVERY, return_when="FIRST_COMPLETED")
        for future in done:
            try:
                future.result()
            except (Exception, CancelledError) as error:
                raise told(error, futures[future]) from error
            yield futures[future]


def told(error: BaseException, task: Task) -> AdapterToolError:
    """What went wrong with a shard, as an error of ours: those of workers that died are of their executors."""
    if isinstance(error, AdapterToolError):
        return error
    if isinstance(error, ImportError):
        return UsageError(f"a worker cannot make {task.shard}: {error}; adaptertool must be installed there too")
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return StorageError(f"a worker was lost that was to make {task.shard} ({what}); what is finished stays, run again")
