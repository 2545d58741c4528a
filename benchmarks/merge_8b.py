"""Merge an all-linear rank-16 adapter into a checkpoint of the shapes of Llama-3.1-8B, beside a copy of it.

    python benchmarks/merge_8b.py [RUNS]

Where there is not enough room on disk for two such checkpoints nothing is measured, with a message.
"""

from __future__ import annotations

import os
import sys

from checkpoints import Llama, by_bytes, normal, save_adapter, save_base
from measure import COPY, TOOL, WORK, copying, figures, in_turn, into_page, machine, median, ratio, scratch, short_of

MODEL = Llama(32, hidden=4096, inner=14336, heads=32, kv_heads=8, vocab=128256)
FOLDER = WORK / "8b"
BASE, ADAPTER, OUT = FOLDER / "base", FOLDER / "adapter", FOLDER / "out"


def main(runs: int) -> None:
    size = 2 * MODEL.parameters
    if why := short_of(2 * size + 3e9):
        print(f"merge_8b: {why}", file=sys.stderr)
        return
    shards = by_bytes(MODEL.shapes, 5_000_000_000)
    commands = {"`adaptertool merge`": [*TOOL, "merge", BASE, ADAPTER, "-o", OUT], COPY: copying(BASE, OUT)}
    with scratch(FOLDER):
        save_base(BASE, shards, MODEL.config, "BF16", normal("BF16", 0.02))
        save_adapter(ADAPTER, MODEL.shapes, 16, "F32", normal("F32", 0.0125))
        timings = in_turn(commands, runs)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fits = "fit" if memory > 2 * size else "do not fit"
    lines = [
        f"{machine()}; {memory / 1e9:.0f} GB of memory, so base and output ({2 * size / 1e9:.0f} GB) {fits} into the "
        f"page cache together; median of {runs} runs in turn (smallest–largest); `make bench`",
        "",
        f"| {MODEL.parameters / 1e9:.1f} B bf16, {len(shards)} shards, all-linear rank 16 "
        "| wall s | CPU s | peak memory | wall s for each GB | wall, copy = 1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, done in timings.items():
        each = median([run.wall for run in done]) / (size / 1e9)
        lines.append(f"| {name} | {figures(done)} | {each:.2f} | {ratio(done, timings[COPY]):.2f} |")
    into_page("merge_8b", "\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
