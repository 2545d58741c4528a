"""Files of ComfyUI's and diffusers': how factors are spelled, what they mean, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load, same_bits, write_checkpoint
from oracle import half_ulp_excess
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError
from adaptertool.formats import recognised

OUT, IN, RANK = 8, 6, 4
BLOCK = "down_blocks.0.attentions.1.transformer_blocks.0.attn1"
TO_Q, TO_OUT = f"{BLOCK}.to_q", f"{BLOCK}.to_out.0"
TEXT = "text_model.encoder.layers.0.self_attn"


@pytest.fixture
def factors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(RANK, IN), torch.randn(OUT, RANK)


def written(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata=metadata or None)
    return path


def base_of(folder: Path, *names: str) -> Path:
    return write_checkpoint(folder, {f"{name}.weight": torch.randn(OUT, IN).bfloat16() for name in names})


def product(base: Path, name: str, factors: tuple[torch.Tensor, torch.Tensor], scale: float) -> torch.Tensor:
    """W + scale·B·A in float64."""
    down, up = (factor.double().numpy() for factor in factors)
    return torch.from_numpy(load(base)[f"{name}.weight"].double().numpy() + scale * np.einsum("or,ri->oi", up, down))


@pytest.mark.parametrize(
    ("name", "down", "up", "of"),
    [
        (f"unet.{TO_Q}", ".lora_A.weight", ".lora_B.weight", TO_Q),
        (f"unet.{TO_Q}", ".lora.down.weight", ".lora.up.weight", TO_Q),
        (f"unet.{TO_Q}", ".lora_down.weight", ".lora_up.weight", TO_Q),
        (TO_Q, ".lora_A.default.weight", ".lora_B.default.weight", TO_Q),
        (f"transformer.{TO_Q}", ".lora_A", ".lora_B", TO_Q),
        ("transformer.layers.0.attention.to_q", ".lora_A.weight", ".lora_B.weight", "layers.0.attention.to_q"),
        (f"unet.{BLOCK}.processor.to_q", "_lora.down.weight", "_lora.up.weight", TO_Q),
        (f"{BLOCK}.processor.to_out", "_lora.down.weight", "_lora.up.weight", TO_OUT),
        (f"text_encoder.{TEXT}.k_proj", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight",
         f"{TEXT}.k_proj"),
        (f"text_encoder_2.{TEXT}.to_v", "_lora.down.weight", "_lora.up.weight", f"{TEXT}.v_proj"),
        (f"text_encoder.{TEXT}.to_out", "_lora.down.weight", "_lora.up.weight", f"{TEXT}.out_proj"),
        (f"diffusion_model.{TO_Q}", ".lora_down.weight", ".lora_up.weight", TO_Q),
        (f"model.diffusion_model.{TO_Q}", ".lora_A.weight", ".lora_B.weight", TO_Q),
        (f"text_encoders.clip_l.transformer.{TEXT}.q_proj", ".lora_A.weight", ".lora_B.weight", f"{TEXT}.q_proj"),
        (f"lora_unet_{TO_Q.replace('.', '_')}", ".lora_A.weight", ".lora_B.weight", TO_Q),
    ],
)  # fmt: skip
def test_every_spelling(
    tmp_path: Path, factors: tuple[torch.Tensor, torch.Tensor], name: str, down: str, up: str, of: str
) -> None:
    tensors = dict(zip((f"{name}{down}", f"{name}{up}"), factors, strict=True))
    base, path = base_of(tmp_path / "base", of), written(tmp_path / "a.safetensors", tensors)
    adaptertool.merge(base, [path], tmp_path / "out")
    exact = product(base, of, factors, 1.0)
    assert half_ulp_excess(load(tmp_path / "out")[f"{of}.weight"], exact).max() <= 1 + 1e-6


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", "unet.", ""])
@pytest.mark.parametrize(
    "alpha", [torch.tensor(1.5), torch.tensor([3], dtype=torch.uint8), torch.tensor(300, dtype=torch.int16)]
)
def test_alphas(tmp_path: Path, factors: tuple[torch.Tensor, torch.Tensor], prefix: str, alpha: torch.Tensor) -> None:
    """Each module has its own; without one the scale is 1."""
    tensors = {f"{prefix}{name}{end}": factor for name in (TO_Q, TO_OUT)
               for end, factor in zip((".lora_A.weight", ".lora_B.weight"), factors, strict=True)}  # fmt: skip
    path = written(tmp_path / "a.safetensors", tensors | {f"{prefix}{TO_OUT}.alpha": alpha})
    base = base_of(tmp_path / "base", TO_Q, TO_OUT)
    adaptertool.merge(base, [path], tmp_path / "out")
    for name, scale in ((TO_Q, 1.0), (TO_OUT, alpha.item() / RANK)):
        exact = product(base, name, factors, scale)
        assert half_ulp_excess(load(tmp_path / "out")[f"{name}.weight"], exact).max() <= 1 + 1e-6


def test_what_comfy_adds_and_replaces(tmp_path: Path) -> None:
    base = {
        "blocks.0.weight": torch.randn(OUT, IN), "blocks.0.bias": torch.randn(OUT), "norm.weight": torch.randn(IN),
        "blocks.0.modulation": torch.randn(1, 6, IN), "head.weight": torch.randn(2, IN), "head.bias": torch.randn(2),
        "other.bias": torch.randn(3), "table": torch.randn(4),
    }  # fmt: skip
    added = {
        "blocks.0.diff": "blocks.0.weight", "blocks.0.diff_b": "blocks.0.bias", "norm.diff": "norm.weight",
        "blocks.0.modulation.diff": "blocks.0.modulation", "other.diff_b": "other.bias",
    }  # fmt: skip
    put = {"head.set_weight": "head.weight", "table.set_weight": "table"}
    tensors = {key: torch.randn(base[name].shape) for key, name in (added | put).items()}
    folder = write_checkpoint(tmp_path / "base", base)
    path = written(tmp_path / "a.safetensors", {f"diffusion_model.{key}": tensor for key, tensor in tensors.items()})
    adaptertool.merge(folder, [path], tmp_path / "out")
    after = load(tmp_path / "out")
    for key, name in added.items():
        exact = base[name].double() + tensors[key].double()
        assert half_ulp_excess(after[name], exact).max() <= 1 + 1e-6, key
    for key, name in put.items():
        assert same_bits(after[name], tensors[key]), key
    assert same_bits(after["head.bias"], base["head.bias"])
    assert adaptertool.verify(tmp_path / "out", folder, [path]).ok


def test_the_bias_of_a_factor_has_the_scale_of_its_weight(
    tmp_path: Path, factors: tuple[torch.Tensor, torch.Tensor]
) -> None:
    bias, before = torch.randn(OUT), torch.randn(OUT)
    base = write_checkpoint(tmp_path / "base", {f"{TO_Q}.weight": torch.randn(OUT, IN), f"{TO_Q}.bias": before})
    tensors = {f"transformer.{TO_Q}.lora_A.weight": factors[0], f"transformer.{TO_Q}.lora_B.weight": factors[1]}
    tensors |= {f"transformer.{TO_Q}.lora_B.bias": bias, f"transformer.{TO_Q}.alpha": torch.tensor(6.0)}
    path = written(tmp_path / "a.safetensors", tensors)
    adaptertool.merge(base, [path], tmp_path / "out")
    after = load(tmp_path / "out")
    assert half_ulp_excess(after[f"{TO_Q}.bias"], before.double() + 1.5 * bias.double()).max() <= 1 + 1e-6
    assert half_ulp_excess(after[f"{TO_Q}.weight"], product(base, TO_Q, factors, 1.5)).max() <= 1 + 1e-6


U = f"unet.{TO_Q}"
LORA = {f"{U}.lora_A.weight": torch.ones(RANK, IN), f"{U}.lora_B.weight": torch.ones(OUT, RANK)}
TEXT_ENCODER = {
    f"text_encoder.{TEXT}.q_proj.lora_{role}.weight": tensor for role, tensor in zip("AB", LORA.values(), strict=True)
}
CONFIG = {"unet.r": RANK, "unet.lora_alpha": 2}


@pytest.mark.parametrize(
    ("more", "config", "error", "match"),
    [
        ({f"{U}.alpha": torch.tensor(0)}, None, UnsupportedError, r"alpha is 0, which trainers take for the rank"),
        ({f"{U}.alpha": torch.tensor(1)}, CONFIG, UnsupportedError, r"both lora_adapter_metadata and .*alpha tell"),
        ({f"{U}.lora_down.weight": torch.ones(RANK, IN)}, None, InputError, r"are the same factor of one module"),
        ({f"{U}.lora_B.weight": None}, None, InputError, r"has \.lora_A\.weight, and no \.lora_B\.weight"),
        ({f"{U}.lora_C.weight": torch.ones(1)}, None, UnsupportedError, r"lora_C\.weight: this tensor is not known"),
        ({"unet.conv_in.weight": torch.ones(1)}, None, UnsupportedError, r"conv_in\.weight: this tensor is not known"),
        ({f"{TO_OUT}.lora_B.bias": torch.ones(OUT)}, None, UnsupportedError, r"beside no plain LoRA"),
        ({f"{U}.lora_B.weight": torch.ones(OUT, RANK).char()}, None, UnsupportedError, r"is I8; factors are"),
        ({f"{U}.lora_A.weight": torch.tensor(1.0)}, None, InputError, r"is F32 scalar, and no factor"),
        ({f"{U}.lora_A.weight": torch.ones(RANK, IN + 1)}, None, MismatchError, r"must be 4×6, but it is F32 4×7"),
        ({f"{U}.lora_magnitude_vector": torch.ones(OUT + 1)}, None, MismatchError, r"must be 8, but it is F32 9"),
        ({f"{U}.lora_magnitude_vector": torch.ones(OUT)}, CONFIG, InputError, r"use_dora is false, and "),
        ({}, CONFIG | {"unet.use_dora": True}, InputError, r"use_dora is true, and .* no tensor for it"),
        ({}, CONFIG | {"unet.lora_bias": True}, InputError, r"lora_bias is true, and .* no tensor for it"),
        ({}, {"r": RANK, "lora_alpha": 2}, InputError, r"metadata of unet is not there, so the scale"),
        ({}, CONFIG | {"unet.r": 8}, MismatchError, r"metadata of unet gives the module rank 8"),
        ({}, CONFIG | {"unet.quite_new": 1}, UnsupportedError, r"of unet: quite_new = 1: this field is not known"),
        ({}, CONFIG | {"unet.init_lora_weights": "pissa"}, UnsupportedError, r"= pissa may have changed the base"),
        ({}, CONFIG | {"unet.peft_type": "LOKR"}, UnsupportedError, r"peft_type LOKR is not supported there"),
        ({}, CONFIG | {"unet.target_parameters": ["w"]}, UnsupportedError, r"target_parameters is not supported"),
        ({}, {"unet.r": RANK}, InputError, r"of unet: lora_alpha must be a finite number"),
        (TEXT_ENCODER, CONFIG, InputError, r"metadata of text_encoder is not there, so the"),
        ({"unet.x.reshape_weight": torch.tensor([8, 12])}, None, InputError, r"reshape_weight, and no factors for it"),
        ({"bundle_emb.cat.string_to_param.*": torch.ones(1, 4)}, None, UnsupportedError, r"textual inversion"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(2)}, None, UnsupportedError, r"LoRA of Black"),
    ],
)  # fmt: skip
def test_refused_by_name(
    tmp_path: Path,
    more: dict[str, torch.Tensor | None],
    config: dict[str, object] | None,
    error: type[Exception],
    match: str,
) -> None:
    tensors = {key: tensor for key, tensor in (LORA | more).items() if tensor is not None}
    metadata = {} if config is None else {"lora_adapter_metadata": json.dumps(config)}
    path, base = written(tmp_path / "a.safetensors", tensors, **metadata), base_of(tmp_path / "base", TO_Q)
    assert recognised(path)
    with pytest.raises(error, match=match):
        adaptertool.merge(base, [path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert adaptertool.inspect(path).adapter is not None


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        (["double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight"], r"an IP-Adapter of XLabs for FLUX"),
        (["down_blocks.0.attn2.processor.to_k_custom_diffusion.weight"], r"Custom Diffusion puts another layer"),
        (["x.query.loras.y.lora_A", "x.query.loras.y.lora_B"], r"of the library adapters \(AdapterHub\)"),
        (["lora_controlnet", "input_blocks.1.0.in_layers.2.down"], r"a control LoRA of Stability AI"),
        (["unet.x.lora_A.weight", "diffusion_model.x.lora_A.weight"], r"may be an adapter of comfy or of diffusers"),
        (["lora_unet_x.lora_down.weight", "unet.x.lora_A.weight"], r"may be an adapter of kohya or of diffusers"),
        (["base_model.model.x.lora_A.weight"], r"its scales are in adapter_config\.json: give the folder with both"),
        (["model.layers.0.q_proj.lora_A.weight", "model.layers.0.q_proj.lora_B.weight"], r"scales are not known"),
        (["transformer.h.0.c_attn.lora_A.weight", "transformer.h.0.c_attn.lora_B.weight"], r"scales are not known"),
        (["model.layers.0.q_proj.weight"], r"is no adapter: none of its 1 keys, such as model\.layers"),
    ],
)
def test_files_of_others_are_told_by_name(tmp_path: Path, keys: list[str], match: str) -> None:
    path = written(tmp_path / "a.safetensors", {key: torch.ones(2, 2) for key in keys})
    with pytest.raises(InputError, match=match):
        adaptertool.merge(base_of(tmp_path / "base", TO_Q), [path], tmp_path / "out")


def test_a_base_is_no_adapter(tmp_path: Path) -> None:
    """Names that begin as those of adapters do, and norms as BFL's control LoRAs have them."""
    keys = ["diffusion_model.x.weight", "diffusion_model.snake.alpha", "transformer.h.0.x.weight", "unet.x.weight"]
    keys += ["double_blocks.0.img_attn.norm.key_norm.scale", "x.lora_A.default.weight", "x.base_layer.weight"]
    assert recognised(written(tmp_path / "a.safetensors", {key: torch.ones(2) for key in keys})) is None


