"""What each kind of run takes on the 1.1 B checkpoint, beside a copy of it: whole processes, in turn.

python benchmarks/kinds_1b.py [RUNS]
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from measure import COPY, PYTHON, TOOL, WORK, copying, figures, in_turn, into_page, machine, ratio

BASE, OUT = WORK / "base", WORK / "out"


def merge(*adapters: str, **options: str) -> list[object]:
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [*TOOL, "merge", BASE, *(WORK / name for name in adapters), *flags, "-o", OUT]


RUNS: dict[str, list[object]] = {
    COPY: copying(BASE, OUT),
    "merge, all linear layers, rank 16": merge("adapter"),
    "the same, `--precision fast`": merge("adapter", precision="fast"),
    "attention only": merge("attention"),
    "two adapters": merge("adapter", "second"),
    "rank 128": merge("rank128"),
    "DoRA": merge("dora"),
    "wise at one alpha": [*TOOL, "wise", BASE, WORK / "adapter", "--alpha", "0.3", "-o", OUT],
    "wise at five alphas": [*TOOL, "wise", BASE, WORK / "adapter", "--alpha", "0.1:0.9:0.2", "-o", OUT],
}


def main(runs: int) -> None:
    if not (WORK / "rank128").exists():
        WORK.mkdir(exist_ok=True)
        subprocess.run([PYTHON, WORK.parent / "make_1b.py", WORK], check=True)
    timings = in_turn(RUNS, runs)
    shutil.rmtree(OUT)
    lines = [
        f"{machine()}; median of {runs} runs in turn (smallest–largest); `make bench`",
        "",
        "| 1.1 B bf16, 3 shards | wall s | CPU s | peak memory | wall, copy = 1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {name} | {figures(done)} | {ratio(done, timings[COPY]):.2f} |" for name, done in timings.items()]
    into_page("kinds_1b", "\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
