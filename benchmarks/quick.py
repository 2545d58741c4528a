"""The ratios that matter, in a few minutes; fails where one is worse than the recorded one by more than a third.

    python benchmarks/quick.py [RUNS] [--record]

Merges beside a copy of the base, and what looks at checkpoints beside a merge, each in one round with the others. And
what a start takes of the processor, beside that of numpy alone: commands on the smallest models that there are.
--record: write what was found to quick.json, as that of this kind of machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kinds_1b import RUNS as KINDS
from measure import COPY, PYTHON, ROOT, WORK, Timing, in_turn, machine, ratio, timed
from verify_1b import ADAPTER, BASE, OUT, RIGHT, looks
from verify_1b import RUNS as LOOKS

RECORD = Path(__file__).with_name("quick.json")
WORSE = 4 / 3
MERGE = "merge, all linear layers, rank 16"
TOOL = KINDS[MERGE][:3]
LOOKED = ("`verify`, right", "`verify`, wrong in every edited tensor", "`diff` of base and merged", "`drift`")
NUMPY = "`import numpy`"
SHORT = {COPY: "a copy", MERGE: "merge", NUMPY: "numpy"}
FIXTURES = ROOT / "fixtures"
STARTS: dict[str, list[object]] = {
    NUMPY: [PYTHON, "-c", "import numpy"],
    "start of merge": [*TOOL, "merge", FIXTURES / "base", FIXTURES / "lora", "-o", OUT],
    "start of mergekit": [*TOOL, "mergekit", FIXTURES / "ties.yml", "--dry-run", "-o", OUT],
    "start of inspect": looks(*TOOL, "inspect", FIXTURES / "lora"),
    "`--help`": looks(*TOOL, "--help"),
}


def main(runs: int, *, record: bool) -> None:
    if not BASE.exists():
        WORK.mkdir(exist_ok=True)
        subprocess.run([PYTHON, WORK.parent / "make_1b.py", WORK], check=True)
    timed([*TOOL, "merge", BASE, ADAPTER, "-o", RIGHT])
    commands = {
        **{name: command for name, command in KINDS.items() if "fast" not in name},
        "wise between two bf16 checkpoints": [*TOOL, "wise", BASE, RIGHT, "--alpha", "0.3", "-o", OUT],
        **{name: LOOKS[name] for name in LOOKED},
        "inspect of the adapter, `--base`": looks(*TOOL, "inspect", ADAPTER, "--base", BASE),
    }
    try:
        timings = in_turn(commands, runs) | in_turn(STARTS, max(runs, 7))
    finally:
        shutil.rmtree(RIGHT)
        shutil.rmtree(OUT, ignore_errors=True)
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    found, worse = {}, []
    print(f"{machine()}; medians of {runs} runs in turn\n")
    for name, done in timings.items():
        beside = MERGE if name in LOOKS or name.startswith("inspect") else NUMPY if name in STARTS else COPY
        found[name] = round((least if name in STARTS else ratio)(done, timings[beside]), 2)
        before = known.get(name)
        worse += [name] if before is not None and found[name] > before * WORSE else []
        told = "" if before is None else f"   recorded {before:.2f}"
        print(f"{name:42} {found[name]:6.2f} x {SHORT[beside]:6}{told}")
    if record:
        RECORD.write_text(json.dumps(found, indent=2) + "\n")
    elif worse:
        raise SystemExit(f"worse than recorded by more than a third: {', '.join(worse)}")


def least(results: Sequence[Timing], others: Sequence[Timing]) -> float:
    """The least time of the processor beside that of others."""
    return min(one.cpu for one in results) / min(one.cpu for one in others)


if __name__ == "__main__":
    counts = [int(argument) for argument in sys.argv[1:] if argument != "--record"]
    main(counts[0] if counts else 3, record="--record" in sys.argv)
