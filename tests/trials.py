"""What every kind of adapter that is merged must hold to, in all commands, against its change in rationals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load, same_bits, write_adapter, write_checkpoint
from rationals import Matrix, delta, matrix, require
from safetensors.torch import save_file

import adaptertool
from adaptertool.errors import UnsupportedError

OUT, IN = 8, 6
TURNED = "transformer.h.0.attn.c_attn"
JOINED = "model.layers.0.self_attn.qkv_proj"
PART = "model.layers.0.self_attn.k_proj"
Numbers = Callable[..., torch.Tensor]  # of a shape and a dtype
FACTORS = [torch.float32, torch.bfloat16, torch.float64]


def write_kind(folder: Path, tensors: Mapping[str, torch.Tensor], **fields: Any) -> Path:
    """An adapter with these tensors, by their keys behind PEFT's prefix, or whole keys where modules share them."""
    folder.mkdir()
    keys = {key if key.startswith("base_model.") else PREFIX + key: tensor for key, tensor in tensors.items()}
    save_file({key: tensor.contiguous() for key, tensor in keys.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"target_modules": ["l"], **fields}))
    return folder


def base_of(folder: Path, dtype: torch.dtype = torch.bfloat16, out: int = OUT, wide: int = IN) -> Path:
    return write_checkpoint(folder, {"l.weight": torch.randn(out, wide).to(dtype), "rest": torch.randn(4).to(dtype)})


