"""Names of modules as kohya's tools write them: a prefix for the part of the model, and the path with _ for each dot.

That cannot be undone (to_out.0, to_out_0), so a name is found from the side of the base: among what its tensors would
be called. As sd-scripts, LyCORIS 4.1 and OneTrainer write them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# What such a name begins with -> the component of a diffusers pipeline that it means, where "unet" is the denoiser: a
# folder unet or transformer. None: any of them. A longer prefix stands before those that it begins with
PREFIXES: Mapping[str, str | None] = {
    "lora_unet__": "unet",  # Wan-Fun
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_transformer_": "unet",
    "lora_prior_unet_": "unet",  # Stable Cascade
    "lora_prior_te_": "text_encoder",
    "lora_prior_": "unet",
    "lycoris_": None,
}
# The same of names with dots, as diffusers and ComfyUI write them. T5 is the second text encoder of Flux, and the third
# of Stable Diffusion 3
DOTTED: Mapping[str, str | None] = {
    "unet.": "unet",
    "transformer.": "unet",
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": None,
    "text_encoders.qwen25_7b.transformer.": None,
    "text_encoders.qwen3_4b.transformer.": None,
    "text_encoders.llama.transformer.": None,
    "text_encoders.gemma2_2b.transformer.": None,
    "text_encoders.umt5xxl.transformer.": None,
    "text_encoders.": None,
}


def flattened(path: str) -> str:
    """The path of a module, or of a parameter that is its own, as such names have it after the prefix."""
    return path.replace(".", "_")


def by_flat_name(parameters: Iterable[str]) -> Mapping[str, list[str]]:
    """Parameters of a model (a.b.weight) by what they are called (a_b.weight), without a prefix."""
    found: dict[str, list[str]] = {}
    for parameter in parameters:
        module, _, kind = parameter.rpartition(".")
        found.setdefault(f"{flattened(module)}.{kind}", []).append(parameter)
    return found


def without_prefix(name: str) -> str | None:
    """What follows the prefix of such a name; None where it has none, or dots before its last part."""
    if "." in name.rpartition(".")[0]:
        return None
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), None)


def is_flat(name: str) -> bool:
    """Whether the name of a module is such a one: a prefix, and no dots."""
    return "." not in name and name.startswith(tuple(PREFIXES))
