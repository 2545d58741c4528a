"""An adapter of each kind, of layers of one size, as PEFT or LyCORIS saves it; and what their own layers make
of a weight, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from lycoris import LycorisNetwork, create_lycoris
from peft import get_peft_model
from safetensors.torch import save_file
from torch import nn

# By peft_type: class, fields
PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "LORA": ("LoraConfig", {"r": 2, "lora_alpha": 3}),
    "DORA": ("LoraConfig", {"r": 2, "lora_alpha": 3, "use_dora": True}),
    "ADALORA": ("AdaLoraConfig", {"init_r": 2, "total_step": 9}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4}),
    "C3A": ("C3AConfig", {"block_size": 4}),
    "DEFT": ("DeftConfig", {"r": 2}),
    "DELORA": ("DeloraConfig", {"r": 2}),
    "FOURIERFT": ("FourierFTConfig", {"n_frequency": 7, "scaling": 50.0}),
    "GLORA": ("GloraConfig", {"r": 2}),
    "GRALORA": ("GraloraConfig", {"r": 4, "alpha": 3, "gralora_k": 2}),
    "HIRA": ("HiraConfig", {"r": 2}),
    "HRA": ("HRAConfig", {"r": 2}),
    "IA3": ("IA3Config", {"feedforward_modules": []}),
    "LN_TUNING": ("LNTuningConfig", {}),
    "LOHA": ("LoHaConfig", {"r": 2, "alpha": 3}),
    "LOKR": ("LoKrConfig", {"r": 2, "alpha": 3}),
    "MISS": ("MissConfig", {"r": 4}),
    "OFT": ("OFTConfig", {"r": 0, "oft_block_size": 4}),
    "PVERA": ("PveraConfig", {"r": 4}),
    "RANDLORA": ("RandLoraConfig", {"r": 3}),
    "ROAD": ("RoadConfig", {"group_size": 4}),
    "SHIRA": ("ShiraConfig", {"r": 2}),
    "SUPERTUNING": ("SupertuningConfig", {"sparsity": 0.8}),
    "TINYLORA": ("TinyLoraConfig", {"u": 5}),
    "UNILORA": ("UniLoraConfig", {"r": 2, "theta_d_length": 20, "save_indices": True}),
    "VBLORA": ("VBLoRAConfig", {"r": 2, "num_vectors": 20, "vector_length": 2}),
    "VERA": ("VeraConfig", {"r": 3}),
    "WAVEFT": ("WaveFTConfig", {"n_frequency": 20}),
}
LYCORIS: dict[str, dict[str, Any]] = {
    "locon dora": {"algo": "lora", "dora_wd": True},
    "loha of LyCORIS": {"algo": "loha"},
    "loha dora": {"algo": "loha", "dora_wd": True, "wd_on_output": False},
    "lokr of LyCORIS": {"algo": "lokr", "factor": 2},
    "lokr dora": {"algo": "lokr", "factor": 2, "dora_wd": True},
    "diag-oft": {"algo": "diag-oft", "rescaled": True},
    "glora of LyCORIS": {"algo": "glora"},
    "ia3 of LyCORIS": {"algo": "ia3"},
    "full": {"algo": "full"},
}
ALL = (*PEFT, *LYCORIS)
# They change biases, rows of embeddings, and what no adapter before has changed
NOT_HERE = {"BEFT", "TRAINABLE_TOKENS", "PEANUT", "OSF", "FROD"}
Merge = Callable[[torch.Tensor], torch.Tensor]  # W -> W', float64


class Trained(NamedTuple):
    path: Path
    merges: dict[str, Merge]  # by layer


class Layers(nn.Module):
    def __init__(self, names: Sequence[str], size: tuple[int, int]) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(size[1], size[0], bias=False))


def _randomise(parameters: Iterator[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape) / 4)


def _by_peft(folder: Path, kind: str, names: list[str], size: tuple[int, int]) -> Trained:
    config = getattr(peft, PEFT[kind][0])(target_modules=names, **PEFT[kind][1])
    tuned: Any = get_peft_model(Layers(names, size), config)
    _randomise(parameter for parameter in tuned.parameters() if parameter.requires_grad)
    tuned.save_pretrained(folder)
    tuned = tuned.double().eval()
    whole = tuned.base_model.model

    def merge(name: str, weight: torch.Tensor) -> torch.Tensor:
        layer = whole.get_submodule(name)
        if kind == "LN_TUNING":
            return layer.ln_tuning_layers["default"].weight.detach()
        layer.get_base_layer().weight.data = weight.clone()
        layer._base_weight_before_merge = None  # HiRA keeps the first one
        layer.merge()
        layer.merged_adapters.clear()
        return layer.get_base_layer().weight.data.clone()

    return Trained(folder, {name: lambda weight, name=name: merge(name, weight) for name in names})


def _by_lycoris(folder: Path, kind: str, names: list[str], size: tuple[int, int]) -> Trained:
    LycorisNetwork.apply_preset({"target_module": [], "target_name": names, "enable_conv": True})
    model = Layers(names, size)
    network = create_lycoris(model, 1.0, linear_dim=2, linear_alpha=3, bypass_mode=False, **LYCORIS[kind])
    for layer in network.loras:
        _randomise(p for name, p in layer.named_parameters() if not name.startswith("org_module"))
    network.apply_to()
    path = folder.with_suffix(".safetensors")
    saved = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
    save_file(saved, path)
    for layer in network.loras:
        layer.double()
    model.double().eval()

    def merge(name: str, weight: torch.Tensor) -> torch.Tensor:
        if kind == "full":  # its layer has no weight but that
            return weight + saved[f"lycoris_{name}.diff"].double()
        layer = model.get_submodule(name)
        layer.weight.data = weight.clone()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # it inverts in float32
            return layer(torch.eye(size[1], dtype=torch.float64)).detach().T

    return Trained(path, {name: lambda weight, name=name: merge(name, weight) for name in names})


def train(folder: Path, kind: str, names: list[str], size: tuple[int, int]) -> Trained:
    """An adapter of layers (out, in), multiples of 4, with these names; kind: one of ALL"""
    return (_by_peft if kind in PEFT else _by_lycoris)(folder, kind, names, size)
