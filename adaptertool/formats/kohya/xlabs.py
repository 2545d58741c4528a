"""LoRA of XLabs for FLUX, whose attention processors have the layers of a block by names of their own. What these mean
is read from diffusers 0.42.1 (loaders.lora_conversion_utils, _convert_xlabs_flux_lora_to_diffusers); they have no
alphas."""

from __future__ import annotations

import re
from collections.abc import Iterator

from adaptertool.errors import MismatchError, shown
from adaptertool.kinds.lora import B
from adaptertool.spec.adapter import Module

_LAYER = re.compile(r"(?P<front>.*\b)(?P<block>(?:double|single)_blocks\.\d+)\.processor\.(?P<layer>qkv|proj)")
# Of a block with these layers -> as the original repository calls them. q, k and v of a single block have no name there
_NAMES = {
    ("double", "qkv", "_lora1"): "img_attn.qkv",
    ("double", "proj", "_lora1"): "img_attn.proj",
    ("double", "qkv", "_lora2"): "txt_attn.qkv",
    ("double", "proj", "_lora2"): "txt_attn.proj",
    ("single", "proj", "_lora"): "linear2",
}
_TOGETHER = re.compile(r"(?P<front>.*\b)single_blocks\.(?P<number>\d+)\.processor\.qkv")


def name_of(name: str, ending: str) -> str | None:
    """The module, where a key of such a file has this name and this ending; None where it is no such."""
    if (match := _LAYER.fullmatch(name)) is None:
        return None
    block, layer, lora = match["block"], match["layer"], ending.partition(".")[0]
    if (block.partition("_")[0], layer, lora) == ("single", "qkv", "_lora"):
        return name
    own = _NAMES.get((block.partition("_")[0], layer, lora))
    return None if own is None else f"{match['front']}{block}.{own}"


def apart(module: Module) -> Iterator[Module]:
    """The change of q, k and v of a single block as one of each, in names of diffusers; any other as it is. Raises
    MismatchError where its rows are not those of three."""
    if (match := _TOGETHER.fullmatch(module.name)) is None:
        yield module
        return
    whole = module.factors[B]
    rows = whole.shape[0] // 3
    if whole.shape[0] != 3 * rows:
        raise MismatchError(f"{whole.path}: {shown(whole.spec.name)} is {whole.spec}; these are no rows of q, k and v")
    for number, part in enumerate("qkv"):
        name = f"{match['front']}single_transformer_blocks.{match['number']}.attn.to_{part}"
        factors = {**module.factors, B: whole.rows(number * rows, (number + 1) * rows)}
        yield module._replace(name=name, target=f"{name}.weight", factors=factors, layer=name)
