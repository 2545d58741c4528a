"""Plan a merge into a mixture of experts of 671 B parameters and 91,000 tensors, from headers alone.

    python benchmarks/plan_671b.py

The checkpoint is sparse: files of the true size that hold zeros and take no room on disk.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from measure import WORK, into_readme, machine, spread, timed

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


def write(path: Path, shapes: dict[str, list[int]], dtype: str, width: int) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = width * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


def make(base: Path, adapter: Path) -> tuple[int, int]:
    base.mkdir(parents=True)
    adapter.mkdir()
    shapes, weight_map = tensors(), {}
    names = list(shapes)
    per_shard = -(-len(names) // SHARDS)
    for number in range(SHARDS):
        shard = f"model-{number + 1:05}-of-{SHARDS:06}.safetensors"
        part = {name: shapes[name] for name in names[number * per_shard : (number + 1) * per_shard]}
        write(base / shard, part, "BF16", 2)
        weight_map |= dict.fromkeys(part, shard)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    factors = {}
    for name, shape in shapes.items():
        if name.endswith("_proj.weight"):
            module = "base_model.model." + name.removesuffix(".weight")
            factors[f"{module}.lora_A.weight"] = [RANK, shape[1]]
            factors[f"{module}.lora_B.weight"] = [shape[0], RANK]
    write(adapter / "adapter_model.safetensors", factors, "F32", 4)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 32}))
    return len(shapes), len(factors) // 2


def main(runs: int = 5) -> None:
    folder = WORK / "plan"
    shutil.rmtree(folder, ignore_errors=True)
    count, modules = make(folder / "base", folder / "adapter")
    call = ["merge", folder / "base", folder / "adapter", "-o", folder / "out", "--dry-run"]
    command = [sys.executable, "-m", "adaptertool", *map(str, call)]
    plans = [timed(command) for _ in range(runs)]
    helps = [timed([sys.executable, "-m", "adaptertool", "--help"]) for _ in range(runs)]
    report = json.loads(subprocess.run([*command, "--json"], check=True, stdout=subprocess.PIPE).stdout)
    peak = max(plan.peak for plan in plans) / 1e6
    into_readme(
        "plan_671b",
        f"{machine()}; median of {runs} (smallest–largest); `make bench`\n\n"
        "| | wall s | peak memory |\n| --- | --- | --- |\n"
        f"| `merge --dry-run` of {modules:,} modules into {count:,} tensors in {SHARDS} shards "
        f"({report['bytes_written'] / 1e12:.2f} TB) | {spread([plan.wall for plan in plans])} | {peak:,.0f} MB |\n"
        f"| `adaptertool --help` | {spread([h.wall for h in helps])} | {max(h.peak for h in helps) / 1e6:,.0f} MB |",
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
