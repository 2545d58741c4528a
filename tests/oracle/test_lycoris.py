"""Files of LyCORIS against what its own layers compute: the weight that their forward pass has, found by inputs of
zeros and a one. Not its merge, which applies alpha/r twice for some kinds."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, same_bits
from layers import make_base
from lycoris import LycorisNetwork, create_lycoris
from lycoris.modules.norms import NormModule
from lycoris.wrapper import network_module_dict
from oracle import half_ulp_excess
from safetensors.torch import save_file
from torch import nn

import adaptertool
from adaptertool.errors import UnsupportedError

DTYPES = [torch.bfloat16, torch.float32]
LAYERS = ["linear", "conv1", "conv2", "conv3"]
DORA = {"dora_wd": True}
EPSILON = 1e-5  # half-ulp share: LyCORIS adds an epsilon to the norms of DoRA

# name: (algorithm, options, layers, whether biases change too)
CASES: Mapping[str, tuple[str, Mapping[str, Any], list[str], bool]] = {
    "locon": ("lora", {}, LAYERS, False),
    "rslora": ("lora", {"rs_lora": True}, LAYERS, False),
    "tucker": ("lora", {"use_tucker": True}, LAYERS, False),
    "dora": ("lora", DORA, LAYERS, False),
    "dora of columns": ("lora", DORA | {"wd_on_output": False}, LAYERS, False),
    "tucker dora": ("lora", DORA | {"use_tucker": True}, ["conv1", "conv2", "conv3"], False),
    "loha": ("loha", {}, LAYERS, False),
    "loha dora": ("loha", DORA, LAYERS, False),
    "loha dora of columns": ("loha", DORA | {"wd_on_output": False}, LAYERS, False),
    "loha dora, tucker": ("loha", DORA | {"use_tucker": True}, LAYERS, False),
    "oft": ("diag-oft", {}, ["linear", "conv1", "conv3"], False),
    "rescaled oft": ("diag-oft", {"rescaled": True}, LAYERS, False),
    "boft": ("boft", {"linear_dim": 10}, ["linear", "conv1", "conv3"], False),
    "rescaled boft": ("boft", {"linear_dim": 10, "conv_dim": 4, "rescaled": True}, ["linear", "conv1", "conv3"], False),
    **{
        f"{algo}, bound {bound}": (algo, {"linear_dim": 10, "constraint": bound}, ["linear", "conv1", "conv3"], False)
        for algo in ("diag-oft", "boft")
        for bound in (2.0**-7, 64.0)
    },
    "glora": ("glora", {}, LAYERS, False),
    "loha, tucker": ("loha", {"use_tucker": True}, LAYERS, False),
    "lokr": ("lokr", {"factor": 2}, LAYERS, False),
    "lokr, both stored": ("lokr", {"factor": 4, "full_matrix": True}, LAYERS, False),
    "lokr, both decomposed": ("lokr", {"factor": 8, "decompose_both": True}, LAYERS, False),
    "lokr, tucker": ("lokr", {"factor": 2, "use_tucker": True}, LAYERS, False),
    "lokr dora": ("lokr", DORA | {"factor": 2}, LAYERS, False),
    "lokr dora, both stored": ("lokr", DORA | {"factor": 4, "full_matrix": True}, LAYERS, False),
    "lokr dora, both decomposed": ("lokr", DORA | {"factor": 8, "decompose_both": True}, LAYERS, False),
    "lokr dora, tucker": ("lokr", DORA | {"factor": 2, "use_tucker": True}, LAYERS, False),
    "lokr dora of columns": ("lokr", DORA | {"factor": 2, "wd_on_output": False}, LAYERS, False),
    "ia3": ("ia3", {}, LAYERS, False),
    "ia3, inputs": ("ia3", {"train_on_input": True}, LAYERS, False),
    "full": ("full", {}, LAYERS, True),
    **{f"{algo}, scalar": (algo, {"use_scalar": True}, LAYERS, False) for algo in ("lora", "loha", "lokr", "glora")},
    **{f"{algo}, rslora": (algo, {"rs_lora": True}, LAYERS, False) for algo in ("loha", "lokr")},
    "lora dora, scalar": ("lora", DORA | {"use_scalar": True}, LAYERS, False),
    "tucker, rslora, scalar": ("lora", {"use_tucker": True, "rs_lora": True, "use_scalar": True}, LAYERS, False),
    "lokr, unbalanced": ("lokr", {"factor": 4, "unbalanced_factorization": True}, LAYERS, False),
    "lokr, unbalanced, both": (
        "lokr",
        {"factor": 8, "unbalanced_factorization": True, "decompose_both": True, "use_tucker": True},
        LAYERS,
        False,
    ),
    "beside": ("lora", {"bypass_mode": True}, LAYERS, False),
    "loha beside": ("loha", {"bypass_mode": True}, LAYERS, False),
    "lokr beside": ("lokr", {"bypass_mode": True, "factor": 2}, LAYERS, False),
    "ia3 beside": ("ia3", {"bypass_mode": True}, LAYERS, False),
    "glora beside": ("glora", {"bypass_mode": True}, LAYERS, False),
    "oft beside": ("diag-oft", {"bypass_mode": True}, ["linear", "conv1", "conv3"], False),
    "boft beside": ("boft", {"bypass_mode": True, "linear_dim": 10}, ["linear", "conv1", "conv3"], False),
}
# What makes a module of LyCORIS's: tried above, or of no consequence to what is stored
TRIED = {
    *(
        "use_tucker",
        "use_scalar",
        "weight_decompose",
        "wd_on_out",
        "rs_lora",
        "decompose_both",
        "factor",
        "full_matrix",
    ),
    *("unbalanced_factorization", "rescaled", "train_on_input", "bypass_mode", "lora_dim", "alpha"),
    "constraint",
}
OF_TRAINING = {
    *("lora_name", "org_module", "multiplier", "dropout", "rank_dropout", "module_dropout", "rank_dropout_scale"),
    *("self", "kwargs", "block_size"),  # of DyLoRA: which ranks are trained together
}
# Not here: DyLoRA takes ranks by chance, and its files are those of "lora"; T-LoRA is refused
NO_CASE = {"locon", "dylora", "tlora"}


def test_every_algorithm_and_option_is_tried() -> None:
    """What a later version of LyCORIS adds fails here."""
    assert {algo for algo, *_ in CASES.values()} | NO_CASE == network_module_dict.keys()
    known = TRIED | OF_TRAINING
    for algo, module in network_module_dict.items():
        if algo != "tlora":
            assert inspect.signature(module.__init__).parameters.keys() <= known, algo


def test_t_lora_is_refused(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    _, saved = train(zoo, "tlora", ["linear"])
    save_file(saved, tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedError, match="T-LoRA of LyCORIS, whose rank depends on the step"):
        adaptertool.merge(base, [tmp_path / "a.safetensors"], tmp_path / "out")


def test_dylora_is_lora(tmp_path: Path) -> None:
    """Its file, with all of the ranks that it was trained with."""
    zoo, base = make_base(tmp_path / "base", torch.float32)
    _, saved = train(zoo, "dylora", LAYERS, linear_dim=4, conv_dim=8)
    save_file(saved, tmp_path / "a.safetensors")
    adaptertool.merge(base, [tmp_path / "a.safetensors"], tmp_path / "out")
    before, after = load(base), load(tmp_path / "out")
    for layer in LAYERS:
        key = f"lycoris_{layer}"
        down, up = (saved[f"{key}.lora_{way}.weight"].double().flatten(1) for way in ("down", "up"))
        change = (saved[f"{key}.alpha"].double() / len(down) * up @ down).reshape(before[f"{layer}.weight"].shape)
        exact = before[f"{layer}.weight"].double() + change
        assert half_ulp_excess(after[f"{layer}.weight"], exact).max() <= 1 + EPSILON


def test_norms(tmp_path: Path) -> None:
    """What train_norm trains: its merged weight is its forward pass's."""
    zoo, base = make_base(tmp_path / "base", torch.float32)
    module = NormModule("lycoris_rest", zoo.rest, 1.0)
    own = {name: torch.randn(9) for name in ("w_norm", "b_norm")}
    module.load_state_dict(own, strict=False)
    save_file({f"lycoris_rest.{name}": tensor for name, tensor in own.items()}, tmp_path / "a.safetensors")
    adaptertool.merge(base, [tmp_path / "a.safetensors"], tmp_path / "out")
    for name, exact in zip(("weight", "bias"), module.double().get_merged_weight(), strict=True):
        assert half_ulp_excess(load(tmp_path / "out")[f"rest.{name}"], exact).max() <= 1 + EPSILON


