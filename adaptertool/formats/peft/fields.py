"""The fields of adapter_config.json: which are read, which change nothing, and which are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptertool.errors import UnsupportedError, shown
from adaptertool.formats.peft import packing, variants
from adaptertool.kinds import SPELLED, Kind
from adaptertool.kinds.spelling import Spelling

FORMAT = "peft"  # the name of the format, here and in the spellings of kinds
LORA = "LORA"  # and DoRA, and the bias of a factor: they have one config, whose fields say which they are

# Read and acted on below.
_HANDLED = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "bias",
        "init_lora_weights",
        "use_dora",
        "lora_bias",
        "fan_in_fan_out",
        "trainable_token_indices",
        "target_parameters",
        "peft_version",
        "ensure_weight_tying",
        "base_model_name_or_path",
        *packing.FIELDS,
        variants.BLOCKS,
        variants.TRUNCATED,
        *variants.STEERING,
    }
)

# Of these, those that the config of every kind may have.
_ALWAYS_HANDLED = frozenset(
    {"peft_type", "rank_pattern", "alpha_pattern", "peft_version", "base_model_name_or_path", "bias", "fan_in_fan_out"}
    | {"init_lora_weights"}
)

# Known not to change what the stored factors mean: they steer training, or say again what the keys say.
_HARMLESS = frozenset(
    {
        "task_type", "auto_mapping", "revision", "inference_mode",
        "target_modules", "exclude_modules", "lora_dropout", "modules_to_save", "layers_to_transform",
        "layers_pattern", "megatron_core", "qalora_group_size", "runtime_config",
        # settings of an initialiser; init_lora_weights says which one was used
        "loftq_config", "eva_config", "corda_config", "lora_ga_config",
        # of other trainers. LoRA+ gives lora_B (and embeddings) a learning rate of their own: ms-swift, LLaMA-Factory,
        # axolotl and the paper's authors each name it otherwise
        "lorap_lr_ratio", "lorap_emb_lr", "loraplus_lr_ratio", "loraplus_lr_embedding", "lora_plus_lr_ratio",
        "loraplus_weight_decay",
        "lora_dtype",  # ms-swift: the dtype that the factors were trained in; as stored they say their own
        "swift_type",  # ms-swift: peft_type by another name, where that is LORA
        "merge_weights",  # PEFT before 0.3: whether layers merge while they are evaluated
        "unsloth_version",  # unsloth: which version wrote it
    }
)  # fmt: skip

OF_LORA = _HANDLED | _HARMLESS  # what a config of LoRA may have

# Understood, and not handled (yet): refused where set.
_REFUSED = {
    "layer_replication": "the model was built from replicated layers; a merge onto the original is wrong: build that "
    "model, save it, and give it as the base, with this field empty",
    "alora_invocation_tokens": "aLoRA acts only after its invocation tokens; it cannot be merged: keep it beside the "
    "base, and load both with PEFT",
    "use_qalora": "QA-LoRA pools its inputs, and was trained on GPTQ's codes; it cannot be merged into a weight: keep "
    "it beside that base, and load both with PEFT",
    "arrow_config": "Arrow routes between adapters by input; it cannot be merged: merge one of those adapters, or "
    "`sum` them with weights of your choice",
    "megatron_config": "Megatron's parallel layers are not supported",
}


def spelling_of(fields: Mapping[str, Any]) -> tuple[Kind, Spelling] | None:
    """The kind that peft_type alone tells; None for LoRA, and for what is not handled."""
    tag = fields.get("peft_type")
    return SPELLED.get((FORMAT, tag)) if isinstance(tag, str) else None


def alpha_field_of(fields: Mapping[str, Any]) -> str | None:
    """The name of the field with alpha; None where there is none."""
    spelled = spelling_of(fields)
    return "lora_alpha" if spelled is None else spelled[1].alpha


def require_known(path: Path, fields: Mapping[str, Any], spelling: Spelling | None) -> None:
    """Raises UnsupportedError for a field that is set, and is not known or not handled."""
    handled, refused = _HANDLED, _REFUSED
    if spelling is not None:
        handled = _ALWAYS_HANDLED | spelling.fields
        refused = {**_REFUSED, **spelling.refused}
    for name, value in fields.items():
        if name in handled or name in _HARMLESS or not value:
            continue
        reason = refused.get(name, "this field is not known; it may change the arithmetic, so it is not ignored")
        raise UnsupportedError(f"{path}: {shown(name)} = {shown(value)[:80]}: {reason}")
