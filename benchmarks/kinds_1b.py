"""What each kind of run takes on the 1.1 B checkpoint, beside a copy of it: whole processes, in turn.

python benchmarks/kinds_1b.py [RUNS]
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from measure import WORK, Timing, into_readme, machine, median, spread, timed

BASE, OUT = WORK / "base", WORK / "out"
TOOL = [sys.executable, "-m", "adaptertool"]


def merge(*adapters: str, **options: str) -> list[object]:
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [*TOOL, "merge", BASE, *(WORK / name for name in adapters), *flags, "-o", OUT]


RUNS: dict[str, list[object]] = {
    "`cp -r` and fsync": ["bash", "-c", "cp -r $0 $1 && sync $1/*", BASE, OUT],
    "merge, all linear layers, rank 16": merge("adapter"),
    "the same, `--precision fast`": merge("adapter", precision="fast"),
    "attention only": merge("attention"),
    "two adapters": merge("adapter", "second"),
    "rank 128": merge("rank128"),
    "DoRA": merge("dora"),
    "wise at one alpha": [*TOOL, "wise", BASE, WORK / "adapter", "-o", OUT, "--alpha", "0.3"],
    "wise at five alphas": [*TOOL, "wise", BASE, WORK / "adapter", "-o", OUT, "--alpha", "0.1:0.9:0.2"],
}


def main(runs: int) -> None:
    if not (WORK / "rank128").exists():
        WORK.mkdir(exist_ok=True)
        subprocess.run([sys.executable, WORK.parent / "make_1b.py", WORK], check=True)
    timings: dict[str, list[Timing]] = {name: [] for name in RUNS}
    for number in range(runs + 1):
        for name, command in RUNS.items():
            shutil.rmtree(OUT, ignore_errors=True)
            result = timed(command)
            if number:  # the first round warms the page cache
                timings[name].append(result)
    shutil.rmtree(OUT)
    copies = timings["`cp -r` and fsync"]
    lines = [
        f"{machine()}; median of {runs} runs in turn (smallest–largest); `make bench`",
        "",
        "| 1.1 B bf16, 3 shards | wall s | CPU s | peak memory | wall, copy = 1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, results in timings.items():
        ratio = median([own.wall / copy.wall for own, copy in zip(results, copies, strict=True)])
        peak, cpu = max(result.peak for result in results) / 1e6, median([result.cpu for result in results])
        lines.append(f"| {name} | {spread([r.wall for r in results])} | {cpu:.1f} | {peak:,.0f} MB | {ratio:.2f} |")
    into_readme("kinds_1b", "\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
