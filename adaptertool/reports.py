"""What a command has to say, as frozen data. `render/` makes text or JSON of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EditReport:
    kind: str
    adapter: int  # position on the command line, from 0
    module: str
    scale: float
    weight: float


@dataclass(frozen=True, slots=True)
class TensorPlan:
    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    action: str  # "copy" or "edit"
    bytes: int
    edits: tuple[EditReport, ...]


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What a run would do. Sizes in bytes."""

    schema: str  # plan/1
    command: str
    base: str
    sources: tuple[str, ...]
    weights: tuple[float, ...]
    alphas: tuple[float, ...]
    out: str
    outputs: tuple[str, ...]
    tensors_edited: int
    tensors_copied: int
    bytes_to_read: int
    bytes_to_write: int
    disk_needed: int
    disk_free: int
    threads: int
    memory_predicted: int
    notes: tuple[str, ...]
    tensors: tuple[TensorPlan, ...]


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did. Sizes in bytes; `seconds` from the first read to the published OUT."""

    schema: str  # run/1
    command: str
    base: str
    sources: tuple[str, ...]
    weights: tuple[float, ...]
    alphas: tuple[float, ...]
    out: str
    outputs: tuple[str, ...]
    tensors_edited: int
    tensors_copied: int
    bytes_read: int
    bytes_written: int
    seconds: float
    bytes_per_second: float  # read and written
    threads: int
    peak_memory: int  # of the whole process, resident
    notes: tuple[str, ...]
