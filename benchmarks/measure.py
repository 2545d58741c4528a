"""What the benchmarks share: timing whole processes in turn, and putting a table into docs/measured.md."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORK = ROOT / "benchmarks" / "data"
PYTHON = sys.executable
TOOL: list[object] = [PYTHON, "-m", "adaptertool"]
# Put before a command whose last argument is the folder that it writes: the files are fsynced, as adaptertool's are.
SYNCED: list[object] = ["bash", "-c", '"$@" && sync "${!#}"/*', "bash"]
COPY = "`cp -r` and fsync"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # where it is set each process would compile its modules anew
NOT_ENOUGH = "not measured: {need:.0f} GB of disk needed, {free:.0f} GB free"


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


def in_turn(commands: Mapping[str, Sequence[object]], runs: int, *, warm: bool = True) -> dict[str, list[Timing]]:
    """Time each command, one after the other; warm: in one round more than asked for, which warms the page cache.

    The last argument of each is the folder, or the file, that it writes, which is removed before.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in commands}
    for number in range(runs + warm):
        for name, command in commands.items():
            remove(Path(str(command[-1])))
            result = timed(command)
            if number >= warm:
                timings[name].append(result)
    return timings


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """A folder that is gone before and after, whatever happens."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def short_of(need: float) -> str:
    """Why there is no run that needs so many bytes of disk; empty if there is room."""
    WORK.mkdir(exist_ok=True)
    free = shutil.disk_usage(WORK).free
    return "" if free > need else NOT_ENOUGH.format(need=need / 1e9, free=free / 1e9)


def copying(base: Path, out: Path) -> list[object]:
    return [*SYNCED, "cp", "-r", base, out]


def ratio(results: Sequence[Timing], others: Sequence[Timing]) -> float:
    """Median of wall time beside that of others in the same round."""
    return median([own.wall / other.wall for own, other in zip(results, others, strict=True)])


def figures(results: Sequence[Timing]) -> str:
    """Cells of a table: wall, CPU, peak memory."""
    peak, cpu = max(result.peak for result in results) / 1e6, median([result.cpu for result in results])
    return f"{spread([result.wall for result in results])} | {cpu:.1f} | {peak:,.0f} MB"


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


def into_page(marker: str, text: str) -> None:
    """Replace what stands between <!-- marker --> and <!-- /marker -->, and print it."""
    print(text)
    page = ROOT / "docs/measured.md"
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    replaced, count = pattern.subn(lambda found: found.group(1) + text + "\n" + found.group(2), page.read_text())
    if count != 1:
        raise SystemExit(f"docs/measured.md has {count} places marked {marker}")
    page.write_text(replaced)
