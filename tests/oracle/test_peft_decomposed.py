"""Kinds that are made of a decomposition of the base weight, in each dtype, against what PEFT computes with; and what
the files of those that are refused do not hold."""

from __future__ import annotations

import copy
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, same_bits, write_checkpoint
from oracle import half_ulp_excess
from peft import KasaConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.frod.model import _category_from_key
from peft_doubles import in_doubles
from peft_doubles import quiet as quiet
from safetensors.torch import load_file
from torch import nn

import adaptertool
from adaptertool.errors import UnsupportedError
from adaptertool.kinds.frod import category

CONFIGS = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAMES = ("layers.0.tall", "layers.0.wide", "layers.1.tall")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shapes = {"tall": (16, 24), "wide": (24, 16)}
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(*shape, bias=False) for name, shape in shapes.items()}) for _ in range(2)
        )


def base_of(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Path]:
    model = Model().to(dtype)
    return model, write_checkpoint(folder, dict(model.state_dict()))


def train(folder: Path, model: nn.Module, kind: str, step: float = 0.1, **fields: Any) -> tuple[Path, Any]:
    """An adapter, and PEFT's model with it."""
    tuned = get_peft_model(copy.deepcopy(model), CONFIGS[kind](target_modules=r".*(0\.\w+|1\.tall)", **fields))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * step)
    tuned.save_pretrained(folder)
    return folder, tuned


def by_osf(tuned: Any, name: str) -> torch.Tensor:
    layer, own = tuned.base_model.model.get_submodule(name), "default"
    trained = {key: tensor.double() for key, tensor in layer.osf_svd_params[own].items()}
    before = [getattr(layer, f"_osf_{part}_low_init")[own].double() for part in "USV"]
    now = trained["U_low"] * trained["S_low"] @ trained["V_low"]
    made: torch.Tensor = layer.base_layer.weight.double() + now - before[0] * before[1] @ before[2]
    return made


def by_frod(tuned: Any, name: str) -> torch.Tensor:
    layer, own = tuned.base_model.model.get_submodule(name), "default"
    u, v, sparse, lengths = layer._get_frod_tensors(own, device=torch.device("cpu"), dtype=torch.float64)
    made: torch.Tensor = u @ (sparse.to_dense() + torch.diag(lengths)) @ v.T
    return made


