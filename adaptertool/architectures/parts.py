"""The parts of a pipeline that adapters change, and what formats of adapters have in front of the names in each.

As diffusers 0.42 calls its folders, kohya's sd-scripts (2026-02) its prefixes, and ComfyUI (2026) its models.
"""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    name: str  # of the folder of a pipeline
    kohya: str  # before flat names
    comfy: str  # before names of the original model
    in_file: tuple[str, ...] = ()  # before names in single files that hold all parts


_DENOISER = ("model.diffusion_model.", "diffusion_model.")
PARTS = (
    Part("unet", "lora_unet_", "diffusion_model.", _DENOISER),
    Part("transformer", "lora_unet_", "diffusion_model."),
    Part(
        "text_encoder",
        "lora_te1_",
        "text_encoders.clip_l.transformer.",
        ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer."),
    ),
    Part(
        "text_encoder_2",
        "lora_te2_",
        "text_encoders.clip_g.transformer.",
        ("conditioner.embedders.1.model.", "text_encoders.clip_g.transformer."),
    ),
    Part("text_encoder_3", "lora_te3_", "text_encoders.t5xxl.transformer.", ("text_encoders.t5xxl.transformer.",)),
)
BY_NAME = {part.name: part for part in PARTS}
ORIGINALS = "diffusion_model."  # before names in the original model
DENOISERS = ("unet", "transformer")
ONLY_TEXT_ENCODER = "lora_te_"  # instead of its own, where a pipeline has no other

# How paths in the parts of pipelines begin, where they stand without the part
_BEGINS = {
    "unet": ("down_blocks.", "mid_block.", "up_blocks.", "input_blocks.", "middle_block.", "output_blocks."),
    "transformer": (
        "transformer_blocks.",
        "single_transformer_blocks.",
        "double_blocks.",
        "single_blocks.",
        "joint_blocks.",
    ),
    "text_encoder": ("text_model.",),
}


def part_of(path: str) -> tuple[Part | None, str]:
    """(the part that a path begins with, the path in it); None where it begins with none."""
    for part in PARTS:
        for front in (f"{part.name}.", *part.in_file):
            if path.startswith(front):
                return part, path.removeprefix(front)
    return None, path


def likely_part(path: str) -> Part | None:
    """The part that a path without one seems to be in, by how it begins."""
    return next((BY_NAME[name] for name, fronts in _BEGINS.items() if path.startswith(fronts)), None)


def path_in(part: Part, path: str) -> tuple[Part, str]:
    """The part whose name formats of files have for this one, and the path as they have it: a second text encoder may
    be a T5, which they call the third; and CLIP has text_model, which transformers since 5 leaves out."""
    if part.name in DENOISERS:
        return part, path
    if path.startswith(("encoder.block.", "shared.", "encoder.final_layer_norm.")):
        return BY_NAME["text_encoder_3"], path
    clip = path.startswith(("encoder.layers.", "embeddings.", "final_layer_norm."))
    return part, f"text_model.{path}" if clip else path
