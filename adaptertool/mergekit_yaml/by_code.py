"""Models whose code says by the number what a layer is, where config.json does not: by model_type.

The lists are what the config classes of transformers 5.23 make of a config.json without them
(tests/mergekit_yaml/test_configs.py holds these tables against the classes that are installed).
"""

from __future__ import annotations

from collections.abc import Mapping

# What the attention of a layer is: every k-th is of another kind
PERIODS: Mapping[str, int] = {
    "gemma2": 2, "gpt_oss": 2, "cohere2": 4, "exaone4": 4, "olmo3": 4, "gemma3n_text": 5, "gemma3_text": 6,
    "vaultgemma": 2,
}  # fmt: skip
# Keys of config.json that have an entry for each layer, and which the code makes up by other rules
DERIVED: Mapping[str, frozenset[str]] = {
    "layer_types": frozenset(
        {
            "beam", "cwm", "deepseek_v4", "flint", "glm5_next_text", "granite_swa", "granitemoe_swa", "inkling_text",
            "kimi_linear", "kolibri1", "lfm3", "lfm3_vl_vision", "mimo_v2_flash", "minimax", "modernbert",
            "modernbert-decoder", "muse_glimmer_text", "muse_glimmer_vision", "muse_spark_text", "muse_spark_vision",
            "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp_text", "t5_gemma_module",
            "t5gemma2_decoder", "t5gemma2_text", "ultrabert",
        }
    ),
    "mlp_layer_types": frozenset(
        {
            "axk1", "axk2", "beam", "deepseek_v4", "ernie4_5_vl_moe_text", "glm4_moe_lite", "glm5_next_text", "hy_v3",
            "hy_v4", "kimi_linear", "laguna", "mimo_v2_flash", "step3p5", "unlimited_ocr_text",
        }
    ),
    "indexer_types": frozenset({"hy_v4"}),
    "layer_rope_theta": frozenset({"muse_glimmer_text", "muse_spark_text"}),
    "layers_block_type": frozenset({"zamba"}),
}  # fmt: skip
# Numbers of config.json by which the code of these models makes up such a list, where they are there
INSTEAD: Mapping[str, frozenset[str]] = {
    "full_attention_interval": frozenset({"qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp_text"}),
    "first_k_dense_replace": frozenset({"axk1", "axk2", "unlimited_ocr_text"}),
    "global_attn_every_n_layers": frozenset({"modernbert", "modernbert-decoder"}),
}
# Models whose first layer is another one: it has other tensors, or none before its attention
FIRST_APART = frozenset({"modernbert", "modernbert-decoder", "rwkv"})
# Models that compute with the number of a layer: any other number is another function
NUMBERED = frozenset({"diffllama"})