def by_kasa(tuned: Any, name: str) -> torch.Tensor:
    layer, own = tuned.base_model.model.get_submodule(name), "default"
    a, b, d = (factor[own] for factor in (layer.lora_A, layer.lora_B, layer.lora_diag))
    added = (b.weight.double() * d.double()) @ a.weight.double() * layer.scaling[own]
    made: torch.Tensor = layer.base_layer.weight.double() + added  # from which PEFT has taken what is taken
    return made


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "fields", "formula"),
    [
        ("OSF", {}, by_osf),
        ("OSF", {"effective_rank": 3, "rank_pattern": {"wide": 0.75}}, by_osf),
        ("LORA", {"r": 3, "lora_alpha": 5, "kasa_config": KasaConfig()}, by_kasa),
        ("LORA", {"r": 2, "use_rslora": True, "rank_pattern": {"wide": 7}, "kasa_config": KasaConfig()}, by_kasa),
        ("FROD", {"sparse_rate": 0.05, "progressbar": False}, by_frod),
    ],
)
def test_each_dtype(
    tmp_path: Path, kind: str, fields: dict[str, Any], formula: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was trained: in 16 bits what is decomposed has been rounded to them. In float32 PEFT's own differ between
    machines by that much."""
    model, base = base_of(tmp_path / "base", dtype)
    with in_doubles(monkeypatch):
        adapter, tuned = train(tmp_path / "a", model, kind, **fields)
    adaptertool.merge(base, [adapter], tmp_path / "out", verify=True, threads=2)
    found = load(tmp_path / "out")
    with torch.no_grad():
        for name in NAMES:
            made, exact = found[f"{name}.weight"], formula(tuned, name)
            if dtype == torch.float32:
                torch.testing.assert_close(made.double(), exact, atol=1e-6, rtol=0)
            else:
                assert half_ulp_excess(made, exact).max() <= 1 + 1e-6
    assert same_bits(found["layers.1.wide.weight"], load(base)["layers.1.wide.weight"])


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_an_osf_that_was_not_trained_is_the_base(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, base = base_of(tmp_path / "base", dtype)
    with in_doubles(monkeypatch):
        adapter, _ = train(tmp_path / "a", model, "OSF", step=0.0)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    assert all(same_bits(tensor, load(base)[name]) for name, tensor in load(tmp_path / "out").items())


@pytest.mark.parametrize("meta", [False, True])
def test_kasa_as_peft_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meta: bool) -> None:
    """What its file holds, and the base, is all that PEFT needs: it takes away again what training took."""
    model, base = base_of(tmp_path / "base", torch.bfloat16)
    adapter, _ = train(tmp_path / "a", model, "LORA", r=3, kasa_config=KasaConfig())
    adaptertool.merge(base, [adapter], tmp_path / "out")
    with in_doubles(monkeypatch):
        loaded: Any = PeftModel.from_pretrained(copy.deepcopy(model), adapter, low_cpu_mem_usage=meta)
        loaded = loaded.merge_and_unload().state_dict()
    found, before = load(tmp_path / "out"), load(base)
    for name in NAMES:
        of_peft, own = loaded[f"{name}.weight"], found[f"{name}.weight"]
        # PEFT rounds what it adds before it adds it
        torch.testing.assert_close(own.double(), of_peft.double(), atol=2.0**-9, rtol=2.0**-7)
        assert (own.double() - before[f"{name}.weight"].double()).norm() > 0.02


def merged(model: nn.Module, adapter: Path) -> dict[str, torch.Tensor]:
    tuned: Any = PeftModel.from_pretrained(copy.deepcopy(model), adapter)
    return {name: tensor.detach() for name, tensor in tuned.merge_and_unload().state_dict().items()}


def test_psoft_depends_on_signs_that_no_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file is two weights: singular vectors of other signs, both as right, make another merge of PEFT's."""
    model, base = base_of(tmp_path / "base")
    adapter, _ = train(tmp_path / "a", model, "PSOFT", r=3)
    assert {key.rpartition("psoft_R.")[2] for key in load_file(adapter / "adapter_model.safetensors")} == {
        "weight",
        "vector_a",
        "vector_b",
    }
    decompose = torch.linalg.svd

    def of_other_signs(*some: Any, **more: Any) -> tuple[torch.Tensor, ...]:
        u, s, v = decompose(*some, **more)
        signs = torch.where(torch.arange(len(s)) % 2 == 0, 1.0, -1.0)
        torch.testing.assert_close((u * signs * s) @ (signs[:, None] * v), some[0], atol=1e-5, rtol=0)
        return u * signs, s, signs[:, None] * v

    one = merged(model, adapter)
    monkeypatch.setattr(torch.linalg, "svd", of_other_signs)
    two = merged(model, adapter)
    name = "layers.0.tall.weight"
    assert (one[name] - two[name]).norm() > 0.1 * (one[name] - model.state_dict()[name]).norm()
    with pytest.raises(UnsupportedError, match=r"PSOFT turns singular vectors .* signs its file does not tell"):
        adaptertool.merge(base, [adapter], tmp_path / "out")


def test_adamss_depends_on_clusters_that_no_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file is two weights: clusters of the same sizes, but of other rows, make another merge of PEFT's."""
    order = list(range(24))

    class KMeans:
        """In the place of scikit-learn's, which the tests do not need for this."""

        def __init__(self, n_clusters: int, **_: Any) -> None:
            self.count = n_clusters

        def fit_predict(self, rows: Any) -> Any:
            return (np.array(order)[: len(rows)] % self.count).astype(np.int32)

    cluster = types.SimpleNamespace(KMeans=KMeans)
    monkeypatch.setitem(sys.modules, "sklearn", types.SimpleNamespace(cluster=cluster))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "sklearn.cluster", cluster)  # type: ignore[arg-type]
    monkeypatch.setattr("peft.tuners.adamss.config.is_sklearn_available", lambda: True, raising=False)
    model, base = base_of(tmp_path / "base")
    adapter, _ = train(tmp_path / "a", model, "ADAMSS", r=6, num_subspaces=2)
    keys = {key.rpartition("adamss_")[2] for key in load_file(adapter / "adapter_model.safetensors")}
    assert keys == {"A.0", "A.1", "B.0", "B.1", "newB"}
    one = merged(model, adapter)
    order.reverse()
    two = merged(model, adapter)
    name = "layers.0.tall.weight"
    assert (one[name] - two[name]).norm() > 0.1 * (one[name] - model.state_dict()[name]).norm()
    with pytest.raises(UnsupportedError, match="ADAMSS does not save which rows"):
        adaptertool.merge(base, [adapter], tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        *("q_proj", "model.layers.3.self_attn.q_proj", "h.11.c_fc", "blocks.0", "output.dense"),
        *("bert.encoder.layer.0.output.dense", "bert.encoder.layer.0.attention.output.dense", "a.b.c"),
    ],
)
def test_sorts_of_layers_are_those_of_frod(name: str) -> None:
    assert category(name) == _category_from_key(name)
