"""What a run takes of the machine: threads and memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from adaptertool.errors import UsageError

# More threads than this wait for the disk, and each takes up to 80 MB.
MAX_DEFAULT_THREADS = 8


MAX_THREADS = 256  # that may be asked for


def thread_count(threads: int | None) -> int:
    """The number asked for; where None, the cores that this process may use, up to 8. Raises UsageError."""
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, MAX_DEFAULT_THREADS)
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads must be 1 to {MAX_THREADS}, not {threads}")
    return threads


def peak_memory() -> int:
    """High-water mark of resident memory. VmHWM, since ru_maxrss may be that of the process that started us."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