def test_a_file_beside_a_config_of_peft_is_not_read_without_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", LORA)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match=rf"adapter_config\.json beside it tells them: give {tmp_path}"):
        adaptertool.merge(base_of(tmp_path / "base", TO_Q), [path], tmp_path / "out")


def test_a_folder_of_diffusers_and_what_lies_beside(tmp_path: Path) -> None:
    folder, base = tmp_path / "lora", base_of(tmp_path / "base", TO_Q)
    folder.mkdir()
    written(folder / "pytorch_lora_weights.safetensors", LORA)
    (folder / "pytorch_lora_weights.bin").write_bytes(b"\x80")
    (folder / "README.md").write_text("a LoRA")
    adaptertool.merge(base, [folder], tmp_path / "out")
    assert adaptertool.inspect(folder).adapter is not None
    assert adaptertool.diff(folder, folder).equal
    written(folder / "learned_embeds.safetensors", {"<cat>": torch.ones(4)})
    with pytest.raises(UnsupportedError, match=r"learned_embeds\.safetensors: <cat> is no tensor of"):
        adaptertool.merge(base, [folder], tmp_path / "more")
    adaptertool.merge(base, [folder], tmp_path / "more", leave_out=["learned"])
    assert same_bits(load(tmp_path / "more")[f"{TO_Q}.weight"], load(tmp_path / "out")[f"{TO_Q}.weight"])


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"lora.bin": b"\x80\x02"}, r"lora\.bin is a pickle, and pickles are never opened.*\n  python -c"),
        ({"lora.PT": b"\x80\x02"}, r"lora\.PT is a pickle"),
        ({"lora.nemo": b"x"}, r"an archive of NeMo's"),
        ({"lora.safetensors": b"x"}, r"is not a safetensors file, or is cut short"),
        ({"lora/pytorch_lora_weights.bin": b"\x80\x02"}, r"pytorch_lora_weights\.bin is a pickle"),
        ({"lora/style.ckpt": b"\x80\x02", "lora/optimizer.pt": b""}, r"style\.ckpt is a pickle"),
        ({"lora/style.nemo": b"x"}, r"an archive of NeMo's"),
        ({"lora/optimizer.pt": b"", "lora/pytorch_model.bin": b""}, r"is not an adapter: it has no adapter_config"),
        ({"lora/xlora_config.json": b"{}"}, r"is an X-LoRA: it mixes several adapters"),
        ({"lora/weights/__0_0.distcp": b""}, r"is a distributed checkpoint of torch, as NeMo"),
        ({"lora/adapter_config.json": b"{}", "lora/pytorch_adapter.bin": b""}, r"of the library adapters"),
        ({"lora/adapter_config.json": b"{}", "lora/adapter.safetensors": b""}, r"of the library adapters"),
        ({"lora/README.md": b""}, r"is not an adapter: it has no adapter_config\.json"),
    ],
)  # fmt: skip
def test_what_others_have_is_told_by_name(tmp_path: Path, files: dict[str, bytes], match: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (name,) = {Path(name).parts[0] for name in files}
    with pytest.raises(InputError, match=match):
        adaptertool.merge(base_of(tmp_path / "base", TO_Q), [tmp_path / name], tmp_path / "out")


def test_a_file_of_mlx_is_read_with_its_config(tmp_path: Path) -> None:
    path = written(tmp_path / "adapters.safetensors", {"x.lora_a": torch.ones(6, 4), "x.lora_b": torch.ones(4, 8)})
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=rf"which tells its scales: give the folder {tmp_path}$"):
        adaptertool.merge(base_of(tmp_path / "base", TO_Q), [path], tmp_path / "out")


