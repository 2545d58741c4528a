"""What hashing costs: the merge of 1.1 B as it is, with nothing hashed (hashes are then wrong), and with SHA-256 too.

python benchmarks/hashing_1b.py [RUNS]
"""

from __future__ import annotations

import shutil
import sys

from measure import COPY, PYTHON, TOOL, WORK, copying, figures, in_turn, into_page, machine, ratio

BASE, OUT = WORK / "base", WORK / "out"
WITHOUT = """
from adaptertool import cli
from adaptertool.files import reader, writer
class Nothing:
    def __init__(self, *_): self.has = self.shorten = lambda *_: None
    def complete(self): return True
    def digests(self): return {"blake3": "0" * 64}
reader.hasher = writer.hasher = Nothing
cli.main()
"""
MERGE = ["merge", BASE, WORK / "adapter", "-o", OUT]
NOTHING = "nothing hashed"
RUNS: dict[str, list[object]] = {
    COPY: copying(BASE, OUT),
    NOTHING: [PYTHON, "-c", WITHOUT, *MERGE],
    "BLAKE3 of inputs and outputs (the default)": [*TOOL, *MERGE],
    "SHA-256 too (`--sha256`)": [*TOOL, "merge", BASE, WORK / "adapter", "--sha256", "-o", OUT],
}


def main(runs: int) -> None:
    timings = in_turn(RUNS, runs)
    shutil.rmtree(OUT)
    lines = [
        f"{machine()}; median of {runs} runs in turn (smallest–largest); `make bench`",
        "",
        "| merge of 1.1 B bf16, rank 16 | wall s | CPU s | peak memory | wall, nothing hashed = 1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {name} | {figures(done)} | {ratio(done, timings[NOTHING]):.2f} |" for name, done in timings.items()]
    into_page("hashing_1b", "\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
