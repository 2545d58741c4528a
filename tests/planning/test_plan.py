"""The plan: made from headers alone, right about what the run will do, also for very many tensors."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import write_sparse

import adaptertool
from adaptertool.engine.budget import BASE_MEMORY, bytes_to_read, bytes_to_write, predicted_memory
from adaptertool.output.preview import preview

EXPERTS = [f"model.layers.{layer}.mlp.experts.{expert}" for layer in range(2) for expert in range(40)]


def huge_checkpoint(folder: Path, shards: int = 4) -> Path:
    """Experts of 7168×2048 in bf16, 29 MB each: 7 GB in all, sparse."""
    folder.mkdir()
    names = [f"{expert}.{part}_proj.weight" for expert in EXPERTS for part in ("gate", "up", "down")]
    weight_map = {}
    for number in range(shards):
        shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: ("BF16", [7168, 2048], 7168 * 2048 * 2) for name in names[number::shards]}
        write_sparse(folder / shard, part, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def adapter_for(folder: Path, modules: list[str], rank: int = 8) -> Path:
    folder.mkdir()
    tensors = {}
    for module in modules:
        for role, shape in (("A", [rank, 2048]), ("B", [7168, rank])):
            key = f"base_model.model.{module}.lora_{role}.weight"
            tensors[key] = ("F32", shape, shape[0] * shape[1] * 4)
    write_sparse(folder / "adapter_model.safetensors", tensors, {})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 16}))
    return folder


def test_a_plan_reads_no_weights(tmp_path: Path) -> None:
    base = huge_checkpoint(tmp_path / "base")
    adapter = adapter_for(tmp_path / "a", [f"{expert}.up_proj" for expert in EXPERTS])
    plan = adaptertool.prepare_merge(base, [adapter])
    report = preview(plan, tmp_path / "out", force=False, threads=2)
    size = sum(path.stat().st_size for path in base.iterdir())
    assert (report.tensors_edited, report.tensors_copied) == (80, 160)
    assert report.bytes_written == report.disk_needed == bytes_to_write(plan) == size
    assert report.bytes_read == bytes_to_read(plan) == size + 80 * 8 * (2048 + 7168) * 4
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """More threads, or a larger A, cost memory; a larger model costs its names only."""
    base = huge_checkpoint(tmp_path / "base")
    few = adaptertool.prepare_merge(base, [adapter_for(tmp_path / "few", [f"{EXPERTS[0]}.up_proj"])])
    many = adaptertool.prepare_merge(base, [adapter_for(tmp_path / "many", [f"{e}.up_proj" for e in EXPERTS])])
    wide = adaptertool.prepare_merge(base, [adapter_for(tmp_path / "wide", [f"{EXPERTS[0]}.up_proj"], rank=256)])
    assert predicted_memory(few, 2) == predicted_memory(many, 2) < BASE_MEMORY + 200e6
    assert predicted_memory(few, 2) < predicted_memory(few, 3)
    assert predicted_memory(few, 2) < predicted_memory(wide, 2)
