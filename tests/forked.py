"""What a process that forks (`forks.py`, `warm.py`) has its child do: run a program as an interpreter would."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def run_and_exit(program: Callable[[], object]) -> NoReturn:
    """Run it with streams over the descriptors 0, 1 and 2 as they are now, and end this process with its exit code."""
    streams: list[Any] = [open(number, mode, encoding="utf-8") for number, mode in ((0, "r"), (1, "w"), (2, "w"))]  # noqa: SIM115, PTH123
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__ = streams
    code: Any = 0
    try:
        program()
    except SystemExit as stop:
        code = stop.code
    except BaseException:  # as an interpreter would
        traceback.print_exc()
        code = 1
    for stream in streams[1:]:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
