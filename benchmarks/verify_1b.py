"""What it takes to look at checkpoints of 1.1 B (verify, diff, drift, inspect), beside reading them and the merge.

    python benchmarks/verify_1b.py [RUNS]

Files are in the page cache. The wrong checkpoint is the base itself: every edited tensor has to be diagnosed.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys

from measure import PYTHON, TOOL, WORK, figures, in_turn, into_page, machine, ratio, timed

BASE, ADAPTER, RIGHT, OUT = WORK / "base", WORK / "adapter", WORK / "right", WORK / "out"
READ = "`cat` of both to /dev/null"


def looks(*command: object) -> list[object]:
    """A command that writes no folder, and whose exit code 1 is an answer. The last argument is what is removed."""
    return ["bash", "-c", f"{shlex.join(map(str, command))}; test $? -le 1", OUT]


RUNS: dict[str, list[object]] = {
    READ: looks("bash", "-c", f"cat {BASE}/*.safetensors {RIGHT}/*.safetensors > {OUT.with_suffix('.null')}"),
    "`merge`": [*TOOL, "merge", BASE, ADAPTER, "-o", OUT],
    "`merge --verify`": [*TOOL, "merge", BASE, ADAPTER, "--verify", "-o", OUT],
    "`verify`, right": looks(*TOOL, "verify", RIGHT, BASE, ADAPTER),
    "`verify`, wrong in every edited tensor": looks(*TOOL, "verify", BASE, BASE, ADAPTER),
    "`verify` of the files alone": looks(*TOOL, "verify", RIGHT),
    "`diff` of base and merged": looks(*TOOL, "diff", BASE, RIGHT),
    "`drift`": looks(*TOOL, "drift", BASE, ADAPTER),
    "`inspect` of the adapter, `--base`": looks(*TOOL, "inspect", ADAPTER, "--base", BASE),
}


def main(runs: int) -> None:
    if not BASE.exists():
        WORK.mkdir(exist_ok=True)
        subprocess.run([PYTHON, WORK.parent / "make_1b.py", WORK], check=True)
    null = OUT.with_suffix(".null")
    null.unlink(missing_ok=True)
    null.symlink_to("/dev/null")
    timed([*TOOL, "merge", BASE, ADAPTER, "-o", RIGHT])
    try:
        timings = in_turn(RUNS, runs)
    finally:
        shutil.rmtree(RIGHT)
        shutil.rmtree(OUT, ignore_errors=True)
        null.unlink()
    lines = [
        f"{machine()}; median of {runs} runs in turn (smallest–largest); `make bench`",
        "",
        "| 1.1 B bf16, 3 shards, all-linear rank 16 | wall s | CPU s | peak memory | wall, merge = 1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {name} | {figures(done)} | {ratio(done, timings['`merge`']):.2f} |" for name, done in timings.items()]
    into_page("verify_1b", "\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
