"""What single files hold that is understood, and not merged: by signs in their keys."""

from __future__ import annotations

import re

from adaptertool.patterns import regex

# What is found in a key -> what it is, and what to do
_REFUSED = {
    r"\.(?:[pq]_layer\.weight|lambda_layer)$": "T-LoRA of LyCORIS, whose rank depends on the step of denoising, and "
    "which takes away factors that are not in its file: load it with the tool that trained it",
    r"\.lokr_t1$": "no tool that is known uses it",
    r"^bundle_emb\.": "an embedding of textual inversion, which stands for a new word of the prompt and changes no "
    "weight: save the file without these tensors, and load the embedding by itself",
    r"_custom_diffusion\.weight$": "Custom Diffusion puts another layer in place of this one: load it with diffusers "
    "(load_attn_procs)",
    r"\b(?:double|single)_blocks\.\d+\.processor\.(?!(?:qkv|proj)_lora)": "an IP-Adapter of XLabs for FLUX, which adds "
    "layers to the model and changes none: load it with diffusers (load_ip_adapter)",
    r"\bloras\.[^.]+\.lora_[AB]$": "an adapter of the library adapters (AdapterHub): merge it there "
    "(merge_adapter), and save the model; `adaptertool extract` makes an adapter of the difference",
    r"\.norm\.(?:key|query)_norm\.scale$": "a control LoRA of Black Forest Labs, which widens the first layer of FLUX "
    "and replaces norms: load it with diffusers (FluxControlPipeline), beside its base",
    r"^lora_controlnet$": "a control LoRA of Stability AI, which makes a ControlNet of a copy of the model, and does "
    "not change the model: load it as a ControlNet",
}
_ANY = regex("|".join(_REFUSED))


def why_refused(key: str) -> str | None:
    """What a key says that is not merged, and what to do; None where it says nothing of the kind."""
    if _ANY.search(key) is None:
        return None
    return next(why for sign, why in _REFUSED.items() if re.search(sign, key))
