"""Every kind of PEFT's that a merge has, against PEFT's own merge in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from layers import DTYPES, check, make_base, peft_merge
from peft import get_peft_model
from peft_doubles import in_doubles
from torch import nn

import adaptertool


class Case(NamedTuple):
    """Layers of layers.Zoo with adapters of a kind, and how many tensors that changes."""

    config: str
    fields: Mapping[str, Any]
    targets: tuple[str, ...]
    edited: int


LYCORIS = ("linear", "conv1", "conv2")
OFT = {"oft_block_size": 3}
CASES = {
    "adalora": Case("AdaLoraConfig", {"init_r": 3, "target_r": 2, "total_step": 9}, ("linear", "turned"), 2),
    "adalora-alpha": Case("AdaLoraConfig", {"init_r": 3, "lora_alpha": 0, "total_step": 9}, ("linear", "conv2"), 2),
    "adalora-rslora": Case(
        "AdaLoraConfig", {"init_r": 3, "use_rslora": True, "bias": "lora_only", "total_step": 9}, ("linear",), 2
    ),
    "gralora": Case("GraloraConfig", {"r": 4, "alpha": 6, "gralora_k": 2}, ("linear", "turned"), 2),
    "gralora beside LoRA": Case(
        "GraloraConfig", {"r": 4, "alpha": 5, "gralora_k": 2, "hybrid_r": 3}, ("linear", "turned"), 2
    ),
    "miss": Case("MissConfig", {"r": 5}, ("linear",), 1),
    "miss, all": Case("MissConfig", {"r": 4, "init_weights": False}, ("linear",), 1),
    "miss, mini": Case("MissConfig", {"r": 5, "mini_r": 4, "init_weights": "mini"}, ("linear",), 1),
    "miss, bat": Case("MissConfig", {"r": 2, "init_weights": "bat"}, ("linear",), 1),
    "randlora": Case("RandLoraConfig", {"r": 3, "randlora_alpha": 6}, ("linear",), 1),
    "randlora, sparse": Case("RandLoraConfig", {"r": 5, "sparse": True, "randlora_alpha": 5}, ("linear",), 1),
    "delora": Case("DeloraConfig", {"r": 3, "rank_pattern": {"linear": 2}}, ("linear",), 1),
    "delora, all": Case("DeloraConfig", {"r": 4, "init_weights": False, "bias": "delora_only"}, ("linear",), 2),
    "tinylora": Case("TinyLoraConfig", {"u": 3, "weight_tying": 1.0}, ("linear", "turned", "embedding"), 3),
    **{
        f"tinylora, tied {tying}": Case(
            "TinyLoraConfig", {"u": count, "r": 3, "weight_tying": tying}, ("linear", "turned", "embedding"), 3
        )
        for tying, count in ((0.0, 64), (0.4, 1))
    },
    "vblora": Case(
        "VBLoRAConfig", {"r": 3, "num_vectors": 300, "vector_length": 2, "topk": 2}, ("linear", "turned"), 2
    ),
    "vblora, one vector": Case(
        "VBLoRAConfig",
        {"r": 2, "num_vectors": 50, "vector_length": 2, "topk": 1, "save_only_topk_weights": True},
        ("linear",),
        1,
    ),
    **{
        f"glora, {what}": Case(
            "GloraConfig", {"r": 3, "config_A_B": what, "config_C": "none", "config_D_E": "none"}, ("linear",), 1
        )
        for what in ("lora", "vector", "constant")
    },
    "glora, biases": Case("GloraConfig", {"r": 3}, ("linear",), 2),
    "glora, biases alone": Case("GloraConfig", {"r": 3, "config_A_B": "none"}, ("linear",), 1),
    "glora, vectors on biases": Case(
        "GloraConfig", {"r": 3, "config_C": "vector", "config_D_E": "vector"}, ("linear",), 2
    ),
    "peanut": Case("PeanutConfig", {"r": 3}, ("linear",), 1),
    "peanut, deep": Case("PeanutConfig", {"r": 3, "depth": 2, "scaling": 0.7}, ("linear",), 1),
    "pvera": Case("PveraConfig", {"r": 4}, ("linear", "turned"), 2),
    "unilora": Case("UniLoraConfig", {"r": 3, "theta_d_length": 50, "save_indices": True}, ("linear", "turned"), 2),
    "hira": Case(
        "HiraConfig",
        {"r": 3, "init_weights": False},
        ("linear", "turned", "embedding", "conv1", "conv2", "conv3"),
        6,
    ),
    "vera": Case("VeraConfig", {"r": 3}, ("linear", "turned"), 2),
    "ia3": Case("IA3Config", {"feedforward_modules": []}, ("linear", "turned", "conv2", "conv3"), 8),
    "ia3-inputs": Case(
        "IA3Config",
        {"feedforward_modules": ["linear", "turned", "conv2", "conv3"]},
        ("linear", "turned", "conv2", "conv3"),
        4,
    ),
    "layer-norms": Case("LNTuningConfig", {}, ("rest",), 2),
    "tokens": Case("TrainableTokensConfig", {"token_indices": [30, 0, 7]}, ("embedding",), 1),
    "shira": Case("ShiraConfig", {"r": 2}, ("linear",), 1),
    "loha-tucker": Case(
        "LoHaConfig", {"r": 2, "alpha": 3, "use_effective_conv2d": True}, ("conv1", "conv2", "linear"), 3
    ),
    "lokr": Case("LoKrConfig", {"r": 2, "alpha": 3, "rank_pattern": {"conv2": 1}}, LYCORIS, 3),
    "lokr-full": Case("LoKrConfig", {"r": 16, "alpha": 3, "alpha_pattern": {"linear": 4.0}}, LYCORIS, 3),
    "lokr-both": Case("LoKrConfig", {"r": 1, "alpha": 2, "decompose_both": True, "decompose_factor": 4}, LYCORIS, 3),
    "lokr-tucker": Case(
        "LoKrConfig",
        {"r": 1, "alpha": 2, "use_effective_conv2d": True, "rank_dropout_scale": True},
        ("linear", "conv2"),
        2,
    ),
    "deft": Case("DeftConfig", {"r": 3}, ("linear", "turned"), 2),
    "deft, alpha": Case("DeftConfig", {"r": 30, "alpha": 7, "bias": "deft_only"}, ("linear",), 2),
    "para": Case("DeftConfig", {"r": 3, "para": True}, ("linear", "turned"), 2),
    "para, basis": Case("DeftConfig", {"r": 3, "para": True, "decomposition_method": "qr"}, ("linear", "turned"), 2),
    "deft, basis": Case("DeftConfig", {"r": 3, "decomposition_method": "qr", "alpha": 7}, ("linear", "turned"), 2),
    "c3a": Case("C3AConfig", {"block_size": 4}, ("linear",), 1),
    "c3a-biases": Case(
        "C3AConfig", {"block_size": 3, "block_size_pattern": {"linear": 2}, "bias": "c3a_only"}, ("linear",), 2
    ),
    "beft": Case("BeftConfig", {}, ("linear",), 1),
    "supertuning": Case("SupertuningConfig", {"sparsity": 0.8}, ("linear",), 1),
    "supra": Case("SupertuningConfig", {"sparsity": 0.9, "select_top": False, "r": 3, "lora_alpha": 5}, ("linear",), 1),
    "fourierft": Case("FourierFTConfig", {"n_frequency": 11, "scaling": 100.0}, ("linear",), 1),
    "fourierft-biases": Case(
        "FourierFTConfig",
        {"n_frequency_pattern": {"linear": 240}, "random_loc_seed": 3, "bias": "fourierft_only"},
        ("linear",),
        2,
    ),
    **{
        f"waveft-{family}": Case(
            "WaveFTConfig", {"n_frequency": 90, "scaling": 8.0, "wavelet_family": family}, ("linear",), 1
        )
        for family in ("db1", "db4", "sym5", "coif1", "db10", "coif4")
    },
    "waveft-direct": Case(
        "WaveFTConfig",
        {"n_frequency": 10, "use_idwt": False, "random_loc_seed": 1, "bias": "waveft_only"},
        ("linear",),
        2,
    ),
    "oft": Case("OFTConfig", OFT, ("linear", "embedding"), 2),
    "oft-terms": Case("OFTConfig", OFT | {"num_cayley_neumann_terms": 7, "block_share": True}, ("linear",), 1),
    "oft-three-terms": Case("OFTConfig", OFT | {"num_cayley_neumann_terms": 3}, ("linear",), 1),
    "oft-inverse": Case("OFTConfig", OFT | {"use_cayley_neumann": False}, ("linear", "embedding"), 2),
    "oft-projected": Case("OFTConfig", OFT | {"coft": True, "eps": 0.25, "bias": "oft_only"}, ("linear",), 2),
    "ia3-some": Case("IA3Config", {"feedforward_modules": "lin.*"}, ("linear", "turned"), 3),
}


def train(folder: Path, zoo: nn.Module, case: Case) -> Path:
    """An adapter as PEFT saves it, with random factors."""
    config = getattr(peft, case.config)(target_modules=list(case.targets), **case.fields)
    tuned = get_peft_model(copy.deepcopy(zoo).float(), config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(folder)
    return folder


@pytest.mark.long("name")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_merge_is_that_of_peft(tmp_path: Path, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo, base = make_base(tmp_path / "base", dtype)
    adapter = train(tmp_path / "a", zoo, CASES[name])
    adaptertool.merge(base, [adapter], tmp_path / "out")
    with in_doubles(monkeypatch):
        exact = peft_merge(zoo, adapter)
    check(base, tmp_path / "out", exact, CASES[name].edited)
