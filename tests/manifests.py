"""Manifests, held against hashes that are made here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from conftest import lora_factors, write_adapter, write_checkpoint

MANIFEST, SUMS = "adaptertool.manifest.json", "SHA256SUMS"
PROJ = "model.layers.0.mlp.up_proj"


def facts(path: Path, *, sha256: bool = False) -> dict[str, Any]:
    data = path.read_bytes()
    found: dict[str, Any] = {"size": len(data), "blake3": blake3(data).hexdigest()}
    return found | ({"sha256": hashlib.sha256(data).hexdigest()} if sha256 else {})


def tree(folder: Path, *, sha256: bool = False) -> dict[str, dict[str, Any]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): facts(path, sha256=sha256) for path in files}


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return content


def checkpoint(folder: Path, *, shards: int = 3, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    torch.manual_seed(seed)
    tensors = {f"model.layers.{n}.mlp.up_proj.weight": torch.randn(96, 40).to(dtype) for n in range(5)}
    tensors |= {"model.norm.weight": torch.randn(40), "model.layers.0.steps": torch.arange(9)}
    return write_checkpoint(folder, tensors, shards=shards)


def lora(folder: Path, modules: tuple[str, ...] = (PROJ,), **config: Any) -> Path:
    tensors = {key: value for name in modules for key, value in lora_factors(name, (96, 40)).items()}
    return write_adapter(folder, tensors, **config)


def check(out: Path, base: Path, *sources: Path, sha256: bool = False) -> dict[str, Any]:
    found = manifest(out)
    assert found["inputs"]["base"] == tree(base, sha256=sha256)
    assert found["inputs"]["sources"] == [tree(source, sha256=sha256) for source in sources]
    expected = tree(out, sha256=sha256)
    del expected[MANIFEST]
    expected.pop(SUMS, None)
    assert found["files"] == expected
    assert str(out.parent) not in (out / MANIFEST).read_text()
    return found
