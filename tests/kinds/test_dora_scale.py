"""DoRA of LyCORIS over each of the changes that it has, against the formula to 120 digits."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Tensors, load, write_adapter, write_checkpoint
from one_kind import vector
from rationals import Matrix, dora_exactly, matrix, require
from safetensors.torch import save_file

import adaptertool
from adaptertool.errors import AdapterToolError, InputError, NonFiniteError

OUT, IN, R = 6, 8, 2
HADA = {f"hada_w{n}_{x}": (OUT, R) if x == "a" else (R, IN) for n in "12" for x in "ab"}
SHAPES = {
    "lora": {"lora_down.weight": (R, IN), "lora_up.weight": (OUT, R)},
    "loha": HADA,
    "lokr, stored": {"lokr_w1": (2, 4), "lokr_w2": (3, 2)},
    "lokr, tall": {"lokr_w1": (3, 1), "lokr_w2": (2, 8)},
    "lokr, one decomposed": {"lokr_w1": (2, 4), "lokr_w2_a": (3, R), "lokr_w2_b": (R, 2)},
}


def exactly(tensor: torch.Tensor) -> np.ndarray:
    return np.frompyfunc(Fraction, 1, 1)(tensor.double().numpy())


def change_of(factors: Tensors) -> Matrix:
    """Half of it: alpha is half the rank, where there is one."""
    f = {key: exactly(tensor) for key, tensor in factors.items()}
    if "lora_up.weight" in f:
        whole = f["lora_up.weight"].dot(f["lora_down.weight"])
    elif "hada_w1_a" in f:
        whole = f["hada_w1_a"].dot(f["hada_w1_b"]) * f["hada_w2_a"].dot(f["hada_w2_b"])
    else:
        second = f["lokr_w2"] if "lokr_w2" in f else f["lokr_w2_a"].dot(f["lokr_w2_b"])
        whole = np.kron(f["lokr_w1"], second)
        return (whole * (1 if "lokr_w2" in f else Fraction(1, 2))).tolist()
    return (whole * Fraction(1, 2)).tolist()


@pytest.mark.long("name")
@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_every_element_is_rounded_correctly(tmp_path: Path, name: str, dtype: torch.dtype, by_column: bool) -> None:
    factors = {key: torch.randn(shape).to(dtype) for key, shape in SHAPES[name].items()}
    m = torch.randn((1, IN) if by_column else (OUT, 1)).to(dtype)
    tensors = factors | {"dora_scale": m, "alpha": torch.tensor(R / 2)}
    adapter = tmp_path / "a.safetensors"
    save_file({f"lora_unet_l.{key}": tensor for key, tensor in tensors.items()}, adapter)
    w = torch.randn(OUT, IN).to(torch.float32 if dtype == torch.float64 else torch.bfloat16)
    base = write_checkpoint(tmp_path / "base", {"l.weight": w})
    own, change = matrix(w), change_of(factors)
    if by_column:
        own, change = ([list(row) for row in zip(*rows, strict=True)] for rows in (own, change))
    for weight in ("1", "-0.3"):
        out = tmp_path / weight
        adaptertool.merge(base, [adapter], out, weights=[weight])
        exact = dora_exactly(own, change, vector(m), Fraction(float(weight)))
        found = load(out)["l.weight"]
        require(found.T if by_column else found, exact)
        assert adaptertool.verify(out, base, [adapter], weights=[weight], strict=True).ok
    assert adaptertool.drift(base, [adapter]).modules[0].verdict == "expected"
    assert adaptertool.inspect(adapter, base).fits


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN)})
    wide = {key: torch.randn(shape) for key, shape in HADA.items()}
    for number, tensors in enumerate(
        (
            {"dora_scale": torch.randn(OUT, 1)},
            wide | {"dora_scale": torch.randn(OUT + 1, 1)},
            wide | {"dora_scale": torch.randn(())},
            {"hada_w1_a": wide["hada_w1_a"], "dora_scale": torch.randn(OUT, 1)},
        )
    ):
        path = tmp_path / f"{number}.safetensors"
        save_file({f"lora_unet_l.{key}": tensor for key, tensor in tensors.items()}, path)
        with pytest.raises(AdapterToolError) as refused:
            adaptertool.merge(base, [path], tmp_path / "out")
        assert isinstance(refused.value, InputError)
        print(refused.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_input_channels_of_a_convolution_have_one_norm_each(tmp_path: Path, dtype: torch.dtype) -> None:
    """After a LoRA too: rows of the transpose that have one norm are put together."""
    w, m = torch.randn(OUT, 4, 2).to(dtype), torch.randn(1, 4, 1)
    down, up = torch.randn(R, 4, 2), torch.randn(OUT, R, 1)
    first = {"l.lora_A.weight": torch.randn(1, 4, 2), "l.lora_B.weight": torch.randn(OUT, 1, 1)}
    own = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": m, "alpha": torch.tensor(R / 2)}
    adapter = tmp_path / "a.safetensors"
    save_file({f"lora_unet_l.{key}": tensor for key, tensor in own.items()}, adapter)
    base = write_checkpoint(tmp_path / "base", {"l.weight": w})
    lora = write_adapter(tmp_path / "lora", first, r=1, lora_alpha=1)
    for adapters, weight in (([adapter], "1"), ([adapter], "-0.3"), ([lora, adapter], "1")):
        out = tmp_path / f"{len(adapters)}, {weight}"
        adaptertool.merge(base, adapters, out, weights=["1"] * (len(adapters) - 1) + [weight])
        before = exactly(w)
        if len(adapters) > 1:
            a, b = (exactly(tensor) for tensor in first.values())
            before = before + np.einsum("or,rik->oik", b[..., 0], a)
        change = np.einsum("or,rik->oik", exactly(up)[..., 0], exactly(down)) * Fraction(1, 2)
        turned = (array.transpose(1, 0, 2).reshape(4, -1).tolist() for array in (before, change))
        exact = dora_exactly(*turned, vector(m), Fraction(float(weight)))
        found = load(out)["l.weight"].transpose(0, 1).reshape(4, -1)
        require(found, exact)
        assert adaptertool.verify(out, base, adapters, weights=["1"] * (len(adapters) - 1) + [weight], strict=True).ok
    assert adaptertool.drift(base, [adapter]).modules[0].verdict == "expected"


@pytest.mark.parametrize("key", ["lora_down.weight", "lora_up.weight", "dora_scale"])
def test_what_is_not_finite_is_told_by_the_name_that_its_file_has(tmp_path: Path, key: str) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN)})
    shapes = {"lora_down.weight": (2, IN), "lora_up.weight": (OUT, 2), "dora_scale": (OUT, 1)}
    tensors = {f"lora_unet_l.{name}": torch.ones(shape) for name, shape in shapes.items()}
    tensors[f"lora_unet_l.{key}"][-1, 0] = float("nan")
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(NonFiniteError, match=rf"a\.safetensors: lora_unet_l\.{key} holds nan"):
        adaptertool.merge(base, [tmp_path / "a.safetensors"], tmp_path / "out")
