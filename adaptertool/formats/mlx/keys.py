"""The files of such an adapter, and the keys in them: the path of a module, and what the tensor is to it. As mlx-lm
0.32.2 writes them (tuner/lora.py, tuner/dora.py, models/switch_layers.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptertool.architectures.mlx import MLX
from adaptertool.errors import InputError
from adaptertool.files.jsonfile import load_json
from adaptertool.files.parsed import Parsed
from adaptertool.files.reader import exists
from adaptertool.formats.format import FileNames, Group
from adaptertool.patterns import regex

FORMAT = MLX
CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
_OF_PEFT = "adapter_model.safetensors"
# Beside it are those of earlier steps of the same training, which are whole adapters too
FILES = FileNames(CONFIG, WEIGHTS, "", patterns=(CONFIG, f"*{WEIGHTS}"), earlier=regex(rf"\d+_{WEIGHTS}"))

TYPE, PARAMETERS = "fine_tune_type", "lora_parameters"  # fields of the config

# What layers that look rows up are called: nn.Embedding of all models of mlx-lm 0.32.2
_LOOKED_UP = regex(
    r"embed|embed_in|embed_tokens(_per_layer)?|embeddings?|position_embedding_table|(tok|token|word)_embeddings|wpe|wte"
)
# Layers with the matrices of all experts in one tensor: what stands before is what checkpoints of Hugging Face call it
_STACK = regex(r"(.+?)(?:(?:\.experts)?\.(?:switch_mlp|switch_glu)|\.experts)\.([^.]+)")


def recognise(path: Path) -> bool:
    """Whether the config in a folder is one of MLX's: a config of PEFT's has peft_type. Beside PEFT's weights alone it
    is not looked at."""
    if not exists(path / CONFIG) or (exists(path / _OF_PEFT) and not exists(path / WEIGHTS)):
        return False
    try:
        fields = load_json(path / CONFIG)
    except (InputError, OSError):
        fields = {}  # who reads it says why not
    return "peft_type" not in fields and (TYPE in fields or PARAMETERS in fields or exists(path / WEIGHTS))


def is_looked_up(module: str) -> bool:
    """Whether the module is an embedding. Its name tells: its factors lie as those of a linear layer do."""
    return _LOOKED_UP.fullmatch(module.rpartition(".")[2]) is not None


def of_expert(module: str, expert: int) -> str | None:
    """What a checkpoint of Hugging Face calls the layer of one expert; None where it is no stack of experts."""
    match = _STACK.fullmatch(module)
    return None if match is None else f"{match[1]}.experts.{expert}.{match[2]}"


def by_names(files: Parsed) -> Iterator[Group]:
    """The tensors by the module that their keys name."""
    fields = files.json(CONFIG)
    groups: dict[str, list[Any]] = {}
    for key, ref in files.header(WEIGHTS).tensors.items():
        groups.setdefault(key.rpartition(".")[0], []).append(ref)
    for name, refs in groups.items():
        yield Group(name, str(fields.get(TYPE, "lora")), tuple(refs), _rank(fields))


def _rank(fields: Mapping[str, Any]) -> int | None:
    parameters = fields.get(PARAMETERS)
    rank = parameters.get("rank") if isinstance(parameters, dict) else None
    return rank if type(rank) is int else None
