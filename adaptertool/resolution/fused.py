"""Projections that are stored together, by the names that models have for them."""

from __future__ import annotations

from adaptertool.patterns import regex

# Projections that are stored together, in the order of their rows. Of the fused ones cut by convention, and not by a
# rule of transformers, the order was read off the families below.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
OTHER_FUSED = ("qkv", "Wqkv", "wqkv", "W_pack", "query_key_value", "c_attn", "in_proj", "w12", "gate_up")
FUSED_FAMILIES = frozenset({"phi3", "phi4_multimodal", "glm", "glm4"})
IN_FUSED = {  # part and number of parts
    "gate_proj": ("gate_up_proj", 0, 2), "up_proj": ("gate_up_proj", 1, 2), "down_proj": ("down_proj", 0, 1),
    "w1": ("gate_up_proj", 0, 2), "w3": ("gate_up_proj", 1, 2), "w2": ("down_proj", 0, 1),
}  # fmt: skip
EXPERT = regex(rf"(.*\.experts)\.(\d+)\.({'|'.join(IN_FUSED)})\.weight")


def split(name: str) -> tuple[str, str, str]:
    """(all before, projection, "weight" or "bias")"""
    prefix, _, kind = name.rpartition(".")
    before, dot, projection = prefix.rpartition(".")
    return before + dot, projection, kind