def train(zoo: nn.Module, algo: str, layers: list[str], **options: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model in float64 with adapters of random factors on these layers, and their tensors as they are saved."""
    logging.getLogger("LyCORIS").setLevel(logging.CRITICAL)
    LycorisNetwork.apply_preset({"target_module": [], "target_name": layers, "enable_conv": True})
    model = copy.deepcopy(zoo).float()
    sizes: dict[str, Any] = {"linear_dim": 3, "linear_alpha": 2, "conv_dim": 2, "conv_alpha": 1.5}
    network = create_lycoris(model, 1.0, algo=algo, **{"bypass_mode": False} | sizes | options)
    with torch.no_grad():
        for layer in network.loras:
            for name, parameter in layer.named_parameters(recurse=True):
                if not name.startswith("org_module"):
                    # A scalar is multiplied into a factor when that is saved, in float32
                    parameter.copy_(torch.full((), -0.5) if name == "scalar" else torch.randn(parameter.shape) / 3)
    network.apply_to()
    saved = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
    for layer in network.loras:
        layer.double()
    return model.double().eval(), saved


@torch.no_grad()
def seen(layer: nn.Module, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight, of this shape, and the bias that the forward pass of a linear layer or a convolution has."""
    shape = weight.shape[1:]
    ones = torch.eye(shape.numel(), dtype=torch.float64).reshape(-1, *shape)
    bias = layer(torch.zeros(1, *shape, dtype=torch.float64)).reshape(-1)
    return (layer(ones).reshape(len(ones), -1) - bias).T.reshape(weight.shape), bias


@pytest.mark.long("name")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_merge_is_what_the_forward_pass_computes(
    tmp_path: Path, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    algo, options, layers, biases = CASES[name]
    zoo, base = make_base(tmp_path / "base", dtype)
    model, saved = train(zoo, algo, layers, **options)
    save_file(saved, tmp_path / "a.safetensors")
    adaptertool.merge(base, [tmp_path / "a.safetensors"], tmp_path / "out")
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # OFT inverts in float32
    before, after = load(base), load(tmp_path / "out")
    changed = {f"{layer}.{kind}" for layer in layers for kind in ("weight", *(["bias"] if biases else []))}
    for key, tensor in after.items():
        if key not in changed:
            assert same_bits(tensor, before[key]), key
            continue
        layer, _, kind = key.rpartition(".")
        exact = seen(model.get_submodule(layer), before[f"{layer}.weight"])[kind == "bias"]
        assert not tensor.equal(before[key]), key
        assert half_ulp_excess(tensor, exact).max() <= 1 + (1 if "dora" in name else EPSILON), key
