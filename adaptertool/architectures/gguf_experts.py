"""Experts in GGUF: all of a layer in one tensor (E, out, in), of which a checkpoint has one for each, or others. As
llama.cpp's converter writes those of these architectures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from adaptertool.architectures.conversion import architecture_of
from adaptertool.architectures.gguf import ARCHITECTURE
from adaptertool.files.jsonfile import objects
from adaptertool.patterns import regex


class _Names(NamedTuple):
    module: str  # with the experts of a layer
    projections: Mapping[str, str]  # gate, up and down of one


_PLAIN = {name: f"{name}_proj" for name in ("gate", "up", "down")}
_OF_ARCHITECTURE = {
    "MixtralForCausalLM": _Names("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}),
    "Qwen2MoeForCausalLM": _Names("mlp", _PLAIN),
    "Qwen3MoeForCausalLM": _Names("mlp", _PLAIN),
}
_MODULES = {"llama": ("block_sparse_moe", "mlp"), "qwen2moe": ("mlp",), "qwen3moe": ("mlp",)}  # by the one in GGUF
_STACK = regex(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight")
_OWN = {own: name for names in _OF_ARCHITECTURE.values() for name, own in names.projections.items()}
_EXPERT = regex(rf"model\.layers\.(\d+)\.(mlp|block_sparse_moe)\.experts\.(\d{{1,9}})\.({'|'.join(_OWN)})\.weight")
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # of a config: how many


def count_in(config: Mapping[str, Any] | None, fields: Mapping[str, Any] | None = None) -> int | None:
    """How many experts a layer has, as a config says, or the fields of a GGUF file."""
    if fields is not None:
        count = fields.get(f"{fields.get(ARCHITECTURE)}.expert_count")
        return count if type(count) is int else None
    return next((part[key] for part in objects(config or {}) for key in COUNTS if type(part.get(key)) is int), None)


def stack_in_gguf(
    config: Mapping[str, Any] | None, fields: Mapping[str, Any] | None, target: str
) -> tuple[str, int] | None:
    """(the tensor in GGUF with all experts of a layer, which of them) for the weight of one; None where it is none, or
    not known to be there.

    config, fields: of a checkpoint, or of a GGUF file
    """
    names = _OF_ARCHITECTURE.get(architecture_of(config))
    modules = _MODULES.get(str(fields.get(ARCHITECTURE)), ()) if fields is not None else ()
    match = _EXPERT.fullmatch(target)
    if match is None or match[2] not in ((names.module, "mlp") if names is not None else modules):
        return None
    return f"blk.{match[1]}.ffn_{_OWN[match[4]]}_exps.weight", int(match[3])


def experts_of(config: Mapping[str, Any] | None, stack: str) -> Iterator[str]:
    """The weights of all experts of a stack in GGUF, in order, as a checkpoint of this config has them apart."""
    names, match = _OF_ARCHITECTURE.get(architecture_of(config)), _STACK.fullmatch(stack)
    if names is None or match is None:
        return
    for expert in range(count_in(config) or 0):
        yield f"model.layers.{match[1]}.{names.module}.experts.{expert}.{names.projections[match[2]]}.weight"
