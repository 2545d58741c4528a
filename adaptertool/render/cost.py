"""What a run would cost, as text for a person."""

from __future__ import annotations

from collections.abc import Iterator

from adaptertool.render.text import counted, size
from adaptertool.reports.cost import CostReport


def cost_lines(cost: CostReport) -> Iterator[str]:
    """The lines below those of the plan."""
    rate = f"{size(cost.rate)}/s"
    transfer, cpu = duration(cost.seconds_transfer), duration(cost.seconds_cpu)
    if cost.bound == "cpu":
        why = f"bound by the processor, {cpu} with {counted(cost.threads, 'thread')}; transfer takes {transfer}"
    else:
        why = f"bound by transfer, {transfer}; the processor takes {cpu} with {counted(cost.threads, 'thread')}"
    each = f"each of {counted(cost.nodes, 'node')}" if cost.nodes > 1 else "one node"
    yield f"  time     about {duration(cost.seconds)} where {each} reads and writes {rate} ({why})"
    if cost.nodes > 1:
        yield f"           transfer takes {duration(cost.seconds_shared)} where all nodes share {rate}"
        spare = cost.nodes - cost.nodes_busy
        idle = f"; {counted(spare, 'node')} {'has' if spare == 1 else 'have'} none" if spare else ""
        what = f"{counted(cost.shards_of_one, 'shard')}, {size(cost.bytes_of_one)} read and written"
        yield f"  nodes    the one with most makes {what}{idle}"
        total = f"{size(cost.bytes_read)} read, {size(cost.bytes_written)} written, {duration(cost.cpu_seconds)} of CPU"
        yield f"           in all {total}; every node plans for {duration(cost.seconds_planning)}"
    yield f"  cpu      {cost.cpu_source}"
    yield f"  requests about {cost.requests_read:,} to read and {cost.requests_written:,} to write, in an object store"
    for text in cost.unknown:
        yield f"  unknown  {text}"


def duration(seconds: float) -> str:
    """A time with two figures that count: 8.5 s, 75 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.2g} h"
