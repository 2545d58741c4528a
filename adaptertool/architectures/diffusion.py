"""Which models an image or video checkpoint is made of, and what their tensors are called in other spellings.

A pipeline of diffusers says it itself (files/pipeline.py). A single file has the tensors of each model below a prefix
of its own, or those of the denoiser alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from adaptertool.architectures import clip, spellings, unet
from adaptertool.architectures.conversion import architecture_of
from adaptertool.architectures.relation import Relation
from adaptertool.patterns import regex

UNET, TEXT, TEXT_2, TEXT_3 = "unet", "text_encoder", "text_encoder_2", "text_encoder_3"
TEXTS = (TEXT, TEXT_2, TEXT_3)

# Single files, as those who trained the models, ComfyUI and diffusers have them
_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "model.diffusion_model.": (UNET,),
    "diffusion_model.": (UNET,),
    "net.": (UNET,),  # of Cosmos alone
    "cond_stage_model.transformer.": (TEXT,),
    "cond_stage_model.model.": (TEXT,),
    "conditioner.embedders.0.transformer.": (TEXT,),
    "conditioner.embedders.0.model.": (TEXT, TEXT_2),  # the refiner of SDXL, which has the second alone
    "conditioner.embedders.1.model.": (TEXT_2,),
    "text_encoders.clip_l.transformer.": (TEXT,),
    "text_encoders.clip_g.transformer.": (TEXT_2,),
    "text_encoders.t5xxl.transformer.": (TEXT_2, TEXT_3),  # of Flux, of Stable Diffusion 3
}
_ALL = tuple(_PREFIXES)
_OF_COSMOS = "net.x_embedder.proj.1.weight"
_T5 = frozenset({"t5", "umt5", "mt5"})
# Classes of diffusers that turn images into what denoisers work on, and back: adapters have no name for these
_NO_DENOISER = regex(r"(Asymmetric)?Autoencoder|VQModel|ConsistencyDecoderVAE")
_ENCODERS = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection"})


class Component(NamedTuple):
    """A model that is a part of a checkpoint."""

    prefix: str  # of the names of its tensors
    means: tuple[str, ...]  # what adapters call it
    config: Mapping[str, Any]


def components_of(
    names: Collection[str], config: Mapping[str, Any] | None, folders: Sequence[str] = (), *, is_file: bool = False
) -> list[Component]:
    """The models of a checkpoint of these tensors, which adapters may name; none where it is no such checkpoint.

    folders: those of a pipeline, by which `config` then has their configs
    """
    config = config or {}
    if folders:
        return [Component(f"{folder}.", _meant(folder, config[folder], folders), config[folder]) for folder in folders]
    architecture = architecture_of(config)
    if is_file or not architecture:  # what lies beside a file may be the config of another model
        below = [name for name in names if name.startswith(_ALL)]
        held = {prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in below)}
        if held := held - (set() if _OF_COSMOS in names else {"net."}):
            return [Component(one, means, {}) for one, means in _PREFIXES.items() if one in held]
    if architecture in _ENCODERS:
        return [Component("", TEXTS, config)]
    if architecture:
        return []
    if "_class_name" in config:
        return [] if _NO_DENOISER.match(str(config["_class_name"])) else [Component("", (UNET,), config)]
    return [Component("", (UNET,), {})] if unet.is_unet(names) or spellings.table_of(names, "") else []


def _meant(folder: str, config: Mapping[str, Any], folders: Sequence[str]) -> tuple[str, ...]:
    """What adapters call the model in a folder of a pipeline."""
    if not folder.startswith(TEXT):
        return (UNET,)
    also_third = folder == TEXT_2 and TEXT_3 not in folders and config.get("model_type") in _T5
    return (folder, TEXT_3) if also_third else (folder,)


def relations_of(names: Collection[str], config: Mapping[str, Any]) -> Iterator[Relation]:
    """The tensors of one model in its other spellings; nothing where it is not known."""
    if unet.is_unet(names):
        yield from unet.relations(names)
    elif clip.is_clip(names):
        yield from clip.relations(names)
    else:
        class_name = config.get("_class_name")
        yield from spellings.relations(names, spellings.table_of(names, class_name if class_name else ""))
