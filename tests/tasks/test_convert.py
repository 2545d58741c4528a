"""`convert`: adapters written in another format are what they were: the same bits where that can be, merged the same,
and loaded by PEFT; what is rounded is counted."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FIXTURES, Tensors, load, lora_factors, main_here, same_bits, write_adapter, write_checkpoint
from layers import make_adapter, make_base, peft_merge
from oracle import fractions, half_ulp_excess, round_fraction
from safetensors import safe_open
from safetensors.torch import save_file

import adaptertool
from adaptertool.errors import AdapterToolError, OutputError, UsageError

Q, K, CONV = "blocks.0.attn.q", "blocks.0.attn.k", "blocks.0.conv"
SHAPES = {Q: (8, 8), K: (6, 8), CONV: (5, 4, 3, 3)}  # one is square


def base_of(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    tensors = {f"{name}.weight": (torch.randn(shape) / 3).to(dtype) for name, shape in SHAPES.items()}
    return write_checkpoint(folder, tensors, config={"tie_word_embeddings": False})


def factors(ranks: dict[str, int], dtype: torch.dtype = torch.bfloat16) -> Tensors:
    found: Tensors = {}
    for name, rank in ranks.items():
        out, *inside = SHAPES[name]
        ones = [1] * (len(inside) - 1)
        found[f"{name}.lora_A.weight"] = (torch.randn(rank, *inside) / 3).to(dtype)
        found[f"{name}.lora_B.weight"] = (torch.randn(out, rank, *ones) / 3).to(dtype)
    return found


def convert(path: Path, out: Path, to: str, **options: Any) -> Path:
    adaptertool.convert(path, out, to=to, **options)
    return out


def merged(base: Path, adapter: Path, out: Path) -> dict[str, torch.Tensor]:
    adaptertool.merge(base, [adapter], out)
    return load(out)


def require_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(same_bits(tensor, other[name]) for name, tensor in one.items())


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


MIXED: dict[str, Any] = {"r": 4, "lora_alpha": 6, "rank_pattern": {"k": 2}, "alpha_pattern": {"conv": 5}}
CASES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "plain": ({Q: 4, K: 4, CONV: 4}, {"r": 4, "lora_alpha": 8}),
    "own ranks and alphas": ({Q: 4, K: 2, CONV: 4}, MIXED),
    "rslora of a square rank": ({Q: 4, K: 4}, {"r": 4, "lora_alpha": 3, "use_rslora": True}),
    "negative": ({Q: 3}, {"r": 3, "lora_alpha": -2}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_there_and_back(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    """peft -> kohya -> peft: the same factors and scales, and so the same merged bits from all three."""
    ranks, config = CASES[case]
    base, first = base_of(tmp_path / "base"), write_adapter(tmp_path / "a", factors(ranks, dtype), **config)
    kohya = convert(first, tmp_path / "b.safetensors", "kohya")
    back = convert(kohya, tmp_path / "c", "peft", base=base)
    before, after = load(first), load(back)
    require_same(before, after)
    assert set(load(kohya)) >= {f"lycoris_{name.replace('.', '_')}.alpha" for name in ranks}
    expected = merged(base, first, tmp_path / "m1")
    require_same(expected, merged(base, kohya, tmp_path / "m2"))
    require_same(expected, merged(base, back, tmp_path / "m3"))


def test_the_file_of_kohyas_is_what_its_formula_takes(tmp_path: Path) -> None:
    """up·down·alpha/r in numpy, from the keys that sd-scripts have."""
    adapter = write_adapter(tmp_path / "a", factors({Q: 4, K: 2, CONV: 4}, torch.float32), **MIXED)
    tensors = {
        key: t.double().numpy() for key, t in load(convert(adapter, tmp_path / "b.safetensors", "kohya")).items()
    }
    scales = {Q: 6 / 4, K: 6 / 2, CONV: 5 / 4}
    own = load(adapter)
    for name, scale in scales.items():
        flat = f"lycoris_{name.replace('.', '_')}"
        down, up, alpha = (tensors.pop(f"{flat}.{end}") for end in ("lora_down.weight", "lora_up.weight", "alpha"))
        change = up.reshape(len(up), -1) @ down.reshape(len(down), -1) * (alpha / len(down))
        a, b = (own[f"base_model.model.{name}.lora_{x}.weight"].double().numpy() for x in "AB")
        assert np.array_equal(change, b.reshape(len(b), -1) @ a.reshape(len(a), -1) * scale)
    assert not tensors
    told = metadata(tmp_path / "b.safetensors")
    assert (told["ss_network_module"], told["ss_network_dim"], told["ss_network_alpha"]) == (
        "networks.lora",
        "Dynamic",
        "Dynamic",
    )


@pytest.mark.parametrize("conv", [False, True])
def test_dora_goes_there_and_back_and_peft_loads_it(tmp_path: Path, conv: bool) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    targets = ["linear", *(["conv2"] if conv else [])]
    first = make_adapter(tmp_path / "a", zoo, target_modules=targets, use_dora=True, lora_alpha=6)
    kohya = convert(first, tmp_path / "b.safetensors", "kohya")
    assert load(kohya)["lycoris_linear.dora_scale"].shape == (20, 1)
    if conv:
        assert load(kohya)["lycoris_conv2.dora_scale"].shape == (7, 1, 1, 1)
    back = convert(kohya, tmp_path / "c", "peft", base=base)
    require_same(load(first), load(back))
    expected = merged(base, first, tmp_path / "m1")
    require_same(expected, merged(base, kohya, tmp_path / "m2"))
    exact = peft_merge(zoo, back)
    assert all(half_ulp_excess(t, exact[name]).max() <= 1 + 1e-6 for name, t in expected.items())


@pytest.mark.parametrize("options", [{}, {"rank_pattern": {"conv2": 2}}, {"alpha_pattern": {"conv1": 7}}])
def test_peft_loads_what_is_written_as_its_own(tmp_path: Path, options: dict[str, Any]) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    targets = ["linear", "conv1", "conv2", "conv3"]
    first = make_adapter(tmp_path / "a", zoo, target_modules=targets, lora_alpha=5, **options)
    back = convert(convert(first, tmp_path / "b.safetensors", "kohya"), tmp_path / "c", "peft", base=base)
    exact = peft_merge(zoo, first)
    again = peft_merge(zoo, back)
    assert all(tensor.equal(again[name]) for name, tensor in exact.items())


def test_biases_of_factors_become_differences(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    first = make_adapter(tmp_path / "a", zoo, target_modules=["linear", "conv2"], lora_bias=True, lora_alpha=6)
    report = adaptertool.convert(first, tmp_path / "b.safetensors", to="kohya")
    assert report.rounded == 0  # times 2
    require_same(merged(base, first, tmp_path / "m1"), merged(base, tmp_path / "b.safetensors", tmp_path / "m2"))


def test_loha_goes_both_ways(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    zoo, base = make_base(tmp_path / "base", torch.float32)
    config = peft.LoHaConfig(r=3, alpha=6, target_modules=["linear", "conv2"], init_weights=False)
    peft.get_peft_model(zoo, config).save_pretrained(tmp_path / "a")
    kohya = convert(tmp_path / "a", tmp_path / "b.safetensors", "kohya")
    assert metadata(kohya)["ss_network_module"] == "lycoris.kohya"
    back = convert(kohya, tmp_path / "c", "peft", base=base)
    require_same(load(tmp_path / "a"), load(back))
    expected = merged(base, tmp_path / "a", tmp_path / "m1")
    require_same(expected, merged(base, kohya, tmp_path / "m2"))
    require_same(expected, merged(base, back, tmp_path / "m3"))
    zoo_again, _ = make_base(tmp_path / "other")
    peft.PeftModel.from_pretrained(zoo_again, back)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_scale_that_is_no_power_of_two_is_rounded_correctly_and_counted(tmp_path: Path, dtype: torch.dtype) -> None:
    """lora_bias has no alpha of its own: each element is the product as rationals round it."""
    adapter = write_adapter(
        tmp_path / "a",
        {**lora_factors(Q, (8, 8), dtype=dtype), f"{Q}.lora_B.bias": (torch.randn(8) / 7).to(dtype)},
        r=4,
        lora_alpha=0.4,
        lora_bias=True,
    )
    report = adaptertool.convert(adapter, tmp_path / "b.safetensors", to="kohya")
    before, after = load(adapter)[f"base_model.model.{Q}.lora_B.bias"], load(tmp_path / "b.safetensors")
    exact = [value * Fraction(0.1) for value in fractions(before)]
    stored = fractions(after[f"lycoris_{Q.replace('.', '_')}.diff_b"])
    assert stored == [round_fraction(value, dtype) for value in exact]
    assert report.rounded == sum(one != two for one, two in zip(stored, exact, strict=True)) > 0
    assert report.rounded_tensors == (f"lycoris_{Q.replace('.', '_')}.diff_b",)


def test_an_alpha_that_float32_does_not_hold_is_said(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", factors({Q: 3}), r=3, lora_alpha=16, use_rslora=True)
    report = adaptertool.convert(adapter, tmp_path / "b.safetensors", to="kohya")
    assert any("the scale of 1 of 1 layers" in note and "6e-8" in note for note in report.notes)
    alpha = load(tmp_path / "b.safetensors")[f"lycoris_{Q.replace('.', '_')}.alpha"]
    assert alpha.dtype == torch.float32
    assert abs(alpha.item() / 3 - 16 / 3**0.5) < 1e-6


def test_what_was_trained_stays_said(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    flat = f"lycoris_{Q.replace('.', '_')}"
    tensors = {f"{flat}.lora_down.weight": torch.randn(4, 8), f"{flat}.lora_up.weight": torch.randn(8, 4)}
    save_file(tensors, path, metadata={"ss_tag": "x", "modelspec.title": "y", "sshs_model_hash": "old", "other": "z"})
    out = convert(path, tmp_path / "out", "peft", base=base_of(tmp_path / "base"))
    assert metadata(out / "adapter_model.safetensors") == {"format": "pt", "ss_tag": "x", "modelspec.title": "y"}
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 4)  # no alpha is a scale of 1
    adaptertool.check_files(out)


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lora.safetensors"
    arguments = ["convert", str(FIXTURES / "lora"), "--to", "kohya", "-o", str(out)]
    assert main_here([*arguments, "--dry-run"], monkeypatch) == 0
    assert "dry run" in capsys.readouterr().out
    assert not out.exists()
    assert main_here(arguments, monkeypatch) == 0
    assert "exact    nothing was rounded" in capsys.readouterr().out
    assert main_here(arguments, monkeypatch) == OutputError.exit_code
    back = ["convert", str(out), "--to", "peft", "--base", str(FIXTURES / "base"), "-o", str(tmp_path / "b"), "--json"]
    capsys.readouterr()
    assert main_here(back, monkeypatch) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["format_before"], report["format"]) == ("convert/1", "kohya", "peft")
    assert (report["layers"], report["copied"], report["rounded"]) == (28, 56, 0)


def test_refusals_of_what_is_asked(tmp_path: Path) -> None:
    adapter, kohya = FIXTURES / "lora", tmp_path / "a.safetensors"
    convert(adapter, kohya, "kohya")
    asked: list[tuple[Path, str, dict[str, Any], str]] = [
        (adapter, "out", {"to": "peft"}, "is of the format peft already"),
        (adapter, "out", {"to": "tar"}, "the format to write is"),
        (adapter, "out", {"to": "kohya"}, r"is to end in \.safetensors"),
        (kohya, "out", {"to": "peft"}, r"(?s)named as kohya's tools do.*give --base"),
        (kohya, "out", {"to": "mlx"}, r"(?s)named as kohya's tools do.*give --base"),
        (adapter, "out.safetensors", {"to": "kohya", "parts": ["unet"]}, "changes nothing in the part unet"),
        (adapter, "out.safetensors", {"to": "kohya", "renames": ["a=>b"]}, "renamings are for a base"),
        (kohya, "out", {"to": "peft", "base": FIXTURES / "base", "prefix": "unet."}, "a prefix is for names"),
        (adapter, "out.safetensors", {"to": "diffusers"}, "not known as a part of a pipeline"),
    ]
    for path, out, options, match in asked:
        with pytest.raises(AdapterToolError, match=match):
            adaptertool.convert(path, tmp_path / out, **options)
        assert not (tmp_path / out).exists()
    with pytest.raises(UsageError, match="among those of"):
        adaptertool.convert(adapter, adapter / "out.safetensors", to="kohya")
    with pytest.raises(AdapterToolError, match="have no tensor"):
        adaptertool.convert(kohya, tmp_path / "out", to="peft", base=base_of(tmp_path / "base"))


REFUSED: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "saved": ({**factors({Q: 4}), "head.weight": torch.ones(3, 3)}, {}, "saved whole"),
    "token rows": (
        {**factors({Q: 4}), "embed.token_adapter.trainable_tokens_delta": torch.ones(1, 4)},
        {"trainable_token_indices": {"embed": [1]}},
        "saved whole",
    ),
    "an embedding": (
        {**factors({Q: 4}), "embed.lora_embedding_A": torch.ones(4, 9), "embed.lora_embedding_B": torch.ones(3, 4)},
        {},
        "factors of an embedding",
    ),
    "two of one name": ({**factors({Q: 4}), **lora_factors(Q.replace(".", "_"), (8, 8))}, {}, "both would be"),
    "a parameter": (
        {"experts.lora_A.weight": torch.ones(8, 5), "experts.lora_B.weight": torch.ones(6, 8)},
        {"target_parameters": ["experts.down_proj"], "r": 4},
        "a parameter of its own",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("to", ["kohya", "comfy", "diffusers"])
def test_what_a_file_of_layers_cannot_hold_is_refused_by_name(tmp_path: Path, case: str, to: str) -> None:
    tensors, config, match = REFUSED[case]
    if (case == "two of one name" and to != "kohya") or (case == "saved" and to == "comfy"):
        return
    adapter = write_adapter(tmp_path / "a", tensors, **config)
    with pytest.raises(AdapterToolError, match=match):
        adaptertool.convert(adapter, tmp_path / "out.safetensors", to=to, prefix=None)
    assert not (tmp_path / "out.safetensors").exists()


def kohya_file(path: Path, *layers: tuple[str, dict[str, tuple[int, ...]]]) -> Path:
    save_file({f"{name}.{end}": torch.randn(shape) for name, ends in layers for end, shape in ends.items()}, path)
    return path


PAIR = {"lora_down.weight": (4, 8), "lora_up.weight": (8, 4)}
FLAT_Q, FLAT_K = (f"lora_unet_{name.replace('.', '_')}" for name in (Q, K))
IN_PEFT: dict[str, tuple[tuple[tuple[str, dict[str, tuple[int, ...]]], ...], str]] = {
    "dora of columns": (((FLAT_Q, PAIR | {"dora_scale": (1, 8)}),), "of kind dora-scale"),
    "several kinds": (((FLAT_Q, PAIR), (FLAT_K, {"diff": (6, 8)})), "of kind difference"),
    "dora and lora": (
        ((FLAT_Q, PAIR | {"dora_scale": (8, 1)}), (FLAT_K, {"lora_down.weight": (2, 8), "lora_up.weight": (6, 2)})),
        "of different kinds",
    ),
    "lokr of other shapes": (((FLAT_Q, {"lokr_w1": (2, 4), "lokr_w2": (4, 2)}),), r"(?i)of (kind )?lokr"),
    "glora": (((FLAT_Q, {f"{x}.weight": (8, 8) for x in ("a1", "a2", "b1", "b2")}),), "of kind lycoris-glora"),
}


@pytest.mark.parametrize("case", IN_PEFT)
@pytest.mark.parametrize("to", ["peft", "diffusers"])
def test_what_a_config_of_pefts_cannot_say_is_refused_by_name(tmp_path: Path, case: str, to: str) -> None:
    layers, match = IN_PEFT[case]
    path, base = kohya_file(tmp_path / "a.safetensors", *layers), base_of(tmp_path / "base")
    with pytest.raises(AdapterToolError, match=match):
        adaptertool.convert(path, tmp_path / "out", to=to, base=base, prefix="unet." if to == "diffusers" else None)
    assert not (tmp_path / "out").exists()


def test_not_finite(tmp_path: Path) -> None:
    tensors = factors({Q: 4})
    tensors[f"{Q}.lora_B.weight"][3, 1] = float("nan")
    adapter = write_adapter(tmp_path / "a", tensors)
    with pytest.raises(AdapterToolError, match="nan"):
        adaptertool.convert(adapter, tmp_path / "b.safetensors", to="kohya")


@pytest.mark.parametrize("ends", [{f"{x}.weight": (8, 8) for x in ("a1", "a2", "b1", "b2")}, {"w_norm": (8,)}])
def test_a_file_of_one_uncommon_kind_is_told_from_a_model(tmp_path: Path, ends: dict[str, tuple[int, ...]]) -> None:
    base = write_checkpoint(tmp_path / "base", {f"{Q}.weight": torch.randn(*next(iter(ends.values())))}, config={})
    path = kohya_file(tmp_path / "a.safetensors", (FLAT_Q, ends))
    comfy = convert(path, tmp_path / "b.safetensors", "comfy", base=base, prefix="diffusion_model.")
    require_same(merged(base, path, tmp_path / "m1"), merged(base, comfy, tmp_path / "m2"))


def test_a_scale_beyond_what_alpha_holds_is_multiplied_in(tmp_path: Path) -> None:
    """An alpha of 0, or one of few bits, would say another."""
    base, tensors = base_of(tmp_path / "base", torch.float32), factors({Q: 2}, torch.float32)
    tensors[f"{Q}.lora_B.weight"] *= 2.0**100
    adapter = write_adapter(tmp_path / "a", tensors, r=2, lora_alpha=1.9e-44)
    report = adaptertool.convert(adapter, tmp_path / "b.safetensors", to="kohya")
    assert report.rounded == 16 and load(tmp_path / "b.safetensors")["lycoris_blocks_0_attn_q.alpha"] == 2
    one, other = merged(base, adapter, tmp_path / "m1"), merged(base, tmp_path / "b.safetensors", tmp_path / "m2")
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-20)
