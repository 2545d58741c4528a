"""Which family of modules a tensor belongs to, by its name. The rules are data, tried in order; names as of
transformers 5.23 and of the original releases of Llama, GPT-2, BERT and T5."""

from __future__ import annotations

import functools
import re

from adaptertool.patterns import regex

NORMS, HEADS, EMBEDDINGS, EXPERTS, ATTENTION, MLP, OTHER = FAMILIES = (
    "norms", "heads", "embeddings", "experts", "attention", "MLP", "other",
)  # fmt: skip
SHOWN_FIRST = (ATTENTION, MLP, EXPERTS, EMBEDDINGS, NORMS, HEADS, OTHER)

_LAST = (  # families that the last part of a module's path tells
    (NORMS, r".*norm\d*|ln_?\w*|.*_ln"),
    (HEADS, r"lm_head|embed_out|score|classifier|\w*_?outputs|proj_out|\w*_head|head|out_head|pre_classifier"),
)
_ANY = (  # and those that any part may tell
    (EMBEDDINGS, r".*embed.*|wte|wpe|shared|tok_embeddings|token_embd"),
    (EXPERTS, r"(?:shared_?)?experts?|router|ffn_\w+_exps|ffn_\w+_shexp|ffn_gate_inp"),
    (ATTENTION, r".*attn.*|.*attention.*|[qkvo]_?proj|w_?[qkvo]|w?qkv(?:_proj)?|w_pack|query(?:_key_value)?|key|value"),
    (MLP, r".*mlp.*|ffn?|ffn_(?:gate|up|down)|feed_?forward|densereludense|(?:gate|up|down|gate_up)_proj"
     r"|(?:c_)?fc(?:[12]|_in|_out)?|w[123]|w12|wi(?:_[01])?|lin[12]|intermediate|dense_h_to_4h|dense_4h_to_h"),
)  # fmt: skip
_BEHIND_ATTENTION = regex(r"(?:.*\.)?layer\.\d+\.output\.dense")  # BERT's second half of the MLP
_LAST_COMPILED = [(family, regex(pattern)) for family, pattern in _LAST]
_ANY_COMPILED = [(family, regex(rf"(?:.*\.)?(?:{pattern})(?:\..*)?")) for family, pattern in _ANY]


def family_of(name: str) -> str:
    """The family of a module, or of a tensor `<module>.weight` or `.bias`."""
    module = re.sub(r"\.(?:weight|bias)$", "", name)
    return _by_form(re.sub(r"(?<=\.)\d+(?=\.|$)", "0", module).lower())


@functools.lru_cache(maxsize=4096)
def _by_form(path: str) -> str:
    last = path.rpartition(".")[2]
    for family, pattern in _LAST_COMPILED:
        if pattern.fullmatch(last):
            return family
    if path == "output":  # Llama as it was released
        return HEADS
    for family, pattern in _ANY_COMPILED:
        if pattern.fullmatch(path):
            return family
    return MLP if _BEHIND_ATTENTION.fullmatch(path) else OTHER
