"""Single files of ComfyUI in FP8 and INT8: with scales, as both generations of it mark them, and without."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tensors, load, lora_factors, write_adapter
from oracle import fractions, round_fraction
from rationals import delta
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import adaptertool as library
from adaptertool.errors import MismatchError, UnsupportedError

X, PLAIN = "double_blocks.0.img_attn.proj", "img_in"
E4M3, U8, ONE = torch.float8_e4m3fn, torch.uint8, torch.ones(())


def codes(*shape: int, dtype: torch.dtype = E4M3) -> torch.Tensor:
    return (torch.randn(*shape) * 3).clamp(-400, 400).to(dtype)


def said(**fields: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(fields).encode()), dtype=U8)


def all_said(called: str) -> dict[str, str]:
    return {"_quantization_metadata": json.dumps({"layers": {X: {"format": called}}})}


def file_of(folder: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(dict(tensors), folder / "flux.safetensors", metadata=metadata)
    return folder / "flux.safetensors"


def layers(scale: str = "weight_scale", dtype: torch.dtype = E4M3, shape: tuple[int, ...] = ()) -> Tensors:
    weight = torch.randint(-128, 128, (20, 12)).to(torch.int8) if dtype == torch.int8 else codes(20, 12, dtype=dtype)
    return {
        f"{X}.weight": weight, f"{X}.{scale}": torch.rand(shape) + 0.1,
        f"{X}.bias": torch.randn(20).bfloat16(), f"{PLAIN}.weight": torch.randn(20, 4).bfloat16(),
    }  # fmt: skip


FILES: dict[str, tuple[Tensors, dict[str, str] | None]] = {
    "scaled_fp8": (layers("scale_weight") | {"scaled_fp8": torch.empty(0, dtype=E4M3), f"{X}.scale_input": ONE}, None),
    "scaled_fp8 of two": (layers("scale_weight") | {"scaled_fp8": torch.ones(2, dtype=E4M3)}, {"format": "pt"}),
    "comfy_quant": (layers() | {f"{X}.comfy_quant": said(format="float8_e4m3fn", full_precision_matrix_mult=True),
                                f"{X}.input_scale": torch.ones(())}, None),
    "comfy_quant, E5M2": (layers(dtype=torch.float8_e5m2) | {f"{X}.comfy_quant": said(format="float8_e5m2")}, None),
    "metadata": (layers(), all_said("float8_e4m3fn") | {"a": "b"}),
    "INT8": (layers(dtype=torch.int8) | {f"{X}.comfy_quant": said(format="int8_tensorwise")}, None),
    "INT8, rows": (layers(dtype=torch.int8, shape=(20, 1))
                   | {f"{X}.comfy_quant": said(format="int8_tensorwise", convrot=False)}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_with_scales(tmp_path: Path, name: str) -> None:
    tensors, metadata = FILES[name]
    base = file_of(tmp_path / "base", tensors, metadata)
    factors = lora_factors(X, (20, 12), rank=2, dtype=torch.bfloat16)
    adapter = write_adapter(tmp_path / "adapter", factors, r=2, lora_alpha=2)
    with pytest.raises(UnsupportedError, match="with --dtype bf16"):
        library.prepare_merge(base, [adapter])
    library.merge(base, [adapter], tmp_path / "out.safetensors", dtype="bf16", verify=True)
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == {f"{X}.weight", f"{X}.bias", f"{PLAIN}.weight"}
    scale = next(value for key, value in tensors.items() if key.endswith((".weight_scale", ".scale_weight")))
    each = [Fraction(value.item()) for value in scale.double().reshape(-1)]
    weight = [[Fraction(code) for code in row] for row in tensors[f"{X}.weight"].double().tolist()]
    exact = [[code * each[row % len(each)] for code in codes] for row, codes in enumerate(weight)]
    made = [w + d for rows in zip(exact, delta(*factors.values()), strict=True) for w, d in zip(*rows, strict=True)]
    assert fractions(found[f"{X}.weight"]) == [round_fraction(value, torch.bfloat16) for value in made]
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert "_quantization_metadata" not in (file.metadata() or {})


@pytest.mark.parametrize("dtype", [E4M3, torch.float8_e5m2])
def test_without_scales(tmp_path: Path, dtype: torch.dtype) -> None:
    """Weights, biases and convolutions that were cast to FP8: the code is the number."""
    tensors = {
        f"{X}.weight": codes(20, 12, dtype=dtype), f"{X}.bias": codes(20, dtype=dtype),
        "conv.weight": codes(4, 2, 3, 3, dtype=dtype), "one": codes(1, dtype=dtype)[0], "none": codes(0, dtype=dtype),
    }  # fmt: skip
    base = file_of(tmp_path / "base", tensors)
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (20, 12)))
    report = library.merge(base, [adapter], tmp_path / "out.safetensors", weights=[0], dtype="bf16")
    found = load_file(tmp_path / "out.safetensors")
    assert all(found[name].equal(tensor.bfloat16()) for name, tensor in tensors.items())
    assert any("decoded from FP8 without scales" in note and "config" not in note for note in report.notes)
    assert library.inspect(adapter, base).fits


def test_a_model_of_diffusers_without_scales(tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    save_file({f"{X}.weight": codes(20, 12)}, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (20, 12)))
    library.merge(folder, [adapter], tmp_path / "out", dtype="bf16")
    assert load(tmp_path / "out")[f"{X}.weight"].dtype == torch.bfloat16


REFUSED: dict[str, tuple[Tensors, dict[str, str] | None, str]] = {
    "NVFP4": ({f"{X}.weight": torch.ones(20, 6, dtype=U8), f"{X}.weight_scale": codes(20, 1),
               f"{X}.weight_scale_2": torch.ones(()), f"{X}.comfy_quant": said(format="nvfp4")}, None, "nvfp4"),
    "NVFP4 of nobody": ({f"{X}.weight": torch.ones(20, 8, dtype=U8), f"{X}.weight_scale": codes(20, 1),
                         f"{X}.weight_scale_2": torch.ones(())}, None, "nothing says whose"),
    "MXFP8": (layers() | {f"{X}.comfy_quant": said(format="mxfp8")}, None, "mxfp8"),
    "rotated": (layers(dtype=torch.int8) | {f"{X}.comfy_quant": said(format="int8_tensorwise", convrot=True)}, None,
                "convrot"),
    "no format": (layers() | {f"{X}.comfy_quant": said(a=1)}, None, "decoded are"),
    "in the metadata": (layers(), all_said("mxfp8"), "mxfp8"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_stored_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    tensors, metadata, why = REFUSED[name]
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (20, 12)))
    with pytest.raises(UnsupportedError, match=why):
        library.prepare_merge(file_of(tmp_path / "base", tensors, metadata), [adapter], dtype="bf16")


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff", b"null"])
def test_damaged_words(tmp_path: Path, text: bytes) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (20, 12)))
    mark = {f"{X}.comfy_quant": torch.frombuffer(bytearray(text), dtype=U8)}
    with pytest.raises((MismatchError, UnsupportedError), match="ComfyUI"):
        library.prepare_merge(file_of(tmp_path / "base", layers() | mark), [adapter], dtype="bf16")
    for wrong in ("[]", "{", '{"layers": []}'):
        base = file_of(tmp_path / "other", layers(), {"_quantization_metadata": wrong})
        with pytest.raises((MismatchError, UnsupportedError), match="ComfyUI"):
            library.prepare_merge(base, [adapter], dtype="bf16")


def test_a_shard_without_its_scales_is_not_plain(tmp_path: Path) -> None:
    """Of DeepSeek, whose scales may be in another file."""
    other = {"other.weight": codes(4, 4), "other.weight_scale_inv": torch.ones(1, 1)}
    for name, tensors in (("model-00001-of-00002.safetensors", {f"{X}.weight": codes(20, 12)}),
                          ("m.safetensors", {f"{X}.weight": codes(20, 12)} | other)):  # fmt: skip
        save_file(tensors, tmp_path / name)
        adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (20, 12)))
        with pytest.raises(MismatchError, match="without a scale beside it"):
            library.prepare_merge(tmp_path / name, [adapter], dtype="bf16")
