"""Adapters of a tiny Flux under diffusers' names, written under those of the original, where several layers are one:
merged onto either base they are the same bits as before."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import torch
from conftest import Tensors, load, write_adapter
from oracle import fractions, round_fraction
from safetensors.torch import save_file

import adaptertool
from adaptertool.errors import UnsupportedError

H = 8
# diffusers' layer -> (out, in), the original's layer, the first of its rows
LAYERS = {
    **{
        f"transformer_blocks.0.attn.to_{x}": ((H, H), "double_blocks.0.img_attn.qkv", at * H)
        for at, x in enumerate("qkv")
    },
    "single_transformer_blocks.0.attn.to_q": ((H, H), "single_blocks.0.linear1", 0),
    "single_transformer_blocks.0.attn.to_k": ((H, H), "single_blocks.0.linear1", H),
    "single_transformer_blocks.0.attn.to_v": ((H, H), "single_blocks.0.linear1", 2 * H),
    "single_transformer_blocks.0.proj_mlp": ((4 * H, H), "single_blocks.0.linear1", 3 * H),
    "transformer_blocks.0.ff.net.0.proj": ((4 * H, H), "double_blocks.0.img_mlp.0", 0),
    "transformer_blocks.0.attn.to_out.0": ((H, H), "double_blocks.0.img_attn.proj", 0),
}
ROWS = {"double_blocks.0.img_attn.qkv": 3 * H, "single_blocks.0.linear1": 7 * H, "double_blocks.0.img_mlp.0": 4 * H}
ROWS["double_blocks.0.img_attn.proj"] = H
QKV, LINEAR1 = (f"diffusion_model.{name}" for name in ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model as a single file, and as diffusers has it."""
    torch.manual_seed(1)
    root = tmp_path_factory.mktemp("flux")
    original: Tensors = {}
    for name, rows in ROWS.items():
        original |= {f"{name}.weight": torch.randn(rows, H), f"{name}.bias": torch.randn(rows)}
    save_file(original, root / "flux.safetensors")
    ours: Tensors = {}
    for name, ((out, _), source, first) in LAYERS.items():
        for end in ("weight", "bias"):
            ours[f"{name}.{end}"] = original[f"{source}.{end}"][first : first + out].clone()
    (root / "transformer").mkdir()
    (root / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    save_file(ours, root / "transformer" / "diffusion_pytorch_model.safetensors")
    return {"file": root / "flux.safetensors", "folder": root / "transformer"}


def adapter(
    path: Path,
    ranks: dict[str, int],
    alphas: dict[str, float] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    more: Tensors | None = None,
) -> Path:
    torch.manual_seed(2)
    tensors: Tensors = {}
    for name, rank in ranks.items():
        (out, wide), key = LAYERS[name][0], f"transformer.{name}"
        tensors[f"{key}.lora_A.weight"] = (torch.randn(rank, wide) / 3).to(dtype)
        tensors[f"{key}.lora_B.weight"] = (torch.randn(out, rank) / 3).to(dtype)
        if alphas:
            tensors[f"{key}.alpha"] = torch.tensor(alphas[name])
    save_file({**tensors, **(more or {})}, path)
    return path


def merged(base: Path, adapter: Path, out: Path) -> Tensors:
    target = out.with_suffix(base.suffix)
    adaptertool.merge(base, [adapter], target)
    return load(target)


def require_same(bases: dict[str, Path], folder: Path, one: Path, other: Path) -> None:
    for name, base in bases.items():
        before, first, second = (
            load(base), merged(base, one, folder / f"{name}1"), merged(base, other, folder / f"{name}2"),
        )  # fmt: skip
        assert not all(tensor.equal(first[key]) for key, tensor in before.items())
        assert all(tensor.equal(second[key]) for key, tensor in first.items())


SOME = {  # one of three is missing, and the ranks differ
    "transformer_blocks.0.attn.to_q": 2,
    "transformer_blocks.0.attn.to_v": 3,
    "single_transformer_blocks.0.attn.to_k": 2,
    "single_transformer_blocks.0.proj_mlp": 4,
    "transformer_blocks.0.attn.to_out.0": 2,
}
ALL = dict.fromkeys(LAYERS, 2)


@pytest.mark.parametrize("to", ["kohya", "comfy"])
@pytest.mark.parametrize("by", ["file", "folder"])
@pytest.mark.parametrize("ranks", [SOME, ALL], ids=["some", "all"])
@pytest.mark.parametrize("scaled", [False, True])
def test_layers_become_one(
    bases: dict[str, Path], tmp_path: Path, to: str, by: str, ranks: dict[str, int], scaled: bool
) -> None:
    """Scales that are powers of two apart are multiplied into B, and nothing is rounded."""
    alphas = {name: 1.5 * rank * 2 ** (at % 3) for at, (name, rank) in enumerate(ranks.items())}
    path = adapter(tmp_path / "a.safetensors", ranks, alphas if scaled else None, dtype=torch.bfloat16)
    out = tmp_path / "out.safetensors"
    report = adaptertool.convert(path, out, to=to, base=bases[by])
    assert report.rounded == 0
    tensors = load(out)
    assert {tensor.dtype for key, tensor in tensors.items() if not key.endswith("alpha")} == {torch.bfloat16}
    if to == "comfy" or by == "file":
        assert not any("transformer_blocks" in key for key in tensors)
    else:
        assert all(key.startswith("lora_transformer_") for key in tensors)
    require_same(bases, tmp_path, path, out)


def test_a_stacked_layer_is_what_its_formula_takes(bases: dict[str, Path], tmp_path: Path) -> None:
    ranks = {name: rank for name, rank in SOME.items() if ".attn.to_out" not in name}
    path, out = adapter(tmp_path / "a.safetensors", ranks), tmp_path / "out.safetensors"
    adaptertool.convert(path, out, to="comfy", base=bases["file"])
    own, found = load(path), {key: tensor.double() for key, tensor in load(out).items()}
    assert {key.rpartition(".lora_")[0] or key.removesuffix(".alpha") for key in found} == {QKV, LINEAR1}
    for source in (QKV, LINEAR1):
        a, b, alpha = (found[f"{source}.{end}"] for end in ("lora_A.weight", "lora_B.weight", "alpha"))
        assert alpha == len(a) == {QKV: 5, LINEAR1: 6}[source]
        expected = torch.zeros(ROWS[source.removeprefix("diffusion_model.")], H, dtype=torch.float64)
        for name in ranks:
            (rows, _), layer, first = LAYERS[name]
            if source.endswith(layer):
                one, two = (own[f"transformer.{name}.lora_{x}.weight"].double() for x in "AB")
                expected[first : first + rows] = two @ one
        assert torch.equal(b @ a, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_scales_are_rounded_once_and_counted(bases: dict[str, Path], tmp_path: Path, dtype: torch.dtype) -> None:
    """Each element of B is the product as rationals round it."""
    names = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
    alphas = dict(zip(names, (1.3, 0.7, 2.0), strict=True))
    path = adapter(tmp_path / "a.safetensors", dict.fromkeys(names, 3), alphas, dtype=dtype)
    report = adaptertool.convert(path, tmp_path / "out.safetensors", to="kohya", base=bases["file"])
    own, tensors = load(path), load(tmp_path / "out.safetensors")
    b, counted = tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"], 0
    assert tensors["lora_unet_double_blocks_0_img_attn_qkv.alpha"] == 9
    for at, name in enumerate(names):
        scale = Fraction(torch.tensor(alphas[name]).item() / 3)
        exact = [value * scale for value in fractions(own[f"transformer.{name}.lora_B.weight"])]
        stored = fractions(b[at * H : (at + 1) * H, 3 * at : 3 * at + 3])
        assert stored == [round_fraction(value, dtype) for value in exact]
        counted += sum(one != two for one, two in zip(stored, exact, strict=True))
    assert report.rounded == counted > 0


def dora(names: list[str]) -> Tensors:
    return {f"transformer.{name}.lora_magnitude_vector": torch.rand(LAYERS[name][0][0]) + 1 for name in names}


def test_dora_of_all_parts(bases: dict[str, Path], tmp_path: Path) -> None:
    path = adapter(tmp_path / "a.safetensors", ALL, more=dora(list(ALL)))
    out = tmp_path / "out.safetensors"
    report = adaptertool.convert(path, out, to="comfy", base=bases["file"])
    assert report.rounded == 0
    assert load(out)[f"{QKV}.dora_scale"].shape == (3 * H, 1)
    require_same(bases, tmp_path, path, out)


def test_biases_of_factors(bases: dict[str, Path], tmp_path: Path) -> None:
    """Rows of parts without one get zeros."""
    bias = torch.randn(4 * H)
    name = "single_transformer_blocks.0.proj_mlp"
    path = adapter(tmp_path / "a.safetensors", {name: 2}, more={f"transformer.{name}.lora_B.bias": bias})
    out = tmp_path / "out.safetensors"
    adaptertool.convert(path, out, to="comfy", base=bases["file"])
    assert torch.equal(load(out)[f"{LINEAR1}.diff_b"], torch.cat([torch.zeros(3 * H), bias]))
    require_same(bases, tmp_path, path, out)


def test_saved_weights_of_all_parts(bases: dict[str, Path], tmp_path: Path) -> None:
    """PEFT's, of the model by itself: whole tensors follow each other."""
    parts = {name: torch.randn(shape) for name, (shape, source, _) in LAYERS.items() if source.endswith("linear1")}
    path = write_adapter(tmp_path / "a", {f"{name}.weight": tensor for name, tensor in parts.items()})
    out = tmp_path / "out.safetensors"
    adaptertool.convert(path, out, to="comfy", base=bases["folder"])
    assert torch.equal(load(out)[f"{LINEAR1}.set_weight"], torch.cat(list(parts.values())))
    require_same(bases, tmp_path, path, out)
    (tmp_path / "b").mkdir()
    less = write_adapter(tmp_path / "b", {f"{name}.weight": tensor for name, tensor in list(parts.items())[:3]})
    with pytest.raises(UnsupportedError, match="not all of its parts"):
        adaptertool.convert(less, tmp_path / "less.safetensors", to="comfy", base=bases["file"])


def lokr(name: str) -> Tensors:
    return {f"transformer.{name}.lokr_w1": torch.ones(2, 2), f"transformer.{name}.lokr_w2": torch.ones(4, 4)}


Q, K = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k"
REFUSED = {
    "dora without a part": ({Q: 2, K: 2}, dora([Q, K]), "not all of its parts"),
    "dora and lora": ({Q: 2, K: 2}, dora([Q]), "of the kinds dora, lora"),
    "lokr": ({}, lokr(Q), "of kind lokr"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("to", ["kohya", "comfy"])
def test_what_is_not_joined_is_refused_by_name(bases: dict[str, Path], tmp_path: Path, case: str, to: str) -> None:
    ranks, more, match = REFUSED[case]
    path, out = adapter(tmp_path / "a.safetensors", ranks, more=more), tmp_path / "out.safetensors"
    with pytest.raises(UnsupportedError, match=match):
        adaptertool.convert(path, out, to=to, base=bases["file"])
    assert not out.exists()
