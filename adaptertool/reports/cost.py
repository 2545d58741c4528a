"""What a run would take of time, bytes and memory: an estimate, made before anything is run."""

from __future__ import annotations

from adaptertool.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CostReport:
    """The cost of a run on so many nodes. Bytes, bytes a second, seconds; each node makes whole shards."""

    nodes: int  # those that were asked for
    nodes_busy: int  # those that have a shard to make
    rate: int  # what a node reads and writes in a second, both together
    threads: int  # of each node
    bytes_read: int  # by all nodes together: what several need is read by each
    bytes_written: int
    shards_of_one: int  # of the node that takes longest
    bytes_of_one: int  # read and written by it
    seconds_planning: float  # of the processor, on every node, before it reads a weight
    seconds_transfer: float  # of the node that has most to read and write, at that rate
    seconds_shared: float  # the same for all nodes together, where they share that rate
    seconds_cpu: float  # of the node that has most to compute, with all of its threads
    cpu_seconds: float  # of all nodes together
    cpu_source: str  # where the figures for the processor come from
    seconds: float  # planning, and the longer of transfer and computing, and what finishes it
    bound: str  # "transfer" or "cpu": which of both is the longer
    memory_of_one: int  # an upper bound for each process, resident
    requests_read: int  # in an object store
    requests_written: int
    unknown: tuple[str, ...]  # what the estimate leaves out, or takes for something else
