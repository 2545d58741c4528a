"""What is reported of work that is done in parts."""

from __future__ import annotations

from typing import ClassVar

from adaptertool.records import dataclass
from adaptertool.reports.notebook import InNotebook


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsReport(InNotebook):
    """A plan that was written to be run in parts. Sizes in bytes."""

    schema: ClassVar[str] = "parts-plan/1"
    ok: ClassVar[bool] = True  # what fails has no report
    command: str
    base: str
    sources: tuple[str, ...]
    out: str
    plan: str  # the file
    key: str
    shards: int  # that can be dealt out
    largest: int  # of the shards of one output
    bytes_read: int
    bytes_written: int
    finished: int  # of the shards, that are made already
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport(InNotebook):
    """One part that was made. Sizes in bytes."""

    schema: ClassVar[str] = "part/1"
    ok: ClassVar[bool] = True  # what fails has no report
    command: str
    out: str
    part: int
    parts: int
    shards: tuple[str, ...]  # of this part
    made: tuple[str, ...]  # of these, those that were not there yet
    published: bool  # OUT is there already, as the plan makes it: nothing was left to do
    bytes_written: int
    threads: int
    seconds: float
    peak_memory: int
    compiled: bool
    verified: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedReport(InNotebook):
    """An OUT that is there already, as the plan makes it: `finish` came late, or again. Sizes in bytes."""

    schema: ClassVar[str] = "published/1"
    ok: ClassVar[bool] = True  # what fails has no report
    command: str
    base: str
    sources: tuple[str, ...]
    out: str
    outputs: tuple[str, ...]
    plan: str  # the file
    bytes: int  # of the checkpoints in OUT
    verified: bool  # whether it was read now, and judged
    notes: tuple[str, ...]
