"""Chains of adapters of different kinds, every kind after every other, against the float64 of PEFT's and LyCORIS's own
layers, one after the other."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from conftest import load, write_checkpoint
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lycoris import LycorisNetwork, create_lycoris
from oracle import half_ulp_excess
from peft import get_peft_model
from peft.tuners.boft import layer as boft
from peft_doubles import Blocks, in_doubles
from safetensors.torch import save_file
from torch import nn

import adaptertool
from adaptertool.formats.peft.refused import REFUSED
from adaptertool.kinds import SPELLED

OUT, IN = 8, 12
DTYPES = [torch.bfloat16, torch.float32, torch.float16]
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
NOT_HERE = {"BEFT", "TRAINABLE_TOKENS"}  # they change biases, and rows of embeddings
Merge = Callable[[torch.Tensor], torch.Tensor]  # W -> W', float64


class Trained(NamedTuple):
    path: Path
    merges: dict[str, Merge]  # by layer


class Layers(nn.Module):
    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(IN, OUT, bias=False))


def randomise(parameters: Iterator[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape) / 4)


def by_peft(folder: Path, kind: str, names: list[str]) -> Trained:
    config = getattr(peft, PEFT[kind][0])(target_modules=names, **PEFT[kind][1])
    tuned: Any = get_peft_model(Layers(names), config)
    randomise(parameter for parameter in tuned.parameters() if parameter.requires_grad)
    tuned.save_pretrained(folder)
    tuned = tuned.double().eval()
    whole = tuned.base_model.model

    def merge(name: str, weight: torch.Tensor) -> torch.Tensor:
        layer = whole.get_submodule(name)
        if kind == "LN_TUNING":
            return layer.ln_tuning_layers["default"].weight.detach()
        layer.get_base_layer().weight.data = weight.clone()
        layer.merge()
        layer.merged_adapters.clear()
        return layer.get_base_layer().weight.data.clone()

    return Trained(folder, {name: lambda weight, name=name: merge(name, weight) for name in names})


def by_lycoris(folder: Path, kind: str, names: list[str]) -> Trained:
    LycorisNetwork.apply_preset({"target_module": [], "target_name": names, "enable_conv": True})
    model = Layers(names)
    network = create_lycoris(model, 1.0, linear_dim=2, linear_alpha=3, bypass_mode=False, **LYCORIS[kind])
    for layer in network.loras:
        randomise(p for name, p in layer.named_parameters() if not name.startswith("org_module"))
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
            return layer(torch.eye(IN, dtype=torch.float64)).detach().T

    return Trained(path, {name: lambda weight, name=name: merge(name, weight) for name in names})


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: Blocks)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_all_kinds_are_here() -> None:
    own = {tag for name, tag in SPELLED if name == "peft"} - REFUSED.keys() - {"BONE"}
    assert own | {"LORA", "DORA"} == PEFT.keys() | NOT_HERE


def try_chains(
    folder: Path,
    kinds: Sequence[str],
    dtypes: Sequence[torch.dtype],
    weights: Sequence[float],
    patch: pytest.MonkeyPatch,
) -> None:
    """One merge of all of them, in this order, of a base that has a tensor for each two: these are what changes it.

    dtypes: of the tensors, in turn
    """
    pairs = {f"l{i}x{j}": (i, j) for i, j in itertools.combinations(range(len(kinds)), 2)}
    stored = {f"{name}.weight": torch.randn(OUT, IN).to(dtype) for name, dtype in zip(pairs, itertools.cycle(dtypes))}
    base = write_checkpoint(folder / "base", stored)
    (base / "config.json").write_text('{"tie_word_embeddings": false}')
    trained = [
        (by_peft if kind in PEFT else by_lycoris)(folder / f"{i}", kind, [name for name in pairs if i in pairs[name]])
        for i, kind in enumerate(kinds)
    ]
    adaptertool.merge(base, [each.path for each in trained], folder / "out", weights=list(weights))
    found = load(folder / "out")
    with in_doubles(patch):
        for name, pair in pairs.items():
            exact = stored[f"{name}.weight"].double()
            for i in pair:
                exact = exact + weights[i] * (trained[i].merges[name](exact) - exact)
            # LyCORIS adds the smallest step of its dtype to the norms of DoRA
            excess = half_ulp_excess(found[f"{name}.weight"], exact).max()
            assert excess <= (2 if any("dora" in kinds[i] for i in pair) else 1 + 1e-5), [kinds[i] for i in pair]


@pytest.mark.slow
def test_every_kind_with_every_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [(1.0, 0.5, -0.3)[i % 3] for i in range(len(ALL))]
    try_chains(tmp_path, ALL, DTYPES, weights, monkeypatch)


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(st.data())
def test_some_kinds_in_any_order(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    kinds = random.Random(data.draw(st.integers(0, 2**16))).sample(ALL, 7)
    weights = data.draw(st.lists(st.sampled_from([1.0, 0.7, -1.5, 0.0]), min_size=7, max_size=7))
    with pytest.MonkeyPatch.context() as patch:
        try_chains(tmp_path_factory.mktemp("chains"), kinds, DTYPES, weights, patch)
