"""config.json of a candidate beside that of the base: what would make a loader compute something else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adaptertool.errors import shown
from adaptertool.files.jsonfile import objects
from adaptertool.patterns import regex

# Fields that change nothing that a model computes: names, versions, training, and what generation reads elsewhere too.
_HARMLESS = regex(
    r"_.*|transformers_version|(torch_)?dtype|use_cache|architectures_?version|auto_map|task_specific_params|torchscript"
    r"|(id2label|label2id|problem_type|finetuning_task|tokenizer_class|prefix|model_max_length|language|license)"
    r"|(bos|eos|pad|sep|cls|mask|unk|decoder_start|forced_bos|forced_eos)_token_id|initializer_(range|factor)"
    r"|output_(attentions|hidden_states|scores|router_logits)|return_dict.*|gradient_checkpointing|use_bfloat16"
    r"|.*(dropout|drop|pdrop|dropout_p|aux_loss_coef|jitter_noise)|attn_implementation|unsloth_.*|chunk_size_feed_forward"
    r"|max_length|min_length|do_sample|temperature|top_[kp]|typical_p|num_beams.*|repetition_penalty|length_penalty"
    r"|no_repeat_ngram_size|.*_token_index|pretraining_tp|use_mem_.*|fuse_.*|memory_efficient_.*"
)
# Fields that a base has and a candidate must have too: a loader would take another value where one is not there.
_NEEDED = regex(
    r"model_type|architectures|vocab_size|hidden_size|intermediate_size|num_(hidden_layers|attention_heads|key_value_heads)"
    r"|n_(layer|head|embd)|d_(model|ff|kv)|num_(layers|heads)|head_dim|rope|rope_theta|rms_norm_eps|layer_norm_eps(ilon)?"
    r"|hidden_act|activation_function|sliding_window|layer_types|num_(local_)?experts.*|.*_(multiplier|softcapping|scalar)"
    r"|attention_bias|mlp_bias|partial_rotary_factor|logits?_scal(e|ing)|routed_scaling_factor|n_group|topk_group"
    r"|norm_topk_prob|moe_intermediate_size|feed_forward_proj|original_max_position_embeddings|factor"
    r"|use_parallel_residual|state_size|scoring_func|n_(routed|shared)_experts"
)
# One thing under several names; since transformers 5 all of a rotary embedding is one object.
_NAMES = {"torch_dtype": "dtype", "num_experts": "num_local_experts"}
_ROPE = ("rope_parameters", "rope_scaling", "rope_theta")
_LISTED = 8  # fields


def config_problems(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """A line for each field of `found` that differs from what is expected and changes what is computed."""
    elsewhere = [_plain(part) for part in objects(found)]  # since transformers 5 a part may have what the whole had
    lines = list(_differences(_plain(expected), _plain(found), "", elsewhere))
    yield from lines[:_LISTED]
    if len(lines) > _LISTED:
        yield f"config.json differs in {len(lines) - _LISTED} more fields"


def _differences(
    expected: Mapping[str, Any], found: Mapping[str, Any], within: str, elsewhere: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    for name in sorted({*expected, *found}):
        if _HARMLESS.fullmatch(name):
            continue
        own, other, place = expected.get(name), found.get(name), shown(within + name)
        if isinstance(own, Mapping) and isinstance(other, Mapping):
            one, two = (own, other) if name.startswith("rope") else (_plain(own), _plain(other))
            yield from _differences(one, two, f"{within}{name}.", elsewhere)
        elif own == other or (not own and not other):
            continue
        elif name == "quantization_config" and not own:
            yield f"config.json has a {place}, which the base has not: loaders take its weights for quantised ones"
        elif name in found and name in expected:
            yield f"config.json has {place} {_said(other)}, not {_said(own)} as it should be"
        elif (
            name in expected
            and (_NEEDED.fullmatch(name) or isinstance(own, Mapping))
            and not any(part.get(name) == own for part in elsewhere)
        ):
            yield f"config.json has no {place}, which should be {_said(own)}"


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with one name for each thing."""
    plain = {_NAMES.get(name, name): value for name, value in config.items() if name not in _ROPE}
    if config.get("use_sliding_window") is False:  # what is not used may be left out
        plain = {name: value for name, value in plain.items() if name not in ("sliding_window", "max_window_layers")}
    rope, local = _rope(config), plain.pop("rope_local_base_freq", None)
    kinds = {name: part for name, part in rope.items() if isinstance(part, Mapping)}  # one for each type of layer
    if not kinds and local is not None:  # as Gemma 3 had them before transformers 5
        kinds = {"full_attention": rope, "sliding_attention": {"rope_theta": local}}
    for name, part in kinds.items():
        plain[f"rope of {name}"] = _rope({"rope_parameters": part})
    if rope and not kinds:
        plain["rope"] = rope
    return plain


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    if not any(config.get(name) for name in _ROPE):
        return {}
    whole: dict[str, Any] = {"rope_type": "default"}
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(part := config.get(name), Mapping):
            whole |= part
    if "type" in whole:  # the older name
        whole["rope_type"] = whole.pop("type")
    if config.get("rope_theta") is not None:
        whole.setdefault("rope_theta", config["rope_theta"])
    return {name: float(value) if type(value) is int else value for name, value in whole.items()}


def _said(value: Any) -> str:
    text = shown(str(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
