"""What every kind of adapter that is merged must hold to, in all commands, against a formula in rationals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, Tensors, load, lora_factors, same_bits, write_adapter, write_checkpoint
from rationals import Matrix, delta, matrix, require
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.arithmetic import tiling
from adaptertool.errors import AdapterToolError, InputError, UnsupportedError

OUT, IN = 8, 6
TURNED = "transformer.h.0.attn.c_attn"
JOINED = "model.layers.0.self_attn.qkv_proj"
PART = "model.layers.0.self_attn.k_proj"
Numbers = Callable[..., torch.Tensor]  # of a shape and a dtype
# The matrix W of the tensor, as it is stored, -> W'
Formula = Callable[[Matrix], Matrix]
# Each dtype of a weight, and each of factors, once: neither knows of the other, since factors are read as float64
every_dtype = pytest.mark.parametrize(
    ("dtype", "factors"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16), (torch.float32, torch.float64)],
    ids=str,
)


def write(folder: Path, tensors: Tensors, **fields: Any) -> Path:
    """An adapter with these tensors, by their keys behind PEFT's prefix, or whole keys where modules share them."""
    folder.mkdir(parents=True)
    keys = {key if key.startswith("base_model.") else PREFIX + key: tensor for key, tensor in tensors.items()}
    save_file({key: tensor.clone().contiguous() for key, tensor in keys.items()}, folder / "adapter_model.safetensors")
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


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """As a matrix: a vector as one column."""
    return tensor.reshape(len(tensor), -1)


def difference(change: Matrix) -> Formula:
    return lambda w: [[x + d for x, d in zip(*rows, strict=True)] for rows in zip(w, change, strict=True)]


def gain(factors: Matrix) -> Formula:
    return lambda w: [[x * g for x, g in zip(*rows, strict=True)] for rows in zip(w, factors, strict=True)]


def mixed(w: Matrix, tuned: Matrix, weight: Fraction) -> Matrix:
    return [[x + weight * (t - x) for x, t in zip(*rows, strict=True)] for rows in zip(w, tuned, strict=True)]


def try_merges(folder: Path, base: Path, adapter: Path, change: Matrix) -> None:
    """Every element is the rounding of W + w·change, by merge and by wise, and after a LoRA.

    change: of the weight l.weight of the base
    """
    _require_numbers(folder, base, adapter, {"l.weight": difference(change)}, ("1", "-0.3"))


def try_chain(folder: Path, base: Path, adapter: Path, change: Matrix) -> None:
    """With a LoRA before it: for a kind whose change does not depend on the weight."""
    _in_a_chain(folder, base, adapter, "l.weight", difference(change))


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


def try_commands(folder: Path, base: Path, adapter: Path, kind: str = "") -> None:
    """verify knows the merge from its base; inspect and drift work; adapters that would have to be of the kind are
    refused, by its name where that is given."""
    adaptertool.merge(base, [adapter], folder / "right", verify=True)
    assert adaptertool.verify(folder / "right", base, [adapter], strict=True).ok
    assert not adaptertool.verify(base, base, [adapter]).ok
    for report in (adaptertool.inspect(adapter), adaptertool.inspect(adapter, base)):
        assert report.adapter is not None and report.adapter.modules
        assert not kind or [module.kind for module in report.adapter.modules] == [kind]
    assert report.fits
    assert {module.verdict for module in adaptertool.drift(base, [adapter]).modules} == {"expected"}
    why = f"between {kind} and the base" if kind else r"no adapter of its kind|--as-adapter writes the config of PEFT"
    with pytest.raises(UnsupportedError, match=why):
        adaptertool.wise(base, adapter, folder / "as_adapter", "0.5", as_adapter=True)
    assert not (folder / "as_adapter").exists()
    for call in _of_factors(folder, base, adapter):
        try:
            call()
        except AdapterToolError as error:
            assert isinstance(error, InputError), error


