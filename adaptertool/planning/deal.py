"""How the shards of a plan are dealt out to parts. It is a function of their sizes alone, so nobody has to be asked."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from adaptertool.errors import UsageError
from adaptertool.spec.plan import Shard


def deal(shards: Sequence[Shard], part: int, parts: int) -> tuple[Shard, ...]:
    """The shards of one of so many parts, in their order: the largest is dealt first, each to the part that has the
    least. Where there are more parts than shards some have none. Raises UsageError for a part that there is not."""
    if parts < 1:
        raise UsageError(f"{parts} parts are none; there is one at least, 0/1")
    if not 0 <= part < parts:
        raise UsageError(f"there is no part {part}/{parts}: counted from 0, the last is {parts - 1}/{parts}")
    sizes = [(0, number) for number in range(min(parts, len(shards)))]  # those after have none
    mine = list[int]()
    for index in sorted(range(len(shards)), key=lambda index: (-shards[index].size, index)):
        size, number = heapq.heappop(sizes)
        heapq.heappush(sizes, (size + shards[index].size, number))
        if number == part:
            mine.append(index)
    return tuple(shards[index] for index in sorted(mine))
