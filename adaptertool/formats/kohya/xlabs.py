"""LoRA of XLabs for FLUX, whose attention processors have the layers of a block by names of their own. What these mean
is read from diffusers 0.42.1 (loaders.lora_conversion_utils, _convert_xlabs_flux_lora_to_diffusers), and they get
diffusers' names; they have no alphas."""

from __future__ import annotations

from collections.abc import Iterator

from adaptertool.errors import MismatchError, shown
from adaptertool.kinds.lora import B
from adaptertool.patterns import regex
from adaptertool.spec.adapter import Module

_LAYER = regex(r"(?P<front>(?:.*\.)?)(?P<block>double|single)_blocks\.(?P<number>\d+)\.processor\.(?P<layer>\w+)")
# A block, and a layer in it -> the block in diffusers, and what the layer is there, or q, k and v of it are
_NAMES = {
    ("double", "qkv_lora1"): ("transformer_blocks", ("attn.to_q", "attn.to_k", "attn.to_v")),
    ("double", "proj_lora1"): ("transformer_blocks", ("attn.to_out.0",)),
    ("double", "qkv_lora2"): ("transformer_blocks", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    ("double", "proj_lora2"): ("transformer_blocks", ("attn.to_add_out",)),
    ("single", "qkv_lora"): ("single_transformer_blocks", ("attn.to_q", "attn.to_k", "attn.to_v")),
    ("single", "proj_lora"): ("single_transformer_blocks", ("proj_out",)),
}


def name_of(name: str, ending: str) -> str | None:
    """The layer as `apart` knows it, where a key of such a file has this name and this ending; None where it is no
    such."""
    whole = name + ending.partition(".")[0]
    return whole if _names_of(whole) else None


def apart(module: Module) -> Iterator[Module]:
    """The change of such a layer as those of the layers of diffusers; any other as it is. Raises MismatchError where
    its rows are not those of q, k and v."""
    names, whole = _names_of(module.name), module.factors.get(B)
    if not names or whole is None:
        yield module
        return
    rows = whole.shape[0] // len(names)
    if whole.shape[0] != rows * len(names):
        raise MismatchError(f"{whole.path}: {shown(whole.spec.name)} is {whole.spec}; these are no rows of q, k and v")
    for number, name in enumerate(names):
        own = {**module.factors, B: whole.rows(number * rows, (number + 1) * rows)}
        factors = {role: ref.renamed(f"{name}.{role}.weight") for role, ref in own.items()}  # A is that of several
        yield module._replace(name=name, target=f"{name}.weight", factors=factors, layer=name)


def _names_of(name: str) -> list[str]:
    match = _LAYER.fullmatch(name)
    if match is None or (match["block"], match["layer"]) not in _NAMES:
        return []
    block, layers = _NAMES[match["block"], match["layer"]]
    return [f"{match['front']}{block}.{match['number']}.{layer}" for layer in layers]
