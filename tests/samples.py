"""A sample for each format: how to make an adapter of it with one layer, and what to spoil."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import PREFIX, Tensors, lora_factors, write_adapter
from gguf_files import write_lora
from safetensors.torch import load_file, save_file

LAYER = "model.layers.0.self_attn.q_proj"  # of a weight (8, 6)
FLAT = f"lycoris_{LAYER.replace('.', '_')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    make: Callable[[Path], Path]  # writes an adapter that changes LAYER, and saves "score.weight" whole if it can
    with_tensor: Callable[[Path, str], None]  # adds a tensor under a key that the format does not know
    with_field: Callable[[Path, str, Any], None] | None = None  # adds a field to its config; None: it has none
    layer: str = LAYER  # as its tensors name it


def _make(folder: Path) -> Path:
    return write_adapter(folder, {**lora_factors(LAYER, (8, 6)), "score.weight": torch.ones(3, 6)})


def _with_field(folder: Path, name: str, value: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


def _with_tensor(folder: Path, name: str) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {f"{PREFIX}{LAYER}.lora_{name}.weight": torch.ones(2)}, path)


def _make_single(path: Path, module: str, down: str, up: str) -> Path:
    a, b = lora_factors(LAYER, (8, 6)).values()
    path.parent.mkdir(exist_ok=True)
    save_file({f"{module}{down}": a, f"{module}{up}": b, f"{module}.alpha": torch.tensor(2.0)}, path)
    return path


def _single(module: str, down: str, up: str) -> Sample:
    """One file, with all factors of a module named so."""
    return Sample(
        make=lambda path: _make_single(path, module, down, up),
        with_tensor=lambda path, name: save_file(load_file(path) | {f"{module}.{name}": torch.ones(2)}, path),
        layer=module,
    )


GGUF_LAYER = "blk.0.attn_q"


def _make_gguf(path: Path, **more: np.ndarray[Any, Any]) -> Path:
    a, b = lora_factors(LAYER, (8, 6)).values()
    own = {f"{GGUF_LAYER}.weight.lora_a": a.numpy(), f"{GGUF_LAYER}.weight.lora_b": b.numpy()}
    path.parent.mkdir(exist_ok=True)
    return write_lora(path, own | {f"{GGUF_LAYER}.{name}": array for name, array in more.items()})


def _with_gguf_tensor(path: Path, name: str) -> None:
    _make_gguf(path, **{name: np.ones(2, np.float32)})


def write_mlx(folder: Path, tensors: Tensors, fields: dict[str, Any]) -> Path:
    """An adapter of MLX's; its config has no fields that are None."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "adapters.safetensors")
    config = {name: value for name, value in fields.items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _make_mlx(folder: Path) -> Path:
    a, b = lora_factors(LAYER, (8, 6)).values()
    tensors = {f"{LAYER}.lora_a": a.T.contiguous(), f"{LAYER}.lora_b": b.T.contiguous()}
    parameters = {"rank": 4, "scale": 2.0, "dropout": 0.0}
    return write_mlx(folder, tensors, {"fine_tune_type": "lora", "num_layers": 8, "lora_parameters": parameters})


def _with_mlx_field(folder: Path, name: str, value: Any) -> None:
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "lora_parameters": {**fields["lora_parameters"], name: value}}))


def _with_mlx_tensor(folder: Path, name: str) -> None:
    path = folder / "adapters.safetensors"
    save_file(load_file(path) | {f"{LAYER}.{name}": torch.ones(2)}, path)


SAMPLES = {
    "peft": Sample(make=_make, with_field=_with_field, with_tensor=_with_tensor),
    "kohya": _single(FLAT, ".lora_down.weight", ".lora_up.weight"),
    "comfy": _single(f"diffusion_model.{LAYER}", ".lora_A.weight", ".lora_B.weight"),
    "diffusers": _single(f"transformer.{LAYER}", ".lora.down.weight", ".lora.up.weight"),
    "gguf": Sample(make=_make_gguf, with_tensor=_with_gguf_tensor, layer=GGUF_LAYER),
    "mlx": Sample(make=_make_mlx, with_field=_with_mlx_field, with_tensor=_with_mlx_tensor),
}
