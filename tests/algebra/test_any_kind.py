"""sum --base of each kind of adapter: the nearest LoRA of a rank, against what the kind's own library merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, write_checkpoint
from every_kind import ALL, LYCORIS, train
from one_kind import write

import adaptertool
from adaptertool.errors import AdapterToolError, UnsupportedError

SIZE, NAMES = (16, 12), ["one", "two"]
# Saved tensors, and whole differences, stay what they are or are refused: they are no factors
NO_FACTORS = {"LN_TUNING": "its tensors are no factors", "full": "has a whole difference"}
RANK = 3


def base_of(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    stored = {f"{name}.weight": torch.randn(SIZE) for name in NAMES}
    return write_checkpoint(folder, stored), stored


def changes(made: Path, base: Path, out: Path, stored: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What a merge of a LoRA adds, from its factors in float64 and the merge itself."""
    adaptertool.merge(base, [made], out)
    return {name: (tensor.double() - stored[name].double()).numpy() for name, tensor in load(out).items()}


def require_nearest(found: np.ndarray, change: np.ndarray, rank: int, error: float) -> None:
    """That it is as near as the leading part by a dense SVD, and the error is as it says."""
    values = np.linalg.svd(change, compute_uv=False)
    norm, least = np.linalg.norm(change), np.linalg.norm(values[rank:])
    assert norm > 1e-3
    off = float(np.linalg.norm(found - change))
    assert abs(off - least) <= 1e-5 * norm
    assert abs(error - off / norm) <= 1e-5


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in NO_FACTORS])
def test_the_leading_part_of_each_kind(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(3)
    trained = train(tmp_path / "a", kind, NAMES, SIZE)
    base, stored = base_of(tmp_path / "base")
    out = tmp_path / ("out.safetensors" if kind in LYCORIS else "out")
    report = adaptertool.sum_adapters([trained.path], out, base=base, rank=RANK)
    found = changes(out, base, tmp_path / "merged", stored)
    assert len(report.layers) == len(NAMES)
    for layer in report.layers:
        name = layer.layer.removeprefix("lycoris_")
        weight = stored[f"{name}.weight"].double()
        change = (trained.merges[name](weight) - weight).detach().numpy()
        assert layer.rank <= RANK
        require_nearest(found[f"{name}.weight"], change, RANK, layer.error)


def test_truncate_takes_a_lokr_of_lycoris_without_a_base(tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = train(tmp_path / "a", "lokr of LyCORIS", NAMES, SIZE)
    base, stored = base_of(tmp_path / "base")
    out = tmp_path / "out.safetensors"
    report = adaptertool.truncate(trained.path, out, rank=RANK)
    found = changes(out, base, tmp_path / "merged", stored)
    for name, layer in zip(NAMES, report.layers, strict=True):
        weight = stored[f"{name}.weight"].double()
        change = (trained.merges[name](weight) - weight).detach().numpy()
        require_nearest(found[f"{name}.weight"], change, RANK, layer.error)


@pytest.mark.parametrize("kind", NO_FACTORS)
def test_what_has_no_factors_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    trained = train(tmp_path / "a", kind, NAMES, SIZE)
    base, _ = base_of(tmp_path / "base")
    with pytest.raises(UnsupportedError, match=NO_FACTORS[kind]):
        adaptertool.sum_adapters([trained.path], tmp_path / f"out{trained.path.suffix}", base=base, rank=RANK)


@pytest.mark.parametrize(
    ("kinds", "weights"),
    [
        (["FOURIERFT", "LORA", "IA3", "DORA", "OFT"], [0.5, 2, -0.25, 1, 0.75]),
        (["ADALORA", "VERA", "DELORA", "TINYLORA", "UNILORA"], [0.5, 2, -0.25, 1, 0.75]),
        (["locon dora", "loha of LyCORIS", "diag-oft"], [0.5, -2, 1.25]),
    ],
)
def test_several_kinds_with_weights(tmp_path: Path, kinds: list[str], weights: list[float]) -> None:
    """The leading part of the weighted sum of what each alone changes: of products of factors, and of what the base
    must tell the size of."""
    torch.manual_seed(5)
    trained = [train(tmp_path / kind, kind, NAMES, SIZE) for kind in kinds]
    base, stored = base_of(tmp_path / "base")
    paths = [one.path for one in trained]
    for order in (slice(None), slice(None, None, -1)):
        out = (tmp_path / f"out{order.step}").with_suffix(paths[0].suffix)
        report = adaptertool.sum_adapters(paths[order], out, weights=weights[order], base=base, energy="0.9")
        found = changes(out, base, tmp_path / f"merged{order.step}", stored)
        for layer in report.layers:
            name = layer.layer.removeprefix("lycoris_")
            weight = stored[f"{name}.weight"].double()
            merges = [one.merges[name](weight) - weight for one in trained]
            change = sum(w * part for w, part in zip(weights, merges, strict=True)).detach().numpy()
            assert layer.energy >= 0.9 and 0 < layer.rank < min(SIZE)
            require_nearest(found[f"{name}.weight"], change, layer.rank, layer.error)


def one_layer(folder: Path, kind: str, tensors: dict[str, torch.Tensor], name: str = "l", **fields: Any) -> Path:
    return write(folder, {f"{name}.{key}": tensor for key, tensor in tensors.items()}, peft_type=kind, **fields)


def peanut(folder: Path) -> Path:
    shapes = {"A": (3, 8), "B": (8, 3), "encoders.0": (3, 3), "decoders.0": (3, 3)}
    tensors = {f"peanut_{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    return one_layer(folder, "PEANUT", tensors, r=3, depth=1, act_fn="relu", scaling=0.3)


def osf(folder: Path) -> Path:
    shapes = {"U_low": (8, 3), "S_low": (3,), "V_low": (3, 6)}
    tensors = {f"osf_svd_params.{name}": torch.randn(shape) for name, shape in shapes.items()}
    return one_layer(folder, "OSF", tensors, effective_rank=None)


def kasa(folder: Path) -> Path:
    shapes = {"lora_A.weight": (2, 6), "lora_B.weight": (8, 2), "lora_diag": (2,)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    return one_layer(folder, "LORA", tensors, r=2, lora_alpha=3, kasa_config={"beta": 1e-4, "gamma": 1e-3})


def supra(folder: Path) -> Path:
    places = torch.tensor([[0, 3, 7, 7], [5, 0, 1, 2]], dtype=torch.int32)
    return one_layer(folder, "SHIRA", {"shira_weight": torch.randn(4).bfloat16(), "shira_indices": places}, r=1)


@pytest.mark.parametrize("made", [peanut, osf, kasa, supra])
def test_what_is_made_of_the_weight(tmp_path: Path, made: Callable[[Path], Path]) -> None:
    """Against the merge itself into a base of float64, which other tests hold against rationals."""
    torch.manual_seed(7)
    stored = {"l.weight": torch.randn(8, 6, dtype=torch.float64)}
    base, adapter = write_checkpoint(tmp_path / "base", stored), made(tmp_path / "a")
    adaptertool.merge(base, [adapter], tmp_path / "merged")
    change = (load(tmp_path / "merged")["l.weight"] - stored["l.weight"]).numpy()
    (layer,) = adaptertool.sum_adapters([adapter], tmp_path / "out", base=base, rank=2).layers
    found = changes(tmp_path / "out", base, tmp_path / "lora", stored)
    require_nearest(found["l.weight"], change, 2, layer.error)


C_ATTN, KERNEL = "transformer.h.0.attn.c_attn", torch.arange(12.0).reshape(1, 3, 4)


@pytest.mark.parametrize(
    ("kind", "tensors", "fields"),
    [
        ("C3A", {"c3a_kernel": KERNEL / 9}, {}),
        ("FOURIERFT", {"fourierft_spectrum": torch.ones(5)}, {"random_loc_seed": 3, "scaling": 90.0}),
        ("OFT", {"oft_R.weight": torch.ones(3, 6) / 5}, {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False}),
        ("IA3", {"ia3_l": torch.arange(12.0).reshape(1, 12)}, {"feedforward_modules": ".*"}),
    ],
)
def test_a_weight_that_is_stored_transposed(
    tmp_path: Path, kind: str, tensors: dict[str, torch.Tensor], fields: dict[str, Any]
) -> None:
    """(in, out) = (12, 4), as GPT-2 has it."""
    stored = {f"{C_ATTN}.weight": torch.randn(12, 4)}
    base = write_checkpoint(tmp_path / "gpt2", stored, config={"model_type": "gpt2"})
    adapter = one_layer(tmp_path / "a", kind, tensors, C_ATTN, fan_in_fan_out=True, **fields)
    adaptertool.merge(base, [adapter], tmp_path / "merged")
    change = (load(tmp_path / "merged")[f"{C_ATTN}.weight"].double() - stored[f"{C_ATTN}.weight"].double()).numpy()
    (layer,) = adaptertool.sum_adapters([adapter], tmp_path / "out", base=base, rank=2).layers
    factors = load(tmp_path / "out" / "adapter_model.safetensors")
    assert sorted(tuple(factor.shape) for factor in factors.values()) == [(2, 12), (4, 2)]
    require_nearest(
        changes(tmp_path / "out", base, tmp_path / "lora", stored)[f"{C_ATTN}.weight"], change, 2, layer.error
    )


def test_an_embedding(tmp_path: Path) -> None:
    """The names of PEFT's factors of an embedding, (vocabulary, d) being the transpose of what they describe."""
    stored = {"model.embed_tokens.weight": torch.randn(10, 6)}
    base = write_checkpoint(tmp_path / "base", stored)
    tensors = {"hira_embedding_A": torch.randn(2, 10), "hira_embedding_B": torch.randn(6, 2)}
    adapter = one_layer(tmp_path / "a", "HIRA", tensors, "model.embed_tokens", r=2)
    adaptertool.merge(base, [adapter], tmp_path / "merged")
    name = "model.embed_tokens.weight"
    change = (load(tmp_path / "merged")[name].double() - stored[name].double()).numpy()
    (layer,) = adaptertool.sum_adapters([adapter], tmp_path / "out", base=base, rank=3).layers
    factors = load(tmp_path / "out" / "adapter_model.safetensors")
    assert {key.rpartition(".")[2]: tuple(factor.shape) for key, factor in factors.items()} == {
        "lora_embedding_A": (3, 10), "lora_embedding_B": (6, 3)
    }  # fmt: skip
    require_nearest(changes(tmp_path / "out", base, tmp_path / "lora", stored)[name], change, 3, layer.error)


FOURIER = {"fourierft_spectrum": torch.ones(5)}
PLACES = {"random_loc_seed": 3, "scaling": 90.0}


def test_what_is_refused(tmp_path: Path) -> None:
    stored = {"l.weight": torch.randn(8, 6), "l.bias": torch.randn(8), "c.weight": torch.randn(8, 6, 1, 1)}
    base = write_checkpoint(tmp_path / "base", stored)
    fourier = one_layer(tmp_path / "fourier", "FOURIERFT", FOURIER, **PLACES)
    biased = one_layer(tmp_path / "ia3", "IA3", {"ia3_l": torch.ones(8, 1)}, feedforward_modules=[])
    beft = one_layer(tmp_path / "beft", "BEFT", {"beft_bias": torch.ones(1, 8)})
    conv = one_layer(tmp_path / "conv", "IA3", {"ia3_l": torch.ones(1, 6, 1, 1)}, "c", feedforward_modules=".*")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (fourier, {"rank": 2}, r"of kind fourierft.*--base.*--rank"),
        (fourier, {"base": base}, "give rank or energy"),
        (fourier, {"base": base, "method": "svd"}, "needs rank or energy: what .* of no rank"),
        (fourier, {"base": base, "rank": 2, "method": "ties_svd", "density": 1}, "no method but cat or svd"),
        (biased, {"base": base, "rank": 2}, "more than one tensor of the layer"),
        (beft, {"base": base, "rank": 2}, "l.bias, which is no matrix"),
        (conv, {"base": base, "rank": 2}, "on a convolution"),
    ]
    for adapter, options, words in cases:
        with pytest.raises(AdapterToolError, match=words):
            adaptertool.sum_adapters([adapter], tmp_path / "out", **options)
    for adapter in (fourier, beft):
        with pytest.raises(UnsupportedError, match=r"adaptertool sum.*--base.*--rank"):
            adaptertool.truncate(adapter, tmp_path / "out", rank=1)
    assert not (tmp_path / "out").exists()


def test_a_part_of_a_tensor_is_refused(tmp_path: Path) -> None:
    part = "model.layers.0.self_attn.k_proj"
    base = write_checkpoint(tmp_path / "base", {f"{part.replace('k_proj', 'qkv_proj')}.weight": torch.randn(24, 6)})
    config = {"model_type": "phi3", "num_attention_heads": 2, "hidden_size": 8, "num_key_value_heads": 2}
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    adapter = one_layer(tmp_path / "a", "FOURIERFT", FOURIER, part, **PLACES)
    with pytest.raises(UnsupportedError, match=r"of kind fourierft.*as a part of a tensor"):
        adaptertool.sum_adapters([adapter], tmp_path / "out", base=base, rank=2)
