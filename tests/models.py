"""Tiny random models of many architectures, and the comparison of a merged one with PEFT's merge in float64."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from oracle import half_ulp_excess
from peft import PeftModel
from transformers.pytorch_utils import Conv1D

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
}
MOE = TEXT | {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
BERT = {key: value for key, value in TEXT.items() if key not in ("num_key_value_heads", "head_dim")}
SEQ2SEQ = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip


# model class, config, and options of the adapter (all-linear where none are given)
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LlamaForCausalLM": (TEXT, {}),
    "MistralForCausalLM": (TEXT, {}),
    "Qwen2ForCausalLM": (TEXT, {}),
    "Qwen3ForCausalLM": (TEXT, {}),
    "GemmaForCausalLM": (TEXT, {}),
    "Gemma2ForCausalLM": (TEXT, {}),
    "PhiForCausalLM": (TEXT, {}),
    "Phi3ForCausalLM": (TEXT, {}),
    "GPTNeoXForCausalLM": (BERT, {}),
    "GPT2LMHeadModel": ({"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}, {}),
    "OPTForCausalLM": (BERT | {"ffn_dim": 48, "word_embed_proj_dim": 32}, {}),
    "FalconForCausalLM": (BERT | {"new_decoder_architecture": False}, {}),
    "BloomForCausalLM": ({"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}, {}),
    "OlmoForCausalLM": (TEXT, {}),
    "CohereForCausalLM": (TEXT, {}),
    "StableLmForCausalLM": (TEXT, {}),
    "Starcoder2ForCausalLM": (TEXT, {}),
    "GraniteForCausalLM": (TEXT, {}),
    "BertForSequenceClassification": (BERT, {}),
    "BertForMaskedLM": (BERT, {"target_modules": ["query", "value"]}),
    "RobertaForSequenceClassification": (BERT, {}),
    "DebertaV2ForSequenceClassification": (BERT, {}),
    "DistilBertForSequenceClassification": (
        {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
        {},
    ),
    "T5ForConditionalGeneration": (
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        {"target_modules": ["q", "v", "wi", "wo"]},
    ),
    "BartForConditionalGeneration": (SEQ2SEQ, {}),
    "WhisperForConditionalGeneration": (
        SEQ2SEQ | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16, "pad_token_id": 0,
                   "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        {"target_modules": ["q_proj", "v_proj", "fc1", "conv1"]},
    ),
    "ViTForImageClassification": (VISION, {}),
    "DeiTForImageClassification": (VISION, {}),
    "BeitForImageClassification": (VISION, {}),
    "Dinov2ForImageClassification": (VISION, {}),
    "CLIPModel": ({"text_config": BERT, "vision_config": VISION, "projection_dim": 16}, {}),
    "SiglipModel": ({"text_config": BERT, "vision_config": VISION}, {"target_modules": ["q_proj", "fc1"]}),
    "LlavaForConditionalGeneration": (
        {"text_config": TEXT | {"model_type": "llama"}, "vision_config": VISION | {"model_type": "clip_vision_model"}},
        {},
    ),
    "Gemma3ForConditionalGeneration": (
        {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4},
        {},
    ),
    "Wav2Vec2ForCTC": (
        BERT | {"conv_dim": (16, 16), "conv_kernel": (3, 3), "conv_stride": (2, 2), "num_feat_extract_layers": 2,
                "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
        {"target_modules": ["q_proj", "intermediate_dense"]},
    ),
    "MixtralForCausalLM": (MOE, {"target_modules": ["q_proj", "o_proj"]}),
    "Qwen3MoeForCausalLM": (MOE, {"target_modules": ["q_proj", "k_proj"]}),
    "MambaForCausalLM": (
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        {"target_modules": ["in_proj", "x_proj"]},
    ),
}  # fmt: skip


def build(name: str, fields: dict[str, Any]) -> Any:
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**copy.deepcopy(fields)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 8)
    return model


ATTENTION = re.compile(
    r"(.*[._])?(q|k|v|qkv|query|key|value|Wqkv|c_attn|query_key_value|([qkv]|query|key|value|qkv)_proj|[qkv]_lin)"
)


def attention_of(model: Any) -> list[str]:
    """The projections of attention; of a model without any, its input projections."""
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    return [name for name in names if ATTENTION.fullmatch(name)] or [name for name in names if "in_proj" in name]


def outputs(model: Any) -> list[torch.Tensor]:
    """Every tensor that a model answers with, to inputs that it takes."""
    ids, size = torch.arange(12).reshape(2, 6) * 5 % 60 + 3, 16
    known = {
        "input_ids": ids, "decoder_input_ids": ids, "pixel_values": torch.linspace(-1, 1, 2 * 3 * size * size),
        "input_values": torch.linspace(-1, 1, 400).reshape(1, 400),
        "input_features": torch.linspace(-1, 1, 2 * 8 * 32).reshape(2, 8, 32),
    }  # fmt: skip
    known["pixel_values"] = known["pixel_values"].reshape(2, 3, size, size)
    takes = inspect.signature(model.forward).parameters
    given = {name: tensor for name, tensor in known.items() if name in takes}
    if "Llava" in type(model).__name__ or "Gemma3For" in type(model).__name__:
        del given["pixel_values"]  # no place for an image in these ids
    with torch.no_grad():
        answer = model.eval()(**given, return_dict=True)
    return [value for value in answer.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]


def compare(model: Any, base: Path, adapter: Path, out: Path, dtype: torch.dtype) -> int:
    """Every parameter of the merged model against PEFT's float64 merge; how many were changed."""
    loaded = type(model).from_pretrained(base, dtype=torch.float64)
    before = {key: tensor.clone() for key, tensor in loaded.state_dict().items()}
    exact = PeftModel.from_pretrained(loaded, adapter).double().merge_and_unload().state_dict()
    ours = type(model).from_pretrained(out, dtype=dtype).state_dict()
    assert ours.keys() == exact.keys()
    changed = 0
    for key, tensor in ours.items():
        if exact[key].equal(before[key]):
            assert tensor.double().equal(before[key]), key
        else:
            changed += 1
            assert half_ulp_excess(tensor, exact[key]).max() <= 1 + 1e-6, key
    return changed
