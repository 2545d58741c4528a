"""What `--dry-run --rate` says a merge will take, beside what it takes: bytes, and seconds of the processor.

    python benchmarks/cost.py [LAYERS]

A Llama in bf16 of 50 M parameters a layer, in shards of 400 MB, and one merge of each sort that the model tells apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from checkpoints import Llama, by_bytes, normal, save_adapter, save_base
from measure import TOOL, WORK, into_page, machine, remove, scratch, timed


def make(folder: Path, layers: int) -> float:
    """The inputs; returns the GB of the base."""
    model = Llama(layers)
    save_base(folder / "base", by_bytes(model.shapes, 400_000_000), model.config, numbers=normal("BF16", 0.02))
    factors = normal("F32", 0.01)
    attention = {name: shape for name, shape in model.shapes.items() if ".self_attn." in name}
    for name, shapes, rank, dora in (
        ("r16", model.shapes, 16, False),
        ("r128", model.shapes, 128, False),
        ("dora", model.shapes, 16, True),
        ("attention", attention, 16, False),
    ):
        save_adapter(folder / name, shapes, rank, numbers=factors.abs() if dora else factors, dora=dora)
    return sum(path.stat().st_size for path in (folder / "base").iterdir()) / 1e9


def main(layers: int) -> None:
    folder = WORK / "cost"
    with scratch(folder):
        size = make(folder, layers)
        base, out = folder / "base", folder / "out"
        runs: dict[str, list[object]] = {
            "merge, rank 16": ["merge", base, folder / "r16"],
            "two adapters": ["merge", base, folder / "r16", folder / "attention"],
            "rank 128": ["merge", base, folder / "r128"],
            "DoRA": ["merge", base, folder / "dora"],
            "attention only": ["merge", base, folder / "attention"],
            "five alphas": ["wise", base, folder / "r16", "--alpha", "0.1:0.9:0.2"],
            "with --verify": ["merge", base, folder / "r16", "--verify"],
            "with --sha256": ["merge", base, folder / "r16", "--sha256"],
        }
        lines = []
        for name, arguments in runs.items():
            command = [*TOOL, *arguments, "--threads", 2]
            asked = [*map(str, command), "--dry-run", "--rate", "1GB/s", "--json", "-o", str(out)]
            cost = json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE).stdout)["cost"]
            done = timed([*command, "-q", "-o", out])
            written = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
            remove(out)
            figures = f"{cost['cpu_seconds']:.1f} | {done.cpu:.1f} | {cost['cpu_seconds'] / done.cpu:.2f}"
            lines.append(f"| {name} | {cost['bytes_written'] / written:.4f} | {figures} |")
    into_page(
        "cost",
        f"{machine()}; {size:.1f} GB in bf16, one run each; `python benchmarks/cost.py`\n\n"
        "| | bytes written, told / found | CPU s told | CPU s found | told / found |\n"
        "| --- | --- | --- | --- | --- |\n" + "\n".join(lines),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
