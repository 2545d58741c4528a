"""What people have at hand when they make a mistake: small models, adapters, and the files that look like them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from commands import MODULE
from conftest import lora_factors, write_adapter, write_checkpoint
from safetensors.torch import save_file

from adaptertool import merge

OTHER = "model.layers.0.self_attn.q_proj"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5000000\n"


def make(root: Path) -> Path:
    """The folder in which the commands are typed."""
    tensors = {f"{MODULE}.weight": torch.randn(8, 6), f"{OTHER}.weight": torch.randn(6, 6)}
    tensors["model.norm.weight"] = torch.ones(6)
    base = write_checkpoint(root / "base", tensors, shards=2)
    write_checkpoint(root / "one", tensors)
    shutil.copy(root / "one/model.safetensors", root / "one.safetensors")
    write_checkpoint(root / "tuned", {name: tensor + 0.125 for name, tensor in tensors.items()})
    write_checkpoint(root / "norms", tensors | {"model.norm.weight": torch.full((6,), 2.0)})
    write_checkpoint(root / "wide", {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()})
    factors = dict(lora_factors(MODULE, (8, 6)))
    lora = write_adapter(root / "lora", factors, base_model_name_or_path="org/base")
    write_adapter(root / "lora2", lora_factors(OTHER, (6, 6)))
    merge(base, [lora], root / "merged")
    _folders(root, factors)
    _adapters(root, factors)
    _checkpoints(root, tensors)
    shutil.copytree(lora, root / "my lora")
    _written(root)
    (root / "note.txt").write_text("dear")
    (root / "empty").mkdir()
    (root / "pages.jsonl").write_text('{"prompt": "a"}\n')
    return root


def _written(root: Path) -> None:
    """What is run: recipes, configurations of mergekit, and what is taken for one."""
    step = "merge: {base: base, adapters: [lora], out: applied}\n"
    (root / "recipe.yaml").write_text(step)
    (root / "typo.yaml").write_text(step.replace("adapters", "adapter"))
    (root / "text.yaml").write_text(step.replace("[lora]", "lora"))
    (root / "noout.yaml").write_text(step.replace(", out: applied", ""))
    (root / "tab.yaml").write_text("merge:\n\tbase: base\n")
    (root / "nothing.yaml").write_text("")
    ties = "models: [{model: tuned, parameters: {density: 0.5, weight: 1}}]\nmerge_method: ties\nbase_model: base\n"
    (root / "ties.yml").write_text(ties)
    (root / "wieght.yml").write_text(ties.replace("weight", "wieght"))
    (root / "tiess.yml").write_text(ties.replace("ties", "tiess"))
    (root / "alone.yml").write_text(ties.replace("tuned", "lora"))
    (root / "recipes").mkdir()
    (root / "recipes/first.yaml").write_text(step)
    (root / "plan.json").write_text("{}")


def _folders(root: Path, factors: dict[str, torch.Tensor]) -> None:
    """Those that lie around what is meant."""
    for step in (500, 1000):
        write_adapter(root / f"training/checkpoint-{step}", factors)
    (root / "training/trainer_state.json").write_text("{}")
    write_adapter(root / "output/checkpoint-500", factors)
    for name in ("first", "second"):
        write_adapter(root / "runs" / name, factors)
    for commit in ("0123abcd", "ffff0000"):
        shutil.copytree(root / "one", root / "models--org--two/snapshots" / commit)
    shutil.copytree(root / "lora", root / "models--org--lora/snapshots/4567")
    shutil.copytree(root / "one", root / "clone/model")
    taken = root / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("dear")


def _adapters(root: Path, factors: dict[str, torch.Tensor]) -> None:
    """Damaged, unfinished, and of other kinds."""
    first, second = factors
    write_adapter(root / "nan", factors | {second: torch.full((8, 4), torch.nan)})
    write_adapter(root / "huge", {name: torch.full_like(factor, 1e30) for name, factor in factors.items()})
    write_adapter(root / "half", {first: factors[first]})
    write_adapter(root / "rank", factors | {second: torch.ones(8, 5)})
    write_adapter(root / "gate", lora_factors(MODULE.replace("up", "gate"), (8, 6)))
    write_adapter(root / "wrong", lora_factors(MODULE, (8, 7)))
    write_adapter(root / "prompt", factors, peft_type="PREFIX_TUNING")
    write_adapter(root / "unknown", factors, peft_type="NOVELTY")
    write_adapter(root / "zero", factors, r=0)
    write_adapter(root / "extra", factors | {"model.stray": torch.ones(2)})
    for name in ("cut", "lfs", "nofile", "pickle", "noconfig", "badconfig", "listconfig", "norank"):
        write_adapter(root / name, factors)
    weights = root / "cut/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    (root / "lfs/adapter_model.safetensors").write_text(LFS)
    (root / "nofile/adapter_model.safetensors").unlink()
    torch.save(factors, root / "pickle/adapter_model.bin")
    (root / "pickle/adapter_model.safetensors").unlink()
    (root / "noconfig/adapter_config.json").unlink()
    (root / "badconfig/adapter_config.json").write_text('{"r": 4,')
    (root / "listconfig/adapter_config.json").write_text("[]")
    (root / "norank/adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file(factors, root / "loose.safetensors")


def _checkpoints(root: Path, tensors: dict[str, torch.Tensor]) -> None:
    for name in ("short", "swapped", "badindex", "lfsbase", "badjson"):
        write_checkpoint(root / name, tensors, shards=2)
    for name in ("lost", "changed"):
        shutil.copytree(root / ("base" if name == "lost" else "merged"), root / name)
    (root / "short/model-00001-of-00002.safetensors").write_bytes(b"\xff" * 64)
    (root / "lost/model-00002-of-00002.safetensors").unlink()
    (root / "swapped/model-00001-of-00002.safetensors").rename(root / "swapped/a")
    (root / "swapped/model-00002-of-00002.safetensors").rename(root / "swapped/model-00001-of-00002.safetensors")
    (root / "swapped/a").rename(root / "swapped/model-00002-of-00002.safetensors")
    (root / "badindex/model.safetensors.index.json").write_text('{"weight_map": 5}')
    (root / "lfsbase/model-00001-of-00002.safetensors").write_text(LFS)
    (root / "badjson/config.json").write_text("{")
    (root / "changed/config.json").write_text(json.dumps({"model_type": "other"}))
    (root / "pickled").mkdir()
    torch.save(tensors, root / "pickled/pytorch_model.bin")
    torch.save(tensors, root / "model.pt")
    (root / "model.gguf").write_bytes(b"GGUF")
    unmerged = {
        f"{MODULE}.base_layer.weight": tensors[f"{MODULE}.weight"],
        f"{MODULE}.lora_A.default.weight": torch.ones(4, 6),
    }
    write_checkpoint(root / "unmerged", unmerged)
