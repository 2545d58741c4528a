"""Bases that are quantised, in part or by their config alone: what is stored says whether a tensor holds codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, Tensors, adaptertool, load, lora_factors, same_bits, write_adapter, write_checkpoint

import adaptertool as library
from adaptertool.errors import MismatchError, UnsupportedError

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
EXPERTS = "model.layers.0.mlp.experts"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
PLAIN = {
    f"{Q}.weight": torch.randn(8, 6).bfloat16(), "lm_head.weight": torch.randn(10, 6).bfloat16(),
    "model.norm.weight": torch.ones(6).bfloat16(),
}  # fmt: skip
FP8 = {
    f"{UP}.weight": torch.randn(8, 6).to(torch.float8_e4m3fn), f"{UP}.weight_scale_inv": torch.ones(1, 1),
}  # fmt: skip
# method -> tensors of the layer that is quantised
CODES: dict[str, Tensors] = {
    "fp8": FP8,
    "compressed-tensors": {f"{UP}.weight_packed": torch.ones(8, 1, dtype=torch.int32),
                           f"{UP}.weight_scale": torch.ones(8, 1), f"{UP}.weight_shape": torch.tensor([8, 6])},
    "gptq": {f"{UP}.qweight": torch.ones(1, 8, dtype=torch.int32), f"{UP}.scales": torch.ones(1, 8).half(),
             f"{UP}.qzeros": torch.ones(1, 1, dtype=torch.int32), f"{UP}.g_idx": torch.ones(6, dtype=torch.int32)},
    "mxfp4": {f"{EXPERTS}.gate_up_proj_blocks": torch.ones(2, 8, 1, 16, dtype=torch.uint8),
              f"{EXPERTS}.gate_up_proj_scales": torch.ones(2, 8, 1, dtype=torch.uint8),
              f"{EXPERTS}.gate_up_proj_bias": torch.ones(2, 8).bfloat16()},
    "bitsandbytes": {f"{UP}.weight": torch.ones(24, 1, dtype=torch.uint8), f"{UP}.weight.absmax": torch.ones(1),
                     f"{UP}.weight.quant_map": torch.ones(16),
                     f"{UP}.weight.quant_state.bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8)},
    "bitsandbytes, 8 bits": {f"{UP}.weight": torch.ones(8, 6, dtype=torch.int8), f"{UP}.SCB": torch.ones(8)},
    "deepseek_v4": {f"{UP}.weight": torch.ones(8, 6).to(torch.float8_e4m3fn), f"{UP}.scale": torch.ones(1, 1)},
}  # fmt: skip


def base_of(folder: Path, tensors: Tensors, method: str | None = "fp8") -> Path:
    more = {} if method is None else {"quantization_config": {"quant_method": method}}
    return write_checkpoint(folder, tensors, config=CONFIG | more)


@pytest.mark.parametrize("method", CODES)
def test_what_is_not_quantised_merges_beside_what_is(tmp_path: Path, method: str) -> None:
    base = base_of(tmp_path / "base", PLAIN | CODES[method], method)
    tensors = lora_factors(Q, (8, 6)) | {"lm_head.weight": torch.ones(10, 6), "model.norm.weight": torch.zeros(6)}
    adapter = write_adapter(tmp_path / "adapter", tensors)
    report = library.merge(base, [adapter], tmp_path / "out")
    (note,) = (note for note in report.notes if "quant_method" in note)
    assert method in note and "the 3 tensors that are changed are not quantised" in note
    merged, before = load(tmp_path / "out"), load(base)
    assert not merged[f"{Q}.weight"].equal(before[f"{Q}.weight"]) and merged["lm_head.weight"].eq(1).all()
    assert all(same_bits(merged[name], before[name]) for name in CODES[method])
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert library.verify(tmp_path / "out", base, [adapter]).ok


@pytest.mark.parametrize("named", [True, False], ids=["named by the config", "not named"])
@pytest.mark.parametrize("method", CODES)
def test_what_is_quantised_is_never_edited(tmp_path: Path, method: str, named: bool) -> None:
    base = base_of(tmp_path / "base", PLAIN | CODES[method], method if named else None)
    module = f"{EXPERTS}.gate_up_proj" if method == "mxfp4" else UP
    for tensors in (lora_factors(module, (8, 6)), {f"{module}.weight": torch.ones(8, 6)}):
        adapter = write_adapter(tmp_path / "adapter", tensors)
        with pytest.raises(UnsupportedError, match="quantised"):
            library.prepare_merge(base, [adapter])
    for name, codes in CODES[method].items():  # nor a part of it, as a saved tensor
        if not name.endswith("_bias"):
            adapter = write_adapter(tmp_path / "adapter", {name: torch.zeros(codes.shape)})
            with pytest.raises(UnsupportedError, match="quantised"):
                library.prepare_merge(base, [adapter])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_codes_stored_as_bytes_of_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    """bnb_4bit_quant_storage, of which the companions may be lost: a column in the place of a matrix."""
    base = base_of(tmp_path / "base", PLAIN | {f"{UP}.weight": torch.ones(48, 1).to(dtype)}, "bitsandbytes")
    adapter = write_adapter(tmp_path / "adapter", {f"{UP}.weight": torch.zeros(48, 1)})
    with pytest.raises(UnsupportedError, match="it is a column, as bytes of codes are stored"):
        library.prepare_merge(base, [adapter])


@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "text_config"])
def test_left_over_config_over_whole_weights(tmp_path: Path, key: str) -> None:
    settings: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config = CONFIG | {key: {"quantization_config": settings} if key == "text_config" else settings}
    base = write_checkpoint(tmp_path / "base", PLAIN, config=config)
    adapter = write_adapter(tmp_path / "adapter", lora_factors(Q, (8, 6)))
    done = adaptertool("merge", base, adapter, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    notes = json.loads(done.stdout)["notes"]
    assert any("bitsandbytes, but no tensor is quantised" in note for note in notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    assert library.verify(tmp_path / "out", base, [adapter]).ok
    facts = library.inspect(base).checkpoint
    assert facts is not None and facts.quantised == "config.json: quant_method bitsandbytes, but no tensor is"
    for alone in (lora_factors("model.layers.9.x", (8, 6)), lora_factors(Q, (8, 7))):  # no excuse for a wrong base
        with pytest.raises(MismatchError):
            library.prepare_merge(base, [write_adapter(tmp_path / "other", alone)])


def test_between_checkpoints_that_are_quantised_in_part(tmp_path: Path) -> None:
    """Codes and their scales must be the same in both; there is nothing between two codes."""
    base = base_of(tmp_path / "base", PLAIN | FP8)
    tuned = base_of(tmp_path / "tuned", PLAIN | FP8 | {f"{Q}.weight": torch.ones(8, 6).bfloat16()})
    report = library.wise(base, tuned, tmp_path / "half", 0.5)
    assert report.tensors_edited == 3 and any("not quantised" in note for note in report.notes)
    half, before = load(tmp_path / "half"), load(base)
    assert all(same_bits(half[name], before[name]) for name in FP8)
    library.extract(base, tuned, tmp_path / "extracted", rank=2)
    scaled = base_of(tmp_path / "scaled", PLAIN | FP8 | {f"{UP}.weight_scale_inv": torch.full((1, 1), 2.0)})
    with pytest.raises(MismatchError, match="weight_scale_inv"):
        library.wise(base, scaled, tmp_path / "other", 0.5)
    told = library.extract(base, scaled, tmp_path / "other", rank=2)  # as numbers, which are twice as large
    assert [tensor.tensor for tensor in told.tensors] == [f"{UP}.weight"]


def test_scales_that_are_no_codes(tmp_path: Path) -> None:
    """Of attention, of a cache, of norms and of layers: numbers of the model."""
    more = {
        "logit_scale": torch.ones(1), "model.layers.0.self_attn.k_scale": torch.ones(1), f"{Q}.scale": torch.ones(1),
        "model.norm.scale": torch.ones(6), "layer_scales": torch.ones(2),
    }  # fmt: skip
    base = base_of(tmp_path / "base", PLAIN | more, None)
    adapter = write_adapter(tmp_path / "adapter", lora_factors(Q, (8, 6)) | {"logit_scale": torch.zeros(1)})
    assert library.prepare_merge(base, [adapter]).notes == ()


def test_a_base_of_no_quantisation_has_no_note() -> None:
    assert library.prepare_merge(FIXTURES / "base", [FIXTURES / "lora"]).notes == ()