def test_a_folder_with_a_file_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    path = written(tmp_path / "lora" / "style.safetensors", LORA)
    with pytest.raises(InputError, match=rf"what is an adapter is a file in it; give its path: {path}"):
        adaptertool.merge(base_of(tmp_path / "base", TO_Q), [tmp_path / "lora"], tmp_path / "out")


@pytest.mark.parametrize(("said", "noted"), [({"ss_network_args": '{"split_qkv": "True"}'}, True), ({}, False)])
def test_the_alpha_of_parts_that_were_trained_apart_is_noted(tmp_path: Path, said: dict[str, str], noted: bool) -> None:
    """sd-scripts joins factors of q, k and v, of rank 2 each, and keeps the alpha of one (sd-scripts #2204): every
    tool applies alpha/r of what is in the file."""
    name, joined = "double_blocks.0.img_attn.qkv", torch.zeros(18, 6)
    for part in range(3):
        joined[6 * part : 6 * part + 6, 2 * part : 2 * part + 2] = torch.randn(6, 2)
    tensors = {"lora_down.weight": torch.randn(6, 4), "lora_up.weight": joined, "alpha": torch.tensor(2.0)}
    flat = f"lora_unet_{name.replace('.', '_')}"
    path = tmp_path / "a.safetensors"
    save_file({f"{flat}.{key}": one for key, one in tensors.items()}, path, {"ss_network_dim": "2", **said})
    base = written(tmp_path / "b.safetensors", {f"model.diffusion_model.{name}.weight": torch.randn(18, 4)})
    report = adaptertool.merge(base, [path], tmp_path / "out.safetensors")
    told = "have 3 times the rank of the training (2), and the alpha that it had"
    assert any(told in note for note in report.notes) == noted
    before, after = (next(iter(load_file(file).values())).double() for file in (base, tmp_path / "out.safetensors"))
    exact = before + joined.double() @ tensors["lora_down.weight"].double() / 3
    assert half_ulp_excess(after.float(), exact).max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ("alpha-ignored", [1, 1, 1]),
        ("alpha-squared", [1 / 16, 9 / 16, 9 / 16]),
        ("alpha-of-others", [3 / 4, 3 / 4, 3 / 4]),
    ],
)
def test_verify_names_what_others_make_of_alphas(tmp_path: Path, fault: str, wrong: list[float]) -> None:
    """Of three modules two have an alpha of 3."""
    scales = {TO_OUT: 0.25, TO_Q: 0.75, f"{BLOCK}.to_k": 0.75}
    tensors, expected = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    base = write_checkpoint(tmp_path / "base", {f"{name}.weight": torch.randn(64, 48).bfloat16() for name in scales})
    for (name, scale), other in zip(scales.items(), wrong, strict=True):
        down, up = torch.randn(RANK, 48), torch.randn(64, RANK)
        flat = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        tensors[f"{flat}.alpha"] = torch.tensor(scale * RANK)
        weight = f"{name}.weight"
        expected[weight] = (load(base)[weight].double() + other * up.double() @ down.double()).bfloat16()
    path = written(tmp_path / "a.safetensors", tensors)
    report = adaptertool.verify(write_checkpoint(tmp_path / "merged", expected), base, [path])
    assert set(report.summary.diagnosis) == {fault}
    adaptertool.merge(base, [path], tmp_path / "out")
    assert adaptertool.verify(tmp_path / "out", base, [path]).ok
