"""docs/cases.md: what is handled and what is refused, made from these tests and held against them.

    python tests/test_cases.py    writes the page anew

Each row of the first table names a test, which must be there. Each row of the second is run: the message is the one
that a user gets.
"""

from __future__ import annotations

import ast
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Tensors, lora_factors, write_adapter, write_checkpoint
from expert_models import MODELS as EXPERTS
from gguf_files import field, write_lora
from models import MODELS
from safetensors.torch import save_file
from samples import write_mlx
from tied_models import MODELS as TIED

import adaptertool
from adaptertool.errors import InputError
from adaptertool.formats.peft.refused import REFUSED as PEFT_REFUSED

PAGE = ROOT / "docs" / "cases.md"
Q = "model.layers.0.self_attn.q_proj"
E = "model.embed_tokens"

# what, how it is handled, the test that shows it
HANDLED = [
    ("Adapters in another format", "convert: PEFT, kohya, diffusers, ComfyUI; alphas, rsLoRA, DoRA, biases",
     "tasks/test_convert.py::test_there_and_back"),
    ("Names of the other repository", "convert: sgm and diffusers, fused and split layers",
     "oracle/test_convert_pipelines.py::test_all_parts"),
    ("Pipelines of diffusers", "U-Net and text encoders; names of kohya's tools, diffusers, ComfyUI",
     "oracle/test_pipelines.py::test_on_a_pipeline"),
    ("Single files of image models", "names of the original repository; OpenCLIP",
     "oracle/test_pipelines.py::test_on_a_single_file"),
    ("Fused and split projections, swapped halves", "Flux, in names of diffusers and of the original repository",
     "resolution/test_components.py::test_one_change_of_both"),
    ("Linear", "LoRA, rsLoRA, DoRA; rank_pattern, alpha_pattern",
     "oracle/test_peft_oracle.py::test_adapters_made_by_peft"),
    ("VeRA", "linear layers and Conv1D, where the shared matrices are saved",
     "kinds/test_vera.py::test_every_element_is_the_rounding_of_the_formula"),
    ("HiRA", "linear layers, Conv1D, embeddings and convolutions",
     "kinds/test_hira.py::test_every_element_is_the_rounding_of_the_formula"),
    ("GraLoRA", "linear layers and Conv1D; with hybrid_r",
     "kinds/test_gralora.py::test_every_element_is_the_rounding_of_the_formula"),
    ("MiSS, Bone", "linear layers, and their variants mini and bat",
     "kinds/test_miss.py::test_every_element_is_the_rounding_of_the_formula"),
    ("RandLoRA", "linear layers and Conv1D, where the shared matrices are saved",
     "kinds/test_randlora.py::test_every_element_is_the_rounding_of_the_formula"),
    ("DeLoRA", "linear layers; norms to 106 bits",
     "kinds/test_delora.py::test_every_element_is_the_rounding_of_the_formula"),
    ("TinyLoRA", "linear layers, Conv1D and embeddings, where the matrices are saved; a vector for all, or for groups",
     "kinds/test_tinylora.py::test_every_element_is_the_rounding_of_the_formula"),
    ("VB-LoRA", "linear layers and Conv1D; logits, or the largest shares",
     "kinds/test_vblora.py::test_every_element_is_the_rounding_of_the_formula"),
    ("GLoRA", "linear layers and their biases; where it changes biases, no adapter before it may change the weight",
     "kinds/test_glora.py::test_the_bias"),
    ("PEANuT", "linear layers, by relu, relu2, relu6, leaky_relu, hardswish, linear; no adapter before it may "
     "change the weight",
     "kinds/test_peanut.py::test_every_command"),
    ("PVeRA", "linear layers and Conv1D: its mean, where the shared matrices are saved",
     "kinds/test_pvera.py::test_every_element_is_the_rounding_of_the_formula"),
    ("UniLoRA", "linear layers and Conv1D, where places and scales are saved",
     "kinds/test_unilora.py::test_every_element_is_the_rounding_of_the_formula"),
    ("sum --base of any kind", "the LoRA nearest to what it changes in matrices, with its error; also of several kinds",
     "algebra/test_any_kind.py::test_the_leading_part_of_each_kind"),
    ("LoHa", "linear layers, and convolutions as their matrix; every command but truncate, and sum with --base",
     "kinds/test_loha.py::test_merge_is_that_of_peft"),
    ("LoHa in Tucker form (use_effective_conv2d)", "convolutions in one and two dimensions; as a LoHa of rank r²",
     "kinds/test_loha_tucker.py::test_every_command"),
    ("LoKr", "linear layers and convolutions, stored, decomposed or in Tucker form; alpha/r also where both are stored",
     "kinds/test_lokr.py::test_linear"),
    ("truncate of LoKr", "of PEFT on matrices, without a base: the nearest LoRA, and how near it is",
     "algebra/test_kronecker.py::test_nearest_of_a_rank"),
    ("(IA)³", "rows and biases, or the columns of feedforward_modules; Conv1D, Conv2d, Conv3d with groups",
     "kinds/test_ia3.py::test_outputs"),
    ("LN_TUNING, TRAINABLE_TOKENS", "tuned tensors, and rows of embeddings",
     "formats/test_peft_replacing.py::test_token_rows"),
    ("SHiRA", "elements at the indices of the file; indices outside of the weight, or twice, are refused",
     "kinds/test_shira.py::test_every_command"),
    ("C3A", "circulant blocks, times the float64 nearest to 1/in", "kinds/test_c3a.py::test_every_command"),
    ("FourierFT", "places drawn by random_loc_seed as torch does; with cosines that are correctly rounded float64",
     "kinds/test_fourierft.py::test_the_error_is_within_the_bound"),
    ("WaveFT", "all wavelets that PEFT can transform by, or use_idwt: false",
     "kinds/test_waveft.py::test_every_command"),
    ("OFT", "linear layers, embeddings and convolutions of one point; by inverse or series, coft, block_share",
     "kinds/test_oft.py::test_every_command"),
    ("BOFT", "linear layers and square convolutions; several stages too", "kinds/test_boft.py::test_every_command"),
    ("RoAd", "linear layers and their biases; road_1, road_2, road_4", "kinds/test_road.py::test_every_command"),
    ("HRA", "linear layers and square convolutions; apply_GS", "kinds/test_hra.py::test_every_command"),
    ("DEFT, PaRa", "linear layers and Conv1D; relu, and qr where the signs of the basis are clear",
     "kinds/test_deft.py::test_every_command"),
    ("GLoRA of LyCORIS", "linear layers and convolutions", "kinds/test_lycoris_glora.py::test_every_command"),
    ("DoRA of LyCORIS (dora_scale)", "over LoRA, LoHa and LoKr, also in Tucker form; of rows, of columns, of the input "
     "channels of convolutions", "kinds/test_dora_scale.py::test_every_element_is_rounded_correctly"),
    ("OFT and BOFT of LyCORIS (oft_blocks, rescale)", "linear layers and convolutions; with a bound where "
     "LyCORIS says that it wrote it",
     "oracle/test_lycoris.py::test_merge_is_what_the_forward_pass_computes"),
    ("Conv1D of GPT-2 (stored transposed)", "by shape; where square, by model family and name; fan_in_fan_out of the "
     "config is not believed", "oracle/test_peft_layers.py::test_gpt2"),
    ("Embedding, Conv1d, Conv2d, Conv3d", "LoRA and DoRA", "oracle/test_peft_layers.py::test_layer"),
    ("OSF, KaSA, FRoD", "what they are made of is decomposed from the base, in float64, as it was rounded to 16 bits",
     "oracle/test_peft_decomposed.py::test_each_dtype"),
    ("torch.nn.MultiheadAttention", "in_proj, and out_proj twice, as PEFT trains it",
     "oracle/test_peft_layers.py::test_multihead_attention"),
    ("lora_bias", "added to the layer's bias", "oracle/test_peft_layers.py::test_lora_bias"),
    ("bias='all' and 'lora_only', modules_to_save", "replace the base's tensors",
     "tasks/test_merge.py::test_saved_tensors_replace_and_mix"),
    ("base_layer.weight", "replaces the base's weight, and the delta comes on top",
     "oracle/test_peft_layers.py::test_base_layer_weight_replaces_and_the_delta_comes_on_top"),
    ("trainable_token_indices", "rows of the embedding are replaced; of a tied model at both ends",
     "oracle/test_peft_layers.py::test_trained_token_rows"),
    ("Several adapters, weights", "one chain, rounded once; compose sequential or mixed",
     "oracle/test_peft_layers.py::test_two_adapters"),
    ("DoRA with a weight or alpha", "W + w·(W' − W)",
     "oracle/test_peft_layers.py::test_weighted_dora_moves_part_of_the_way"),
    ("target_parameters: fused experts", "onto experts stored one by one, fused, or fused and transposed",
     "oracle/test_experts.py::test_target_parameters"),
    ("lora_A of fused experts on either dimension", "by shapes; where square, by the other parameter of the module, or "
     "by peft_version", "oracle/test_experts.py::test_square_experts_go_by_the_version_of_peft"),
    ("Adapters of single experts", "onto fused, transposed and interleaved experts too",
     "oracle/test_experts.py::test_adapters_of_single_experts_onto_every_way_of_storing_them"),
    ("Mixtral as of transformers 4 (w1, w2, w3)", "the same bytes as the fused adapter",
     "oracle/test_experts.py::test_adapters_of_transformers_4_onto_mixtral"),
    ("Split q, k, v or gate, up onto fused projections", "the rows that they are",
     "oracle/test_projections.py::test_split_adapters_onto_fused_projections"),
    ("Fused projections onto split ones", "cut by rows",
     "oracle/test_projections.py::test_fused_adapters_onto_split_projections"),
    ("Names of transformers 4 and 5", "by a table derived from transformers",
     "resolution/test_names.py::test_names_of_both_ages"),
    ("Base saved with or without the prefix of the head", "one change of prefix for the whole adapter, and it is said",
     "resolution/test_names.py::test_with_and_without_the_prefix_of_the_head"),
    ("Adapter of a language model by itself, onto the model that it is a tower of",
     "one change of prefix, and it is said; never onto another tower",
     "resolution/test_names.py::test_the_language_model_by_itself"),
    ("Keys with module. or _orig_mod. before them, without base_model.model., with the adapter's name inside",
     "read as PEFT would have saved them, and it is said", "formats/test_peft_keys.py::test_keys_are_read"),
    ("Adapters of Tinker (model.unembed_tokens)", "as lm_head, and it is said",
     "formats/test_peft_keys.py::test_the_head_as_tinker_names_it"),
    ("Adapters of Tinker with stacked experts", "read one by one, and it is said",
     "formats/test_peft_tinker.py::test_stacked_experts_onto_every_way_of_storing_them"),
    ("Full checkpoints with the names of transformers 4 and 5, without the prefix of the head, with gamma and beta",
     "found by wise, extract, diff, verify, merge --method and --fisher; outputs have the names of the base",
     "resolution/test_correspondence.py::test_every_command_finds_the_names"),
    ("A tied end, or a buffer that models compute themselves, in one of two checkpoints only",
     "no difference, and it is said", "resolution/test_correspondence.py::test_a_tied_end_that_one_side_leaves_out"),
    ("sum of adapters with the names of transformers 4 and 5",
     "joined where the base or the architecture is known; else refused",
     "planning/test_namesakes.py::test_names_of_two_versions_are_joined"),
    ("Other names", "--rename 'regex=>replacement'; of tuned and merged checkpoints too",
     "resolution/test_names.py::test_rename"),
    ("Tied embeddings, changed at one end or differently", "stored apart; config.json, header and index follow",
     "resolution/test_ties.py::test_lora_on_either_end"),
    ("Tied embeddings, the same change at both ends", "made once; they stay tied",
     "resolution/test_ties.py::test_one_change_for_both_is_made_once"),
    ("Resized vocabulary, saved whole", "shapes, config.json, header and index follow",
     "resolution/test_resize.py::test_resized_vocabulary"),
    ("target_modules that PEFT turns into parameters of experts; lists of them for several architectures",
     "what the base has decides", "oracle/test_experts.py::test_target_modules_that_peft_turns_into_parameters"),
    ("Token rows of both ends", "each end its own; those of the embedding alone go to both",
     "resolution/test_ties.py::test_both_ends_have_token_rows_of_their_own"),
    ("save_embedding_layers=True with token rows or modules_to_save", "copies are left out by name",
     "resolution/test_ties.py::test_modules_to_save_and_the_whole_embeddings"),
    ("Trained weights in a file beside the adapter", "safetensors with names of the base: they replace its tensors",
     "formats/test_beside.py::test_tensors_of_the_base_are_read"),
    ("What trainers leave beside an adapter, OUTs of ours in its folder", "known, and no part of it",
     "formats/test_beside.py::test_what_holds_no_weights_makes_no_noise"),
    ("State of a trainer beside the base (optimizer.pt, global_step500/)", "left out, and it is said",
     "files/test_checkpoint.py::test_folder_of_a_trainer"),
    ("A shard that the index does not name, whose tensors are elsewhere", "left out, and it is said",
     "files/test_checkpoint.py::test_stray_shard_whose_tensors_are_all_indexed_elsewhere"),
    ("Tokenizer or chat template beside the adapter", "a note; --tokenizer adapter takes it",
     "planning/test_tokenizer.py::test_the_tokenizer_of_the_adapter"),
    ("Weights that are not quantised in a base that is, or by its config", "edited; what is stored tells",
     "architectures/test_quantised.py::test_what_is_not_quantised_merges_beside_what_is"),
    ("A quantised base (FP8, INT8, INT2 to INT8 packed, MXFP4, NVFP4, bitsandbytes, GPTQ, AWQ), edited",
     "--dtype bf16, f16 or f32: decoded, edits made to the exact numbers, a dense checkpoint written",
     "codecs/test_decoded.py::test_decoded_and_edited"),
    ("Single files of ComfyUI in FP8 or INT8, with scales or without", "--dtype as above",
     "codecs/test_comfy.py::test_with_scales"),
    ("A quantised checkpoint that is only read: extract, sum, truncate, inspect, --as-adapter", "decoded",
     "tasks/test_quantised_beside.py::test_as_for_the_dense_base"),
    ("An output in files of another size", "--max-shard-size 5GB, 4GiB or a number of bytes",
     "planning/test_sharding.py::test_the_same_tensors_in_files_of_that_size"),
    ("Experts of GPT-OSS in MXFP4", "--dtype as above, under the names and in the orientation of a dense checkpoint",
     "oracle/test_quantised_oracle.py::test_adapter_of_experts_of_gpt_oss"),
    ("A quantised base that is to stay so (FP8, MXFP8, INT8, INT4, MXFP4, NVFP4)",
     "--quantise keep: codes are the nearest to the exact numbers; what survives is told",
     "tasks/test_keep.py::test_lora"),
    ("The same of bitsandbytes, GPTQ, AWQ, with zero points or an order of columns; of a dense base",
     "--quantise keep is refused by name", "tasks/test_keep.py::test_refused_by_name"),
    ("Quantised by what is not decoded (HQQ, torchao, AQLM, QuIP, EXL3, marlin, NVFP4_AWQ); configs and codes that do "
     "not agree", "refused by name", "architectures/test_refused_codes.py::test_refused"),
    ("Config fields of other trainers that touch no arithmetic (ms-swift, LoRA+, unsloth)", "passed over by name",
     "formats/test_peft_config.py::test_fields_of_other_trainers_that_touch_no_arithmetic"),
    ("lora_B of zeros, rows of it that are zero, lora_alpha 0; an update that is lost in rounding",
     "notes, and counts of what changed; --fail-if-unchanged",
     "output/test_outcome.py::test_rows_of_lora_b_that_are_zero"),
    ("File systems without flock, fsync of directories, fallocate, hard links, or a count of free space",
     "the run goes on, and a note says what is lost", "files/test_file_systems.py::test_goes_on_and_says_so"),
    ("What a killed run of another recipe left", "named with its size; --clean removes it",
     "files/test_leftovers.py::test_said_at_the_start_and_at_the_end"),
    ("lora_B of fused experts packed by expert (unsloth)", "as lora_B_layout of the config says; where it does not, as "
     "PEFT has it, with a note, or by --expert-layout; sum and truncate write PEFT's packing",
     "resolution/test_expert_layout.py::test_the_same_merge_onto_every_way_of_storing_experts"),
    ("A new head for labels (score, classifier), or another number of labels", "added; config.json follows, the old "
     "head is left out", "resolution/test_heads.py::test_decoders"),
    ("Layers of Mamba models that PEFT takes no factors for (out_proj)", "extract saves them whole",
     "algebra/test_extract.py::test_layers_that_peft_takes_no_factors_for_are_saved_whole"),
    ("extract --leave-out of tensors whose shapes differ, or that one side lacks", "left out, and said",
     "algebra/test_extract.py::test_what_is_left_out_needs_no_equal_shapes"),
    ("Saved tensors in a sum", "kept where a weight is 1, and what is merged is the same; else refused",
     "planning/test_sum_saved.py::test_merging_a_sum_is_merging_its_adapters"),
    ("attached, on a compiled model, or on weights that are used without their layer", "compiled anew; changed in "
     "place; both are said", "live/test_bypass.py::test_compiled_before"),
    ("BEFT", "added to the biases of layers", "kinds/test_beft.py::test_every_command"),
    ("Super-Tuning, Supra", "single elements of linear layers, and a LoRA; its indices must be in the file",
     "kinds/test_supertuning.py::test_every_command"),
    ("VeLoRA, MonteCLoRA, MiCA, EVA", "LoRA after training; what steered it is left out, and said",
     "oracle/test_peft_variants.py::test_merge_is_that_of_peft"),
    ("BD-LoRA: a factor in diagonal blocks", "as the whole matrix; every command",
     "oracle/test_peft_variants.py::test_blocks_on_a_part_of_a_fused_projection"),
    ("Single files of ComfyUI and diffusers", "told by what keys begin with; all names of factors, an alpha for "
     "each module, else 1", "formats/test_single_files.py::test_every_spelling"),
    ("diff, diff_b, set_weight of ComfyUI", "added, or put in the place of the base's, also where a parameter is no "
     "layer's", "formats/test_single_files.py::test_what_comfy_adds_and_replaces"),
    ("Control LoRAs of ComfyUI (reshape_weight)", "padded with zeros, then changed; in_channels of the config follow",
     "oracle/test_padded.py::test_a_model_of_diffusers_loads_what_was_padded"),
    ("Folders of diffusers (pytorch_lora_weights.safetensors)", "with PEFT's config in the metadata: rsLoRA, patterns, "
     "DoRA, lora_bias; without, scale 1", "oracle/test_diffusers.py::test_the_config_in_the_metadata"),
    ("LoRA of XLabs for FLUX", "names of its own, as diffusers takes them",
     "oracle/test_xlabs.py::test_a_merge_is_what_diffusers_makes_of_it"),
    ("Attention processors of 2023", "as the layers that they were for",
     "oracle/test_diffusers.py::test_attention_processors_of_2023"),
    ("GGUF models (F64, F32, F16, BF16) as bases", "written as they were, but for the numbers: header, offsets, "
     "padding; tensors in blocks (Q8_0, Q4_K, ...) are copied", "tasks/test_gguf.py::test_all_but_the_numbers_stays"),
    ("GGUF models in blocks, with --dtype", "Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K are decoded, exact, and "
     "matrices stored as F16, BF16 or F32; vectors, norms, routers and all fields stay",
     "tasks/test_gguf_dtype.py::test_a_merge_is_rounded_once"),
    ("convert of experts", "factors for all of them become those of each, and stacks in MLX and GGUF",
     "tasks/test_convert_readable.py::test_factors_of_all_experts_become_those_of_each"),
    ("GGUF adapters", "alpha/r, or 1 where alpha is missing or 0; turned embeddings, stacks of experts, "
     "factors in Q8_0",
     "formats/test_gguf.py::test_alpha_is_divided_by_the_rank"),
    ("Adapters of PEFT onto GGUF, and of GGUF onto checkpoints", "names, and rows in another order, by a table that "
     "llama.cpp's converter was asked for", "resolution/test_across_gguf.py::test_all_four_ways_are_the_same"),
    ("convert to GGUF and back", "the same factors; scales that one alpha does not say go into lora_b",
     "resolution/test_across_gguf.py::test_as_adapter_of_gguf_and_back"),
    ("Adapters of mlx-lm", "lora, dora and full; linear layers, embeddings, stacks of experts",
     "oracle/test_mlx.py::test_a_merge_is_what_mlx_fuses"),
    ("Stacks of experts of MLX, and experts one by one", "found from either side",
     "oracle/test_mlx.py::test_experts_by_themselves_and_in_a_stack"),
    ("convert to MLX", "factors turned; one rank and one scale, zeros and lora_b make up for others",
     "oracle/test_mlx.py::test_mlx_loads_what_is_written"),
    ("Checkpoints of earlier steps beside an adapter of mlx-lm", "not read, and it is said",
     "formats/test_mlx.py::test_what_lies_beside"),
    ("An index beside the only file of weights, as MLX writes it", "read, and carried over",
     "formats/test_mlx.py::test_an_index_beside_the_only_file"),
    ("Adapter that names another base", "a note",
     "formats/test_peft_format.py::test_an_adapter_for_another_base_is_noted"),
]  # fmt: skip
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False, "vocab_size": 10}
WEIGHTS = {f"{Q}.weight": torch.zeros(8, 6), f"{E}.weight": torch.zeros(10, 6), "lm_head.weight": torch.zeros(10, 6)}
LORA = dict(lora_factors(Q, (8, 6)))
SINGLE = {"unet.x.lora_A.weight": torch.ones(4, 6), "unet.x.lora_B.weight": torch.ones(8, 4)}
GGUF = {
    f"blk.0.attn_q.weight.lora_{role}": np.ones(shape, np.float32) for role, shape in (("a", (4, 6)), ("b", (8, 4)))
}

