"""What the command line sets right in its surroundings before it loads anything else."""

from __future__ import annotations

import contextlib
import os

# OpenBLAS starts a thread for each core as numpy is loaded, and where the system starts no more it ends the process.
# Ours use one core each (engine.pool). The zero in front tells it from what a user has set.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "01"}


def prepare(arguments: list[str]) -> None:
    """Once, before numpy is loaded. arguments: those of the command line"""
    _open_standard()
    if arguments[:1] != ["evaluate"]:  # which loads torch, and leaves it all cores
        for name, value in _ONE_THREAD.items():
            os.environ.setdefault(name, value)


def _open_standard() -> None:
    """Where the caller has closed stdin, stdout or stderr the next file that is opened would take its number, and what
    libraries print would be written into that."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def environment() -> dict[str, str]:
    """The environment of this process as its caller has set it, for programs that are started."""
    return {name: value for name, value in os.environ.items() if _ONE_THREAD.get(name) != value}