def varied(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random numbers whose sizes differ by up to 2^18, zeros of both signs among them."""
    made = torch.randn(shape, dtype=torch.float64) * 2.0 ** torch.randint(-18, 1, shape)
    made[torch.rand(shape) < 0.1] = -0.0
    return made.to(dtype)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def vector(tensor: torch.Tensor) -> list[Fraction]:
    return [Fraction(x) for x in tensor.double().reshape(-1).tolist()]


def own(adapter: Path, layer: str = "l") -> dict[str, torch.Tensor]:
    """The tensors of an adapter of one layer, and those that are shared, by what follows the prefixes."""
    tensors = load(adapter).items()
    return {key.removeprefix(f"{PREFIX}{layer}.").removeprefix("base_model."): tensor for key, tensor in tensors}


def times(first: Matrix, second: Matrix) -> Matrix:
    """The product of two matrices."""
    columns = list(zip(*second, strict=True))
    return [[sum((x * y for x, y in zip(r, c, strict=True)), Fraction()) for c in columns] for r in first]


def scaled(numbers: list[Fraction], rows: Matrix) -> Matrix:
    """Each row times a number."""
    return [[number * x for x in row] for number, row in zip(numbers, rows, strict=True)]


def together(weight: Matrix, change: Matrix, times: Fraction = Fraction(1)) -> Matrix:
    """W + times·change"""
    return [[w + times * d for w, d in zip(*rows, strict=True)] for rows in zip(weight, change, strict=True)]


def try_merges(folder: Path, base: Path, adapter: Path, change: Matrix) -> None:
    """Every element is the rounding of W + w·change, by merge and by wise, and after a LoRA.

    change: of the weight l.weight of the base
    """
    stored = load(base)["l.weight"]
    exact = matrix(stored)
    for number, weight in enumerate(["1", "-0.3"]):
        adaptertool.merge(base, [adapter], folder / f"merged{number}", weights=[weight])
        found = load(folder / f"merged{number}")["l.weight"]
        require(found, together(exact, change, Fraction(float(weight))), stored)
    adaptertool.wise(base, adapter, folder / "wise", "0.25")
    require(load(folder / "wise")["l.weight"], together(exact, change, Fraction(1, 4)), stored)


def try_chain(folder: Path, base: Path, adapter: Path, change: Matrix) -> None:
    """With a LoRA before it: for a kind whose change does not depend on the weight."""
    stored = load(base)["l.weight"]
    a, b = torch.randn(2, stored.shape[1]), torch.randn(stored.shape[0], 2)
    lora = write_adapter(folder / "lora", {"l.lora_A.weight": a, "l.lora_B.weight": b}, r=2, lora_alpha=2)
    adaptertool.merge(base, [lora, adapter], folder / "both", weights=["0.5", "2"])
    exact = together(matrix(stored), delta(a, b), Fraction(1, 2))
    require(load(folder / "both")["l.weight"], together(exact, change, Fraction(2)), stored)


def try_part(folder: Path, adapter: Path, change: Matrix) -> None:
    """On k of q, k and v that are stored together: the rows that it is, and no others. The adapter is that of PART."""
    fused, part = torch.randn(3 * OUT, IN), slice(OUT, 2 * OUT)
    base = write_checkpoint(folder / "fused", {f"{PART.removesuffix('k_proj')}qkv_proj.weight": fused})
    config = {"model_type": "phi3", "num_attention_heads": 2, "hidden_size": 8, "num_key_value_heads": 2}
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    adaptertool.merge(base, [adapter], folder / "out")
    (found,) = load(folder / "out").values()
    assert same_bits(found[:OUT], fused[:OUT]) and same_bits(found[2 * OUT :], fused[2 * OUT :])
    require(found[part], together(matrix(fused[part]), change), fused[part])


def joined(folder: Path) -> tuple[Path, torch.Tensor]:
    """A base that stores q, k and v apart, and what they are together: (OUT, IN). The adapter is that of JOINED."""
    fused, names = torch.randn(OUT, IN), [JOINED.replace("qkv", name) for name in "qkv"]
    parts = dict(zip([f"{name}.weight" for name in names], fused.split((4, 2, 2)), strict=True))
    return write_checkpoint(folder / "split", {name: part.clone() for name, part in parts.items()}), fused


def try_joined(folder: Path, adapter: Path, change: Matrix) -> None:
    base, fused = joined(folder)
    adaptertool.merge(base, [adapter], folder / "apart")
    found = load(folder / "apart")
    made = torch.cat([found[f"{JOINED.replace('qkv', name)}.weight"] for name in "qkv"])
    require(made, together(matrix(fused), change), fused)


def try_joined_is_refused(folder: Path, adapter: Path, kind: str) -> None:
    with pytest.raises(UnsupportedError, match=f"is stored in several tensors; {kind} on it"):
        adaptertool.merge(joined(folder)[0], [adapter], folder / "apart")


def try_turned(folder: Path, adapter: Path, change: Matrix) -> None:
    """On a weight of GPT-2 that is stored (in, out) = (IN, OUT). The adapter is that of TURNED."""
    stored = torch.randn(IN, OUT)
    base = write_checkpoint(folder / "gpt2", {f"{TURNED}.weight": stored}, config={"model_type": "gpt2"})
    adaptertool.merge(base, [adapter], folder / "turned")
    (found,) = load(folder / "turned").values()
    require(found.T, together(matrix(stored.T), change), stored.T)


def try_commands(folder: Path, base: Path, adapter: Path, kind: str) -> None:
    """verify knows the merge from its base; inspect and drift work; adapters that would have to be of the kind are
    refused by its name."""
    adaptertool.merge(base, [adapter], folder / "right", verify=True)
    assert adaptertool.verify(folder / "right", base, [adapter], strict=True).ok
    assert not adaptertool.verify(base, base, [adapter]).ok
    for report in (adaptertool.inspect(adapter), adaptertool.inspect(adapter, base)):
        assert report.adapter is not None and [module.kind for module in report.adapter.modules] == [kind]
    assert report.fits
    assert [module.kinds for module in adaptertool.drift(base, [adapter]).modules]
    with pytest.raises(UnsupportedError, match=f"between {kind} and the base"):
        adaptertool.wise(base, adapter, folder / "as_adapter", "0.5", as_adapter=True)
    assert not (folder / "as_adapter").exists()


def try_sum_is_refused(folder: Path, base: Path, adapter: Path, kind: str) -> None:
    for call in (
        lambda: adaptertool.sum_adapters([adapter], folder / "sum", base=base, rank=2),
        lambda: adaptertool.truncate(adapter, folder / "sum", rank=1),
    ):
        with pytest.raises(UnsupportedError, match=f"of kind {kind}"):
            call()
    assert not (folder / "sum").exists()
