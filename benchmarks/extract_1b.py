"""Extract rank 32 from a tuned checkpoint with the layers of a 1.1 B-parameter Llama, beside mergekit-extract-lora.

    python benchmarks/extract_1b.py [RUNS] [LAYERS] [MERGEKIT]

MERGEKIT: the program mergekit-extract-lora, of an environment of its own; without it only adaptertool is timed.
Residuals are those of the adapters as they are stored, ‖T − W − s·B·A‖/‖T − W‖ in float64, beside the least that any
matrix of that rank can have: by torch.linalg.svdvals, for the layers of one block.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path

import torch
from checkpoints import Llama
from measure import TOOL, WORK, Timing, figures, in_turn, into_page, machine, median, scratch, short_of, timed
from safetensors import safe_open
from safetensors.torch import save_file

RANK = 32
FOLDER = WORK / "extract"
BASE, TUNED, OUT = FOLDER / "base", FOLDER / "tuned", FOLDER / "out"


def save_pair(model: Llama) -> None:
    """A base in bf16, and what was tuned from it: each linear layer with a change whose singular values fall as
    1/(k + 8) among 256, rounded to bf16 as training leaves it."""
    torch.manual_seed(0)
    base, tuned = {}, {}
    for name, shape in model.shapes.items():
        base[name] = tuned[name] = (torch.randn(shape) * 0.02).bfloat16()
        if name.endswith("_proj.weight"):
            out, inner = shape
            left, right = torch.randn(out, 256), torch.randn(256, inner) / inner**0.5
            change = (left / (torch.arange(256) + 8)) @ right
            change *= 1e-3 / change.std()
            tuned[name] = (base[name] + change).bfloat16()
    for folder, tensors in ((BASE, base), (TUNED, tuned)):
        folder.mkdir(parents=True)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(model.config | {"torch_dtype": "bfloat16"}, indent=2))


def excess(adapter: Path) -> float:
    """By how much the residuals of the layers of the first block are larger than the least, at most."""
    fields = json.loads((adapter / "adapter_config.json").read_text())
    worst = 0.0
    with (
        safe_open(BASE / "model.safetensors", "pt") as base,
        safe_open(TUNED / "model.safetensors", "pt") as tuned,
        safe_open(adapter / "adapter_model.safetensors", "pt") as factors,
    ):
        for name in (name for name in base.keys() if re.search(r"layers\.0\..*_proj", name)):  # noqa: SIM118
            change = tuned.get_tensor(name).double() - base.get_tensor(name).double()
            key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            a, b = (factors.get_tensor(f"{key}{role}.weight").double() for role in "AB")
            pattern = name.removesuffix(".weight")
            alpha = fields.get("alpha_pattern", {}).get(pattern, fields["lora_alpha"])
            left = change - alpha / len(a) * (b @ a)
            worst = max(worst, float(left.norm()) / least(name, len(a)) - 1)
    return worst


@functools.cache
def least(name: str, rank: int) -> float:
    """What any matrix of that rank leaves of the change of a layer (Eckart and Young)."""
    with safe_open(BASE / "model.safetensors", "pt") as base, safe_open(TUNED / "model.safetensors", "pt") as tuned:
        change = tuned.get_tensor(name).double() - base.get_tensor(name).double()
    return float(torch.linalg.svdvals(change)[rank:].norm())


def main(runs: int, layers: int, mergekit: str | None) -> None:
    if why := short_of(10e9):
        print(f"extract_1b: {why}", file=sys.stderr)
        return
    model = Llama(layers, vocab=32000)
    extract = [*TOOL, "extract", BASE, TUNED, "--rank", RANK]
    commands: dict[str, list[object]] = {
        "`extract --rank 32`": [*extract, "-o", OUT / "two"],
        "`extract --rank 32 --threads 1`": [*extract, "--threads", 1, "-o", OUT / "one"],
    }
    with scratch(FOLDER):
        save_pair(model)
        OUT.mkdir()
        timings = in_turn(commands, runs)
        rows: dict[str, tuple[list[Timing], Path]] = {
            name: (timings[name], Path(str(command[-1]))) for name, command in commands.items()
        }
        if mergekit:
            name, command = theirs(mergekit)
            rows[name] = [timed(command)], Path(str(command[-1]))  # once: it takes many minutes
        lines = table(model, rows, runs)
    into_page("extract_1b", "\n".join(lines))


def theirs(mergekit: str) -> tuple[str, list[object]]:
    arguments = ["--model", TUNED, "--base-model", BASE, "--max-rank", RANK, "--no-lazy-unpickle"]
    return "`mergekit-extract-lora --max-rank 32`, once", [mergekit, *arguments, "--out-path", OUT / "theirs"]


def table(model: Llama, rows: dict[str, tuple[list[Timing], Path]], runs: int) -> list[str]:
    ours = median([run.wall for run in next(iter(rows.values()))[0]])
    lines = [
        f"{machine()}; median of {runs} runs in turn (smallest–largest); `make bench`",
        "",
        f"| rank {RANK} from {model.layers} layers of 1.1 B, bf16 | wall s | CPU s | peak memory | residual above the "
        "least | time beside the first |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, (done, path) in rows.items():
        slower = median([run.wall for run in done]) / ours
        lines.append(f"| {name} | {figures(done)} | {excess(path):.2%} | {slower:.1f} |")
    return lines


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int(given[0]) if given else 3, int(given[1]) if len(given) > 1 else 22, given[2] if len(given) > 2 else None)
