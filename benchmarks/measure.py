"""What the benchmarks share: timing whole processes, and putting a table into the README."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORK = ROOT / "benchmarks" / "data"


# ru_maxrss of a process is at least that of the process which started it, so a small one starts it.
_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
wall = time.perf_counter() - start
print(json.dumps([os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
"""


@dataclass
class Timing:
    """Of one finished process: wall and CPU seconds, peak resident bytes as the kernel counts them."""

    wall: float
    cpu: float
    peak: int


def timed(command: Sequence[object]) -> Timing:
    arguments = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *map(str, command)]
    code, *figures = json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE).stdout)
    if code:
        raise SystemExit(f"exit code {code} from {arguments[5:]}")
    return Timing(*figures)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", info)
    return (
        f"{model.group(1) if model else platform.processor()}, {os.cpu_count()} cores, "
        f"{platform.system()}, Python {platform.python_version()}"
    )


def into_readme(marker: str, text: str) -> None:
    """Replace what stands between <!-- marker --> and <!-- /marker -->, and print it."""
    print(text)
    readme = ROOT / "README.md"
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    replaced, count = pattern.subn(lambda found: found.group(1) + text + "\n" + found.group(2), readme.read_text())
    if count != 1:
        raise SystemExit(f"README.md has {count} places marked {marker}")
    readme.write_text(replaced)
