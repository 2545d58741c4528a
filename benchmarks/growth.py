"""Time and memory of `adaptertool merge` against the size of the model and against the number of its tensors.

    python benchmarks/growth.py [RUNS]

Sizes: more and more layers of the same shapes. Numbers of tensors: more and more layers of tiny ones, so that what is
measured is the work for a tensor and not for its elements. Each checkpoint is made, measured and deleted before the
next; one that there is no room for is left out, with a message.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise

from checkpoints import Llama, by_bytes, by_count, normal, save_adapter, save_base
from measure import (
    COPY,
    TOOL,
    WORK,
    Timing,
    copying,
    figures,
    in_turn,
    into_page,
    machine,
    median,
    ratio,
    scratch,
    short_of,
    spread,
)

FOLDER = WORK / "growth"
BASE, ADAPTER, OUT = FOLDER / "base", FOLDER / "adapter", FOLDER / "out"
MERGE = [*TOOL, "merge", BASE, ADAPTER, "-o", OUT]
PLAN = [*TOOL, "merge", BASE, ADAPTER, "--dry-run", "-o", OUT]

SIZES = [Llama(layers) for layers in (2, 11, 22, 67)]
COUNTS = [Llama(layers, hidden=32, inner=64, heads=2, kv_heads=1, vocab=64) for layers in (111, 1111, 11111)]


def rises(x: Sequence[float], timings: Sequence[list[Timing]]) -> list[str]:
    """What each row takes more than the one before, for each unit more: the same everywhere on a straight line."""
    walls = [median([run.wall for run in runs]) for runs in timings]
    return ["", *(f"{(b - a) / (to - at):.2f}" for (at, to), (a, b) in zip(pairwise(x), pairwise(walls), strict=True))]


def sizes(runs: int) -> list[str]:
    rows: list[tuple[str, float, list[Timing], list[Timing]]] = []
    skipped = []
    for model in SIZES:
        size = 2 * model.parameters
        name = f"{model.parameters / 1e9:.2f} B | {model.layers} | {size / 1e9:.2f}"
        if why := short_of(2.2 * size + 1e9):
            skipped.append(f"| {name} | {why} | | | | | |")
            continue
        with scratch(FOLDER):
            save_base(BASE, by_bytes(model.shapes, 800_000_000), model.config, "BF16", normal("BF16", 0.02))
            save_adapter(ADAPTER, model.shapes, 16, "F32", normal("F32", 0.0125))
            timings = in_turn({"merge": MERGE, COPY: copying(BASE, OUT)}, runs)
        rows.append((name, size / 1e9, timings["merge"], timings[COPY]))
    lines = [
        "| parameters, bf16 | layers | GB | wall s | CPU s | peak memory | s per GB | s per GB more | wall, copy = 1 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    more = rises([size for _, size, _, _ in rows], [merges for _, _, merges, _ in rows])
    for (name, size, merges, copies), rise in zip(rows, more, strict=False):
        each = median([run.wall for run in merges]) / size
        lines.append(f"| {name} | {figures(merges)} | {each:.2f} | {rise} | {ratio(merges, copies):.2f} |")
    return lines + skipped


def counts(runs: int) -> list[str]:
    rows: list[tuple[str, float, list[Timing], list[Timing]]] = []
    skipped = []
    for model in COUNTS:
        shards = by_count(model.shapes, 1000)
        count = len(model.shapes)
        name = f"{count:,} | {len(shards)}"
        if why := short_of(8 * model.parameters + 1e9):
            skipped.append(f"| {name} | {why} | | | | | |")
            continue
        with scratch(FOLDER):
            save_base(BASE, shards, model.config, "BF16", normal("BF16", 0.02))
            save_adapter(ADAPTER, model.shapes, 4, "F32", normal("F32", 0.0125))
            timings = in_turn({"plan": PLAN, "merge": MERGE}, runs)
        rows.append((name, count / 1000, timings["plan"], timings["merge"]))
    lines = [
        "| tiny tensors | shards | `--dry-run`, wall s | peak memory | merge, wall s | CPU s | peak memory "
        "| s per 1,000 more |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    more = rises([count for _, count, _, _ in rows], [merges for _, _, _, merges in rows])
    for (name, _, plans, merges), rise in zip(rows, more, strict=False):
        plan = f"{spread([run.wall for run in plans])} | {max(run.peak for run in plans) / 1e6:,.0f} MB"
        lines.append(f"| {name} | {plan} | {figures(merges)} | {rise} |")
    return lines + skipped


def main(runs: int) -> None:
    by_size, by_number = sizes(runs), counts(runs)
    top = f"{machine()}; all linear layers, rank 16 (4 on tiny tensors); median of {runs} runs in turn "
    top += "(smallest–largest); `make bench`"
    into_page("growth", "\n".join([top, "", *by_size, "", *by_number]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