def try_leading_part(folder: Path, base: Path, adapter: Path, kind: str) -> None:
    """Without the base sum and truncate are refused by a name and a command; with it, at full rank, the LoRA is the
    change itself, but for its rounding."""
    out = folder / "leading"
    with pytest.raises(UnsupportedError, match=rf"of kind {kind}.*adaptertool sum --base BASE --rank R"):
        adaptertool.sum_adapters([adapter, adapter], out, rank=2)
    with pytest.raises(UnsupportedError, match=rf"of kind {kind}.*adaptertool sum.*--base and --rank"):
        adaptertool.truncate(adapter, out, rank=1)
    (layer,) = adaptertool.sum_adapters([adapter, adapter], out, weights=["0.25", "0.75"], base=base, rank=1000).layers
    assert layer.error < 1e-6
    one, other = ({}, {})
    for found, source in ((one, adapter), (other, out)):
        adaptertool.merge(base, [source], folder / f"of {source.name}")
        found.update(load(folder / f"of {source.name}"))
    before = load(base)["l.weight"]
    unit = torch.finfo(before.dtype).eps * 2
    assert torch.allclose(one["l.weight"].double(), other["l.weight"].double(), rtol=unit, atol=1e-5)
    assert not same_bits(one["l.weight"], before)


def _of_factors(folder: Path, base: Path, adapter: Path) -> list[Callable[[], object]]:
    end = adapter.suffix  # of formats that are one file
    return [
        lambda: adaptertool.sum_adapters([adapter, adapter], folder / f"of factors{end}", base=base, rank=2),
        lambda: adaptertool.truncate(adapter, folder / f"cut{end}", rank=1),
    ]


def require_commands(
    tmp_path: Path,
    stored: Tensors,
    adapter: Path,
    formulas: Mapping[str, Formula],
    monkeypatch: pytest.MonkeyPatch,
    *,
    config: str = '{"tie_word_embeddings": false}',
    lora: bool = True,
) -> None:
    """merge with weights, wise, in a chain, in small blocks; where factors are float32, which each kind is tried with,
    all other commands too.

    formulas: by tensor; all others must stay. lora: whether the first of them can have a LoRA too
    """
    base = write_checkpoint(tmp_path / "base", stored)
    (base / "config.json").write_text(config)
    _require_numbers(tmp_path, base, adapter, formulas, ("1", "-0.5", "0.3"))
    assert adaptertool.verify(tmp_path / "merged1", base, [adapter], weights=["-0.5"]).ok
    assert not adaptertool.verify(tmp_path / "merged1", base, [adapter]).ok
    with monkeypatch.context() as patch:
        patch.setattr(tiling, "BLOCK_ELEMENTS", 7)
        adaptertool.merge(base, [adapter], tmp_path / "blocks")
    one, other = load(tmp_path / "merged0"), load(tmp_path / "blocks")
    assert all(same_bits(tensor, other[name]) for name, tensor in one.items())
    if lora:
        name = next(iter(formulas))
        _in_a_chain(tmp_path, base, adapter, name, formulas[name])
    path = adapter / "adapter_model.safetensors" if adapter.is_dir() else adapter
    if any(tensor.dtype == torch.float32 for tensor in load_file(path).values()):
        try_commands(tmp_path, base, adapter)


def _require_numbers(
    folder: Path, base: Path, adapter: Path, formulas: Mapping[str, Formula], weights: tuple[str, ...]
) -> None:
    stored = load(base)
    exact = {name: formula(matrix(flat(stored[name]))) for name, formula in formulas.items()}
    for number, weight in enumerate(weights):
        adaptertool.merge(base, [adapter], folder / f"merged{number}", weights=[weight])
        _require(folder / f"merged{number}", stored, exact, Fraction(float(weight)))
    adaptertool.wise(base, adapter, folder / "wise", "0.25")
    _require(folder / "wise", stored, exact, Fraction(1, 4))


def _in_a_chain(folder: Path, base: Path, adapter: Path, name: str, formula: Formula) -> None:
    """After half of a LoRA, and with weight 2."""
    weight = load(base)[name]
    factors = lora_factors(name.removesuffix(".weight"), weight.shape, 2)
    lora = write_adapter(folder / "lora", factors, r=2, lora_alpha=2)
    adaptertool.merge(base, [lora, adapter], folder / "chain", weights=["0.5", "2"])
    first = together(matrix(weight), delta(*factors.values()), Fraction(1, 2))
    require(load(folder / "chain")[name], mixed(first, formula(first), Fraction(2)), weight)


def _require(out: Path, stored: Tensors, exact: Mapping[str, Matrix], weight: Fraction) -> None:
    for name, found in load(out).items():
        if name in exact:
            wanted = mixed(matrix(flat(stored[name])), exact[name], weight)
            require(flat(found), wanted, flat(stored[name]))
        else:
            assert same_bits(found, stored[name])
