"""Truncate a rank-64 adapter on all linear layers of the shapes of Llama-3.1-8B, beside SVDs of the products.

    python benchmarks/truncate_8b.py [RUNS]

One product of each shape is made and decomposed by torch, in float32 and with all cores; the time for all layers is
theirs times the number of layers of that shape. PEFT's `svd` combination does the same for each layer.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

import torch
from checkpoints import Llama, normal, save_adapter
from measure import TOOL, WORK, figures, in_turn, into_page, machine, median, scratch, short_of

MODEL = Llama(32, hidden=4096, inner=14336, heads=32, kv_heads=8, vocab=128256)
RANK, KEPT = 64, 16
FOLDER = WORK / "truncate"
ADAPTER, OUT = FOLDER / "adapter", FOLDER / "out"


def svd_of_products() -> float:
    """Seconds for all layers, as far as one of each shape tells."""
    counts = Counter(tuple(shape) for name, shape in MODEL.shapes.items() if name.endswith("_proj.weight"))
    total = 0.0
    for (out, inner), count in counts.items():
        b, a = torch.randn(out, RANK), torch.randn(RANK, inner)
        start = time.perf_counter()
        left, values, right = torch.linalg.svd(b @ a, full_matrices=False)
        _ = left[:, :KEPT] * values[:KEPT], right[:KEPT].clone()
        total += count * (time.perf_counter() - start)
    return total


def main(runs: int) -> None:
    if why := short_of(2e9):
        print(f"truncate_8b: {why}", file=sys.stderr)
        return
    truncate = [*TOOL, "truncate", ADAPTER]
    commands = {
        f"`truncate --rank {KEPT}`": [*truncate, "--rank", KEPT, "-o", OUT],
        f"`truncate --rank {KEPT} --threads 1`": [*truncate, "--rank", KEPT, "--threads", 1, "-o", OUT],
        "`truncate --energy 0.9`": [*truncate, "--energy", "0.9", "-o", OUT],
    }
    with scratch(FOLDER):
        layers = save_adapter(ADAPTER, MODEL.shapes, RANK, "F32", normal("F32", 0.0125))
        size = sum(file.stat().st_size for file in ADAPTER.iterdir())
        timings = in_turn(commands, runs)
    dense = svd_of_products()
    lines = [
        f"{machine()}; median of {runs} runs in turn (smallest–largest); `make bench`",
        "",
        f"| rank {RANK} on {layers} linear layers of 8 B, float32, {size / 1e6:,.0f} MB "
        "| wall s | CPU s | peak memory | times as fast as SVDs of the products |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, done in timings.items():
        lines.append(f"| {name} | {figures(done)} | {dense / median([run.wall for run in done]):,.0f} |")
    lines.append(
        f"| `torch.linalg.svd` of each product | about {dense:,.0f}, from one of each shape, {torch.get_num_threads()} "
        "threads | | | 1 |"
    )
    into_page("truncate_8b", "\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
