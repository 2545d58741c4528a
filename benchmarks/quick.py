"""The ratios that matter, in a few minutes; fails where one is worse than the recorded one by more than a third.

    python benchmarks/quick.py [RUNS] [--record]

Merges beside a copy of the base, and what looks at checkpoints beside a merge, each in one round with the others.
--record: write what was found to quick.json, as that of this kind of machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from kinds_1b import RUNS as KINDS
from measure import COPY, PYTHON, WORK, in_turn, machine, ratio, timed
from verify_1b import ADAPTER, BASE, OUT, RIGHT, looks
from verify_1b import RUNS as LOOKS

RECORD = Path(__file__).with_name("quick.json")
WORSE = 4 / 3
MERGE = "merge, all linear layers, rank 16"
TOOL = KINDS[MERGE][:3]
LOOKED = ("`verify`, right", "`verify`, wrong in every edited tensor", "`diff` of base and merged", "`drift`")


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
        timings = in_turn(commands, runs)
    finally:
        shutil.rmtree(RIGHT)
        shutil.rmtree(OUT, ignore_errors=True)
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    found, worse = {}, []
    print(f"{machine()}; medians of {runs} runs in turn\n")
    for name, done in timings.items():
        beside = MERGE if name in LOOKS or name.startswith("inspect") else COPY
        found[name] = round(ratio(done, timings[beside]), 2)
        before = known.get(name)
        worse += [name] if before is not None and found[name] > before * WORSE else []
        told = "" if before is None else f"   recorded {before:.2f}"
        print(f"{name:42} {found[name]:6.2f} x {'a copy' if beside == COPY else 'merge':6}{told}")
    if record:
        RECORD.write_text(json.dumps(found, indent=2) + "\n")
    elif worse:
        raise SystemExit(f"worse than recorded by more than a third: {', '.join(worse)}")


if __name__ == "__main__":
    counts = [int(argument) for argument in sys.argv[1:] if argument != "--record"]
    main(counts[0] if counts else 3, record="--record" in sys.argv)
