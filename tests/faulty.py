"""Run adaptertool with the n-th call that changes the disk failing, or killing the process just before it.

python tests/faulty.py KIND NUMBER [adaptertool's arguments]

KIND: kill, an errno by name (once), or an errno with + (that call and all after it). With NUMBER 0 the calls are
counted and printed on the last line of stderr.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

CALLS = ("open", "pwrite", "fsync", "rename", "link", "mkdir", "unlink")


def main(kind: str, number: int, arguments: list[str]) -> None:
    count, lock = 0, threading.Lock()

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*given: Any, **options: Any) -> Any:
            nonlocal count
            if name == "open" and not (given[1] if len(given) > 1 else options["flags"]) & (os.O_WRONLY | os.O_RDWR):
                return call(*given, **options)
            with lock:
                count += 1
                hit = number and (count >= number if kind.endswith("+") else count == number)
            if hit and kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if hit:
                code = getattr(errno, kind.removesuffix("+"))
                raise OSError(code, os.strerror(code), given[0] if isinstance(given[0], str | os.PathLike) else None)
            return call(*given, **options)

        return faulty

    from adaptertool.cli import main as run  # noqa: PLC0415  # before what it imports is wrapped
    from adaptertool.files import writer  # noqa: PLC0415

    for name in CALLS if kind == "kill" else CALLS[:-1]:  # what fails to write can still remove
        setattr(os, name, wrapped(name, getattr(os, name)))
    writer.allocate = wrapped("allocate", writer.allocate)
    sys.argv = ["adaptertool", *arguments]
    try:
        run()
    finally:
        if not number:
            print(count, file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