MLX = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 10.0}}
TURNED = {f"{Q}.lora_{role}": torch.ones(shape) for role, shape in (("a", (6, 4)), ("b", (4, 8)))}


def case(
    what: str, *, config: dict[str, Any] | None = None, weights: Tensors | None = None, tensors: Tensors | None = None,
    **fields: Any,
) -> tuple[str, dict[str, Any], Tensors, Tensors, dict[str, Any]]:  # fmt: skip
    """A base and an adapter that are refused: the config and tensors of each, where they are not the usual ones; and
    tensors in a file `beside` those of the adapter."""
    return what, LLAMA | (config or {}), WEIGHTS if weights is None else weights, tensors or LORA, fields


REFUSED = [
    *(case(f"init_lora_weights: {init}", init_lora_weights=init) for init in
      ("pissa", "olora", "corda", "lora_ga", "loftq")),
    case("aLoRA", alora_invocation_tokens=[1]),
    case("Arrow", arrow_config={"top_k": 2}),
    case("QA-LoRA", use_qalora=True),
    case("BD-LoRA with DoRA or lora_bias", use_bdlora={"nblocks": 2}, use_dora=True),
    case("KaSA with DoRA", kasa_config={"beta": 1e-4}, use_dora=True),
    case("layer_replication", layer_replication=[[0, 1]]),
    case("megatron_config", megatron_config={"x": 1}),
    *(case(f"peft_type {kind}", peft_type=kind) for kind, why in PEFT_REFUSED.items() if "yet" not in why),
    case("A peft_type that is not known", peft_type="NEW"),
    case("A config field that is not known", brand_new_field=True),
    case("use_dora together with lora_bias", use_dora=True, lora_bias=True, tensors=LORA | {
        f"{Q}.lora_magnitude_vector": torch.ones(8), f"{Q}.lora_B.bias": torch.ones(8)}),
    case("use_dora without magnitudes", use_dora=True),
    case("A rank that is not that of the config", r=8),
    case("A factor that is not known", tensors=LORA | {f"{Q}.lora_velora_embed": torch.ones(2)}),
    case("A module that the base does not have", tensors=lora_factors("model.layers.7.self_attn.q_proj", (8, 6))),
    case("An adapter for a model of other shapes", tensors=lora_factors(Q, (8, 7))),
    case("Factors that were saved without gathering them (ZeRO-3)", tensors={name: torch.zeros(0) for name in LORA}),
    case("What may be trained weights beside the adapter", beside={"v_head.summary.weight": torch.ones(1, 6)}),
    case("lora_alpha as text", lora_alpha="8"),
    case("A base that holds an adapter that is not merged", weights=WEIGHTS | {
        f"{Q}.base_layer.weight": torch.zeros(8, 6)}),
    case("A saved weight beside factors for it, not as their base layer", tensors=LORA | {
        f"{Q}.weight": torch.zeros(8, 6)}),
    case("A layout of lora_B that is not known", lora_B_layout="other"),
    case("A new head, and no task_type", tensors=LORA | {"score.weight": torch.zeros(3, 6)}),
    case("A new head that is not all there", tensors=LORA | {"score.weight": torch.zeros(3, 6)}, task_type="TOKEN_CLS"),
    case("NaN in a factor", tensors={name: tensor * float("nan") for name, tensor in LORA.items()}),
    case("Grouped convolution", weights={"conv.weight": torch.zeros(8, 2, 3)}, tensors={
        "conv.lora_A.weight": torch.zeros(4, 4, 3), "conv.lora_B.weight": torch.zeros(8, 4, 1)}),
    case("Base whose layers hold codes (bitsandbytes, GPTQ, AWQ, fp8, MXFP4, compressed-tensors)",
         config={"quantization_config": {"quant_method": "gptq"}},
         weights={f"{Q}.qweight": torch.zeros(1, 8, dtype=torch.int32), f"{Q}.scales": torch.zeros(1, 8)}),
    case("Base quantised by what stands beside a weight", weights=WEIGHTS | {f"{Q}.weight_scale_inv": torch.ones(1)}),
    case("Base stored as fp8", weights=WEIGHTS | {f"{Q}.weight": torch.zeros(8, 6).to(torch.float8_e4m3fn)}),
    case("Embedding of an architecture whose ties are not known", config={
        "architectures": ["NeverHeardOf"], "tie_word_embeddings": True}, tensors=lora_factors("lm_head", (10, 6))),
    case("Tied by the config, and stored twice", config={"tie_word_embeddings": True},
         tensors=lora_factors("lm_head", (10, 6))),
    case("A vocabulary resized at one end only", tensors={f"{E}.weight": torch.zeros(12, 6)}),
    case("A vocabulary that shrinks below a token that is needed", config=LLAMA | {"pad_token_id": 9}, tensors={
        f"{E}.weight": torch.zeros(8, 6), "lm_head.weight": torch.zeros(8, 6)},
        weights={f"{E}.weight": torch.zeros(10, 6), "lm_head.weight": torch.zeros(10, 6)}),
    case("An embedding of a tied model that was saved without its head", config={
        "architectures": ["LlamaModel"], "model_type": "llama", "tie_word_embeddings": True},
        weights={"embed_tokens.weight": torch.zeros(10, 6)}, tensors=lora_factors(E, (10, 6))),
    case("k_proj inside qkv_proj, and a config that does not tell where", config={"model_type": "phi3"},
        weights={"self_attn.qkv_proj.weight": torch.zeros(16, 6)}, tensors=lora_factors("self_attn.k_proj", (4, 6))),
    case("Keys of several adapters in one file", tensors={
        f"{Q}.lora_A.one.weight": torch.zeros(4, 6), f"{Q}.lora_B.two.weight": torch.zeros(8, 4)}),
    case("Stacked experts of Tinker's adapters, both factors of one for all", tensors={
        f"mlp.experts.w1.lora_{role}.weight": torch.ones(1, 4, 4) for role in "AB"}),
    case("An adapter of a model by itself that could be that of two towers", weights={
        f"model.{tower}.layers.0.q.weight": torch.zeros(8, 6) for tower in ("language_model", "text_model")},
        tensors=lora_factors("model.layers.0.q", (8, 6))),
    case("A gap in the numbers of experts", weights={
        f"mlp.experts.{e}.down_proj.weight": torch.zeros(8, 6) for e in (0, 2)},
        tensors=lora_factors("mlp.experts", (8, 6), 8), target_parameters=["experts.down_proj"]),
    case("Tensors that transformers permutes or cuts unevenly", config={"architectures": ["Molmo2TextModel"]},
         weights={"layers.0.self_attn.att_proj.weight": torch.zeros(8, 6)},
         tensors=lora_factors("layers.0.self_attn.att_proj", (8, 6))),
    case("Projections fused in an order that is not known", weights={
        "model.layers.0.self_attn.query_key_value.weight": torch.zeros(24, 6)}),
    case("Fused experts of an unknown architecture", config={"architectures": ["NeverHeardOf"]}, weights={
        "mlp.experts.gate_up_proj": torch.zeros(2, 16, 6)}, tensors=lora_factors("mlp.experts.1.up_proj", (8, 6))),
    case("Square experts, and nothing tells to which side lora_A belongs", weights={
        "mlp.experts.down_proj": torch.zeros(2, 6, 6)}, tensors=lora_factors("mlp.experts", (6, 6), 8),
        target_parameters=["experts.down_proj"]),
    case("target_parameters whose factors are not there", target_parameters=["experts.down_proj"]),
    case("A square layer that GPT-2 would store transposed, in a model of no known family", config={"model_type": "x"},
         weights={"c_proj.weight": torch.zeros(6, 6)}, tensors=lora_factors("c_proj", (6, 6))),
    case("alpha = 0 in a single file", single=SINGLE | {"unet.x.alpha": torch.tensor(0.0)}),
    case("Alphas beside a config in the metadata", single=SINGLE | {"unet.x.alpha": torch.tensor(1.0)},
         said={"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 4}'}),
    case("A config in the metadata that leaves out a part of the pipeline", single=SINGLE,
         said={"lora_adapter_metadata": '{"text_encoder.r": 4, "text_encoder.lora_alpha": 4}'}),
    case("Keys of two tools in one file", single=SINGLE | {"diffusion_model.x.lora_A.weight": torch.ones(4, 6)}),
    case("A file of PEFT's without its config", single={"base_model.model.x.lora_A.weight": torch.ones(4, 6)}),
    case("A file without alphas, for a language model", single=LORA),
    case("A layer that a control LoRA of ComfyUI makes smaller", weights={"x.weight": torch.zeros(8, 8)},
         single=SINGLE | {"unet.x.reshape_weight": torch.tensor([8, 6])}),
    case("A control LoRA of Black Forest Labs", single=SINGLE | {"single_blocks.0.norm.key_norm.scale": torch.ones(2)}),
    case("A control LoRA of Stability AI", single={"lora_controlnet": torch.ones(0)}),
    case("An IP-Adapter of XLabs", single={
        "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": torch.ones(4, 6),
    }),
    case("Custom Diffusion", single={"mid_block.attn2.processor.to_k_custom_diffusion.weight": torch.ones(8, 6)}),
    case("Textual inversion in a LoRA's file", single=SINGLE | {"bundle_emb.cat.string_to_param.*": torch.ones(1, 6)}),
    case("A GGUF adapter for another architecture", gguf=GGUF, arch="qwen2"),
    case("A GGUF adapter onto a checkpoint that is not known to be in GGUF", gguf=GGUF, config={
        "architectures": ["NeverHeardOf"]}),
    case("A GGUF adapter for llama onto a checkpoint that does not say how many heads it has", gguf=GGUF),
    case("A tensor of a norm in a GGUF adapter", gguf=GGUF | {"blk.0.attn_norm.weight": np.ones(6, np.float32)}),
    case("aLoRA in GGUF", gguf=GGUF, more=[field("adapter.alora.invocation_tokens", 1)]),
    case("A control vector", gguf=GGUF, arch="controlvector"),
    case("mlx-lm: alpha beside rank and scale", mlx={"lora_parameters": {"rank": 4, "scale": 10.0, "alpha": 16}}),
    case("mlx-lm: no scale", mlx={"lora_parameters": {"rank": 4}}),
    case("mlx-lm: a rank that is not that of the config", mlx={"lora_parameters": {"rank": 8, "scale": 10.0}}),
    case("mlx-lm: a tensor that is not known", mlx=MLX, tensors={f"{Q}.A": torch.zeros(6, 4)}),
    case("mlx-vlm", mlx={"fine_tune_type": None, "rank": 4, "alpha": 16}),
    case("Norms that MLX stores with 1 added, onto a checkpoint of Hugging Face", mlx={"fine_tune_type": "full"},
         config={"model_type": "qwen3_next"}, weights={"model.norm.weight": torch.zeros(6)},
         tensors={"model.norm.weight": torch.ones(6)}),
]  # fmt: skip
HOW = "| {} | {} |"


def message(folder: Path, entry: Any) -> str:
    what, config, weights, tensors, fields = entry
    base = write_checkpoint(folder / "base", weights, config=config)
    if "single" in fields:
        adapter = folder / "lora.safetensors"
        save_file({key: tensor.clone() for key, tensor in fields["single"].items()}, adapter, fields.get("said"))
    elif "gguf" in fields:
        own = {key: fields[key] for key in ("arch",) if key in fields}
        adapter = write_lora(folder / "adapter.gguf", fields["gguf"], *fields.get("more", ()), **own)
    elif "mlx" in fields:
        own = {"fine_tune_type": "lora"} | fields["mlx"]
        adapter = write_mlx(folder / "adapter", TURNED if tensors is LORA else tensors, own)
    else:
        adapter = write_adapter(folder / "adapter", tensors, **{key: fields[key] for key in fields if key != "beside"})
    if "beside" in fields:
        save_file(fields["beside"], adapter / "value_head.safetensors")
    with pytest.raises(InputError) as caught:
        adaptertool.merge(base, [adapter], folder / "out")
    assert not (folder / "out").exists(), what
    return str(caught.value).replace(f"{folder}/", "").replace("\n", "<br>").replace("|", "\\|")


def page() -> str:
    lines = ["# What is handled, what is refused", "", "Made by `python tests/test_cases.py`; a test holds it current."]
    lines += ["", "## Handled", "", "| case | how | shown by |", "| --- | --- | --- |"]
    lines += [f"| {what} | {how} | `tests/{test}` |" for what, how, test in HANDLED]
    lines += ["", "## Refused", "", "With exit code 3, before anything is written.", "", "| case | message |"]
    lines += ["| --- | --- |"]
    for entry in REFUSED:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(HOW.format(entry[0], message(Path(folder), entry)))
    lines += ["", "## Architectures", "", "Tiny random models; PEFT makes the adapters, and the merged checkpoint is "]
    lines[-1] += "loaded by transformers and compared with PEFT's merge in float64, parameter by parameter."
    for title, models in (("Dense and attention", MODELS), ("Fused experts", EXPERTS), ("Tied embeddings", TIED)):
        lines += ["", f"{title}: {', '.join(sorted(models))}."]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("test", [row[2] for row in HANDLED])
def test_what_shows_a_case_is_there(test: str) -> None:
    file, name = test.split("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry[0])
def test_refused(tmp_path: Path, entry: Any) -> None:
    said = message(tmp_path, entry)
    assert HOW.format(entry[0], said) in PAGE.read_text().splitlines(), "python tests/test_cases.py writes it anew"
    assert len(re.sub(r"<br>.*", "", said)) > 40


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    torch.manual_seed(0)
    PAGE.write_text(page())
