"""Plan merges into mixtures of experts of 671 B and 1 T parameters, of 70,000 to 90,000 tensors, from headers alone.

    python benchmarks/plans.py [RUNS]

The checkpoints are sparse: files of the true size that hold zeros and take no room on disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import NamedTuple

from checkpoints import by_count, save_adapter, save_base
from measure import TOOL, WORK, Timing, into_page, machine, scratch, spread, timed

HIDDEN, LAYERS, SHARDS, RANK = 7168, 61, 163, 16


class Model(NamedTuple):
    name: str
    vocab: int
    dense: int  # layers without experts
    experts: int  # of each other layer
    inner: int  # neurons of an expert


MODELS = (
    Model("DeepSeek-V3 with twice the experts of half the size, 671 B", 129280, 3, 512, 1024),
    Model("Kimi K2, 1 T", 163840, 1, 384, 2048),
)


def tensors(model: Model) -> dict[str, list[int]]:
    """Shapes in the manner of DeepSeek-V3, all in bf16."""
    shapes = {"model.embed_tokens.weight": [model.vocab, HIDDEN], "lm_head.weight": [model.vocab, HIDDEN]}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes[f"{name}.self_attn.q_a_proj.weight"] = [1536, HIDDEN]
        shapes[f"{name}.self_attn.q_b_proj.weight"] = [24576, 1536]
        shapes[f"{name}.self_attn.kv_a_proj_with_mqa.weight"] = [576, HIDDEN]
        shapes[f"{name}.self_attn.kv_b_proj.weight"] = [32768, 512]
        shapes[f"{name}.self_attn.o_proj.weight"] = [HIDDEN, 16384]
        for norm in ("input_layernorm", "post_attention_layernorm", "self_attn.q_a_layernorm"):
            shapes[f"{name}.{norm}.weight"] = [HIDDEN]
        experts = ["mlp"] if layer < model.dense else ["mlp.shared_experts"]
        experts += [f"mlp.experts.{number}" for number in range(model.experts)] if layer >= model.dense else []
        for expert in experts:
            inner = 18432 if expert == "mlp" else model.inner
            shapes[f"{name}.{expert}.gate_proj.weight"] = [inner, HIDDEN]
            shapes[f"{name}.{expert}.up_proj.weight"] = [inner, HIDDEN]
            shapes[f"{name}.{expert}.down_proj.weight"] = [HIDDEN, inner]
    return shapes


def main(runs: int) -> None:
    folder, rows = WORK / "plan", []
    base, adapter = folder / "base", folder / "adapter"
    command = [*TOOL, "merge", base, adapter, "-o", folder / "out", "--dry-run"]
    for model in MODELS:
        with scratch(folder):
            shapes = tensors(model)
            save_base(base, by_count(shapes, -(-len(shapes) // SHARDS)))
            modules = save_adapter(adapter, shapes, RANK)
            plans = [timed(command) for _ in range(runs)]
            report = json.loads(subprocess.run([*command, "--json"], check=True, stdout=subprocess.PIPE).stdout)
        written = report["bytes_written"] / 1e12
        what = f"{model.name}: {modules:,} modules into {len(shapes):,} tensors in {SHARDS} shards ({written:.2f} TB)"
        rows.append(row(what, plans))
    into_page(
        "plans",
        f"{machine()}; median of {runs} (smallest–largest); `python benchmarks/plans.py`\n\n"
        "| `merge --dry-run` | wall s | CPU s | peak memory |\n| --- | --- | --- | --- |\n"
        + "\n".join([*rows, row("`adaptertool --help`", [timed([*TOOL, "--help"]) for _ in range(runs)])]),
    )


def row(name: str, found: list[Timing]) -> str:
    walls, cpus = spread([one.wall for one in found]), spread([one.cpu for one in found])
    return f"| {name} | {walls} | {cpus} | {max(one.peak for one in found) / 1e6:,.0f} MB |"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
