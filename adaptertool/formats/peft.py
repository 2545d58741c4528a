"""PEFT's adapters: `adapter_config.json` and `adapter_model.safetensors`.

Keys are `base_model.model.<module>.<suffix>`. Suffixes read here: `lora_A.weight`, `lora_B.weight`;
`base_layer.bias` of a targeted layer, and any plain tensor name (modules_to_save, biases), which replace
the base's tensor. All others are refused by name. As PEFT 0.21.2 writes them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from adaptertool.errors import InputError, MismatchError, UnsupportedError, shown
from adaptertool.files.header import read_header
from adaptertool.files.jsonfile import load_json
from adaptertool.files.reader import stamp_of
from adaptertool.formats.adapter import Adapter, Module
from adaptertool.formats.peft_config import LoraConfig, parse_config
from adaptertool.kinds import BY_NAME, FULL, LORA
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.lora import A, B
from adaptertool.spec import COMPUTED, Ref

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTORS = {f".{role}.weight": role for role in (A, B)}

# Parts of a key that name something with a meaning of its own; never to be taken for a plain tensor name.
_REFUSED_PARTS = {
    "lora_embedding_A": "adapters on embeddings are not supported yet",
    "lora_embedding_B": "adapters on embeddings are not supported yet",
    "lora_magnitude_vector": "DoRA adapters are not supported yet",
    "token_adapter": "trained token rows are not supported yet",
    "base_layer": "a base weight stored in the adapter is not supported yet",
}


def is_adapter(path: Path) -> bool:
    return (path / CONFIG).exists()


def read_adapter(path: Path) -> Adapter:
    """Read config and header of an adapter directory; no factor is read. Raises InputError."""
    _check_present(path)
    stamp = stamp_of(path / CONFIG)
    config = parse_config(path / CONFIG, load_json(path / CONFIG))
    header = read_header(path / WEIGHTS)
    factors: dict[str, dict[str, Ref]] = {}
    saved: dict[str, Ref] = {}
    for key, ref in header.tensors.items():
        if ref.spec.dtype not in COMPUTED:
            raise UnsupportedError(
                f"{header.path}: {shown(key)} is {ref.spec.dtype}; factors are {', '.join(COMPUTED)}"
            )
        if not key.startswith(_PREFIX):
            raise UnsupportedError(f"{header.path}: the key {shown(key)} does not begin with {_PREFIX}")
        _sort(header.path, key.removeprefix(_PREFIX), ref, factors, saved)
    modules = [_lora_module(config, header.path, name, roles) for name, roles in factors.items()]
    modules += [Module(name, name, FULL.name, {TUNED: ref}, 1.0) for name, ref in saved.items()]
    if not modules:
        raise InputError(f"{header.path} holds no tensors")
    return Adapter(path, {path / CONFIG: stamp, header.path: header.stamp}, tuple(modules))


def _check_present(path: Path) -> None:
    if not os.path.exists(path):
        raise InputError(f"{shown(path)} does not exist")
    if not os.path.isdir(path):
        raise InputError(f"{path} is not a directory; an adapter is a directory with {CONFIG} and {WEIGHTS}")
    if not is_adapter(path):
        hint = ""
        if any(path.glob("*.safetensors")):
            hint = "; a fine-tuned checkpoint is combined with its base by `adaptertool wise`"
        raise InputError(f"{path} is not an adapter: it has no {CONFIG}{hint}")
    if not (path / WEIGHTS).exists():
        pickle = (path / "adapter_model.bin").exists()
        hint = "only adapter_model.bin, a pickle; pickles are never opened: save it as safetensors" if pickle else ""
        raise InputError(f"{path} has no {WEIGHTS}" + (f", {hint}" if hint else ""))


def _sort(file: Path, key: str, ref: Ref, factors: dict[str, dict[str, Ref]], saved: dict[str, Ref]) -> None:
    """Put one tensor where it belongs: the factor of a module, or a saved tensor."""
    for suffix, role in _FACTORS.items():
        if key.endswith(suffix):
            factors.setdefault(key.removesuffix(suffix), {})[role] = ref
            return
    name = key.removesuffix(".base_layer.bias") + ".bias" if key.endswith(".base_layer.bias") else key
    for part in name.split("."):
        if part in _REFUSED_PARTS or part.startswith("lora_"):
            reason = _REFUSED_PARTS.get(part, "this factor is not known")
            raise UnsupportedError(f"{file}: {shown(ref.spec.name)}: {reason}")
    if name in saved:
        raise InputError(f"{file} holds two tensors for {shown(name)}")
    saved[name] = ref


def _lora_module(config: LoraConfig, file: Path, name: str, roles: Mapping[str, Ref]) -> Module:
    if missing := BY_NAME[LORA.name].needs - roles.keys():
        raise InputError(f"{file}: module {shown(name)} has no {', '.join(sorted(missing))}")
    rank, shape = config.rank_of(name), roles[A].spec.shape
    if shape[:1] != (rank,):
        raise MismatchError(
            f"{file}: {shown(roles[A].spec.name)} is {roles[A].spec}, but {config.path.name} gives the module "
            f"rank {rank} (r and rank_pattern); the scale alpha/r would be ambiguous"
        )
    return Module(name, f"{name}.weight", LORA.name, roles, config.scale_of(name))
