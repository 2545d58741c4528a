"""Checkpoints and adapters for the benchmarks, written as streams of random numbers: no model is built."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

Shapes = dict[str, list[int]]

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class Llama:
    """Shapes and config of a Llama whose ends are not tied."""

    layers: int
    hidden: int = 2048
    inner: int = 5632
    heads: int = 32
    kv_heads: int = 4
    vocab: int = 8192

    @property
    def shapes(self) -> Shapes:
        hidden, inner, kv = self.hidden, self.inner, self.hidden // self.heads * self.kv_heads
        layer = {
            "self_attn.q_proj": [hidden, hidden],
            "self_attn.k_proj": [kv, hidden],
            "self_attn.v_proj": [kv, hidden],
            "self_attn.o_proj": [hidden, hidden],
            "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden],
            "mlp.down_proj": [hidden, inner],
            "input_layernorm": [hidden],
            "post_attention_layernorm": [hidden],
        }
        layers = {
            f"model.layers.{number}.{name}.weight": shape
            for number, (name, shape) in itertools.product(range(self.layers), layer.items())
        }
        ends = {"model.norm.weight": [hidden], "lm_head.weight": [self.vocab, hidden]}
        return {"model.embed_tokens.weight": [self.vocab, hidden], **layers, **ends}

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    @property
    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "vocab_size": self.vocab,
            "tie_word_embeddings": False,
        }


def normal(dtype: str, std: float, seed: int = 0) -> torch.Tensor:
    """A prime number of random numbers, so that hardly a tensor starts at the same one as another."""
    numbers = torch.randn(15_485_863, generator=torch.Generator().manual_seed(seed))
    return (numbers * std).to(DTYPES[dtype])


def write(path: Path, shapes: Shapes, dtype: str, numbers: torch.Tensor | None = None) -> None:
    """A safetensors file of these numbers, again and again; without numbers, of zeros that take no room on disk."""
    header, end, width = {}, 0, DTYPES[dtype].itemsize
    for name, shape in shapes.items():
        size = width * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        if numbers is None:
            file.truncate(8 + len(raw) + end)
            return
        stream = memoryview(numbers.view(torch.uint8).numpy())
        while end:
            end -= file.write(stream[:end])
        file.flush()
        os.fsync(file.fileno())  # so that no write is left over for what is measured next


def by_bytes(shapes: Shapes, most: int) -> list[Shapes]:
    """Shards of 16-bit tensors with at most so many bytes."""
    shards: list[Shapes] = [{}]
    size = 0
    for name, shape in shapes.items():
        width = 2 * math.prod(shape)
        if shards[-1] and size + width > most:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += width
    return shards


def by_count(shapes: Shapes, most: int) -> list[Shapes]:
    """Shards of at most so many tensors."""
    names = list(shapes)
    parts = [names[start : start + most] for start in range(0, len(names), most)]
    return [{name: shapes[name] for name in part} for part in parts]


def save_base(
    folder: Path,
    shards: Sequence[Shapes],
    config: dict[str, object] | None = None,
    dtype: str = "BF16",
    numbers: torch.Tensor | None = None,
) -> None:
    folder.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write(folder / name, shard, dtype, numbers)
        weight_map |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    if config:
        (folder / "config.json").write_text(json.dumps(config, indent=2))


def save_adapter(
    folder: Path,
    shapes: Shapes,
    rank: int,
    dtype: str = "F32",
    numbers: torch.Tensor | None = None,
    *,
    dora: bool = False,
) -> int:
    """A LoRA, or DoRA, on all linear layers as PEFT saves it; how many modules it has."""
    folder.mkdir(parents=True)
    modules = [name.removesuffix(".weight") for name in shapes if name.endswith("_proj.weight")]
    factors = {}
    for module in modules:
        rows, columns = shapes[f"{module}.weight"]
        factors[f"base_model.model.{module}.lora_A.weight"] = [rank, columns]
        factors[f"base_model.model.{module}.lora_B.weight"] = [rows, rank]
        factors |= {f"base_model.model.{module}.lora_magnitude_vector": [rows]} if dora else {}
    write(folder / "adapter_model.safetensors", factors, dtype, numbers)
    targets = sorted({module.rpartition(".")[2] for module in modules})
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets, "use_dora": dora}
    (folder / "adapter_config.json").write_text(json.dumps(fields, indent=2))
    return len(modules)
