"""Plan a merge into a mixture of experts of 671 B parameters and 91,000 tensors, from headers alone.

    python benchmarks/plan_671b.py [RUNS]

The checkpoint is sparse: files of the true size that hold zeros and take no room on disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from checkpoints import by_count, save_adapter, save_base
from measure import TOOL, WORK, into_page, machine, scratch, spread, timed

HIDDEN, INNER, LAYERS, EXPERTS, SHARDS, RANK = 7168, 1024, 61, 512, 163, 16


def tensors() -> dict[str, list[int]]:
    """Shapes in the manner of DeepSeek-V3, all in bf16, with twice the experts of half the size: 90,000 tensors."""
    shapes = {"model.embed_tokens.weight": [129280, HIDDEN], "lm_head.weight": [129280, HIDDEN]}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes[f"{name}.self_attn.q_a_proj.weight"] = [1536, HIDDEN]
        shapes[f"{name}.self_attn.q_b_proj.weight"] = [24576, 1536]
        shapes[f"{name}.self_attn.kv_a_proj_with_mqa.weight"] = [576, HIDDEN]
        shapes[f"{name}.self_attn.kv_b_proj.weight"] = [32768, 512]
        shapes[f"{name}.self_attn.o_proj.weight"] = [HIDDEN, 16384]
        for norm in ("input_layernorm", "post_attention_layernorm", "self_attn.q_a_layernorm"):
            shapes[f"{name}.{norm}.weight"] = [HIDDEN]
        experts = ["mlp"] if layer < 3 else ["mlp.shared_experts", *(f"mlp.experts.{e}" for e in range(EXPERTS))]
        for expert in experts:
            inner = 18432 if expert == "mlp" else INNER
            shapes[f"{name}.{expert}.gate_proj.weight"] = [inner, HIDDEN]
            shapes[f"{name}.{expert}.up_proj.weight"] = [inner, HIDDEN]
            shapes[f"{name}.{expert}.down_proj.weight"] = [HIDDEN, inner]
    return shapes


def make(base: Path, adapter: Path) -> tuple[int, int]:
    shapes = tensors()
    save_base(base, by_count(shapes, -(-len(shapes) // SHARDS)))
    return len(shapes), save_adapter(adapter, shapes, RANK)


def main(runs: int) -> None:
    folder = WORK / "plan"
    command = [*TOOL, "merge", folder / "base", folder / "adapter", "-o", folder / "out", "--dry-run"]
    with scratch(folder):
        count, modules = make(folder / "base", folder / "adapter")
        plans = [timed(command) for _ in range(runs)]
        helps = [timed([*TOOL, "--help"]) for _ in range(runs)]
        report = json.loads(subprocess.run([*command, "--json"], check=True, stdout=subprocess.PIPE).stdout)
    peak = max(plan.peak for plan in plans) / 1e6
    into_page(
        "plan_671b",
        f"{machine()}; median of {runs} (smallest–largest); `make bench`\n\n"
        "| | wall s | peak memory |\n| --- | --- | --- |\n"
        f"| `merge --dry-run` of {modules:,} modules into {count:,} tensors in {SHARDS} shards "
        f"({report['bytes_written'] / 1e12:.2f} TB) | {spread([plan.wall for plan in plans])} | {peak:,.0f} MB |\n"
        f"| `adaptertool --help` | {spread([h.wall for h in helps])} | {max(h.peak for h in helps) / 1e6:,.0f} MB |",
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
