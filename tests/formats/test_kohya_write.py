"""Files as kohya's tools write them: names, metadata, and the hashes that sd-scripts have of the tensors."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import Tensors, load, lora_factors, write_adapter, write_checkpoint
from safetensors import safe_open
from safetensors.torch import save_file

import adaptertool


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def hashes(tensors: Tensors, told: dict[str, str]) -> dict[str, str]:
    """As sd-scripts' trainers find them, of what is to be saved: from the file that the library makes with the ss_
    metadata alone."""
    content = io.BytesIO(safetensors.torch.save(tensors, {k: v for k, v in told.items() if k.startswith("ss_")}))
    content.seek(0x100000)
    legacy = hashlib.sha256(content.read(0x10000)).hexdigest()[:8]
    content.seek(0)
    content.seek(8 + int.from_bytes(content.read(8), "little"))
    return {"sshs_model_hash": hashlib.sha256(content.read()).hexdigest(), "sshs_legacy_hash": legacy}


@pytest.mark.parametrize("wide", [40, 80_000])
def test_the_hashes_are_those_of_sd_scripts(tmp_path: Path, wide: int) -> None:
    """Of a small file, and of one that reaches beyond its first megabyte; of mixed dtypes, so order counts."""
    tensors = {
        **lora_factors("b.q", (8, wide), dtype=torch.bfloat16),
        **lora_factors("a.k", (6, wide), dtype=torch.float32),
        **lora_factors("a.z", (6, 9), dtype=torch.float16),
    }
    adapter = write_adapter(tmp_path / "a", tensors)
    path = tmp_path / "b.safetensors"
    adaptertool.convert(adapter, path, to="kohya")
    told = metadata(path)
    expected = hashes(load(path), told)
    assert {key: told[key] for key in expected} == expected


def test_the_hashes_of_what_other_commands_make(tmp_path: Path) -> None:
    """sum, truncate and extract: of the tensors that are there in the end; what was trained stays said."""
    weights = {"model.layers.0.q.weight": torch.randn(8, 90)}
    base = write_checkpoint(tmp_path / "base", weights)
    tuned = write_checkpoint(
        tmp_path / "tuned", {name: tensor + 0.1 * torch.randn(8, 90) for name, tensor in weights.items()}
    )
    adapters = [write_adapter(tmp_path / name, lora_factors("model.layers.0.q", (8, 90))) for name in "ab"]
    makes = {
        "sum": lambda out: adaptertool.sum_adapters(adapters, out, to="kohya"),
        "truncate": lambda out: adaptertool.truncate(adapters[0], out, rank=2, to="kohya"),
        "extract": lambda out: adaptertool.extract(base, tuned, out, rank=3, to="kohya"),
    }
    makes["again"] = lambda out: adaptertool.truncate(tmp_path / "truncate.safetensors", out, rank=1)
    for name, make in makes.items():
        make(path := tmp_path / f"{name}.safetensors")
        told = metadata(path)
        assert {key: told[key] for key in ("sshs_model_hash", "sshs_legacy_hash")} == hashes(load(path), told), name
        ranks = {"sum": "8", "truncate": "2", "extract": "3", "again": "1"}
        assert told["ss_network_dim"] == ranks[name]


def test_metadata_outside_ascii_counts_by_its_bytes(tmp_path: Path) -> None:
    flat = {"lora_unet_x.lora_down.weight": torch.randn(4, 80_000), "lora_unet_x.lora_up.weight": torch.randn(8, 4)}
    save_file(flat, tmp_path / "a.safetensors", metadata={"ss_tag": 'Ü"\\ 猫', "modelspec.title": "t"})
    base = write_checkpoint(tmp_path / "base", {"x.weight": torch.randn(8, 80_000)})
    adaptertool.convert(tmp_path / "a.safetensors", tmp_path / "p", to="peft", base=base)
    path = tmp_path / "b.safetensors"
    adaptertool.convert(tmp_path / "p", path, to="kohya", prefix="lora_unet_")
    told = metadata(tmp_path / "p" / "adapter_model.safetensors")
    assert told == {"format": "pt", "ss_tag": 'Ü"\\ 猫', "modelspec.title": "t"}
    again = metadata(path)
    assert again["ss_tag"] == 'Ü"\\ 猫'
    assert {key: again[key] for key in ("sshs_model_hash", "sshs_legacy_hash")} == hashes(load(path), again)


NAMES: dict[str, tuple[str, dict[str, Any], str]] = {
    "any model": ("model.layers.0.q", {}, "lycoris_model_layers_0_q"),
    "a unet": ("down_blocks.0.attentions.1.to_q", {}, "lora_unet_down_blocks_0_attentions_1_to_q"),
    "a transformer": ("transformer_blocks.0.attn.to_q", {}, "lora_unet_transformer_blocks_0_attn_to_q"),
    "a text encoder": ("text_model.encoder.layers.0.q", {}, "lora_te_text_model_encoder_layers_0_q"),
    "a prefix": ("a.b", {"prefix": "lora_prior_"}, "lora_prior_a_b"),
    "a part": ("text_encoder_2.encoder.layers.0.q", {}, "lora_te2_text_model_encoder_layers_0_q"),
    "t5": ("text_encoder_2.encoder.block.0.q", {}, "lora_te3_encoder_block_0_q"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names(tmp_path: Path, case: str) -> None:
    path, options, flat = NAMES[case]
    adapter = write_adapter(tmp_path / "a", lora_factors(path, (8, 6)))
    adaptertool.convert(adapter, tmp_path / "b.safetensors", to="kohya", **options)
    assert {key.partition(".")[0] for key in load(tmp_path / "b.safetensors")} == {flat}


def test_the_first_of_several_text_encoders_is_numbered(tmp_path: Path) -> None:
    parts = ("unet.down_blocks.0.q", "text_encoder.text_model.q", "text_encoder_2.text_model.q")
    tensors: Tensors = {}
    for part in parts:
        tensors |= lora_factors(part, (8, 6))
    adaptertool.convert(write_adapter(tmp_path / "a", tensors), tmp_path / "b.safetensors", to="kohya")
    names = {key.partition(".")[0] for key in load(tmp_path / "b.safetensors")}
    assert names == {"lora_unet_down_blocks_0_q", "lora_te1_text_model_q", "lora_te2_text_model_q"}
    report = adaptertool.convert(tmp_path / "a", tmp_path / "c.safetensors", to="kohya", parts=["unet"])
    assert {key.partition(".")[0] for key in load(tmp_path / "c.safetensors")} == {"lora_unet_down_blocks_0_q"}
    assert {"text_encoder is left out: 1 changes", "text_encoder_2 is left out: 1 changes"} <= {*report.notes}


def test_a_scale_of_zero_is_written_as_factors_of_zero(tmp_path: Path) -> None:
    """Alpha 0 means the rank to some, so none is written."""
    adapter = write_adapter(tmp_path / "a", lora_factors("x", (8, 6)), lora_alpha=0)
    adaptertool.convert(adapter, tmp_path / "b.safetensors", to="kohya")
    tensors = load(tmp_path / "b.safetensors")
    assert not tensors["lycoris_x.lora_up.weight"].any()
    assert tensors["lycoris_x.alpha"] == 4


def test_one_number_of_the_metadata_where_all_layers_have_it(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", {**lora_factors("x", (8, 6)), **lora_factors("y", (6, 6))}, lora_alpha=6)
    adaptertool.convert(adapter, tmp_path / "b.safetensors", to="kohya")
    told = metadata(tmp_path / "b.safetensors")
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("4", "6.0")
