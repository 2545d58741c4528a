"""What every command must make of an adapter of one kind, against a formula in rationals."""

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
from safetensors.torch import save_file

import adaptertool
from adaptertool.arithmetic import tiling
from adaptertool.errors import AdapterToolError, InputError, UnsupportedError

# The matrix W of the tensor, as it is stored, -> W'
Formula = Callable[[Matrix], Matrix]


def write(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """An adapter with no fields but these."""
    folder.mkdir(parents=True)
    save_file(
        {PREFIX + key: tensor.clone().contiguous() for key, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """As a matrix: a vector as one column."""
    return tensor.reshape(len(tensor), -1)


def difference(change: Matrix) -> Formula:
    return lambda w: [[x + d for x, d in zip(*rows, strict=True)] for rows in zip(w, change, strict=True)]


def gain(factors: Matrix) -> Formula:
    return lambda w: [[x * g for x, g in zip(*rows, strict=True)] for rows in zip(w, factors, strict=True)]


def mixed(w: Matrix, tuned: Matrix, weight: Fraction) -> Matrix:
    return [[x + weight * (t - x) for x, t in zip(*rows, strict=True)] for rows in zip(w, tuned, strict=True)]


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
    """merge with weights, wise, in a chain, in small blocks; verify, inspect, drift; what makes adapters of it refuses.

    formulas: by tensor; all others must stay. lora: whether the first of them can have a LoRA too
    """
    base = write_checkpoint(tmp_path / "base", stored)
    (base / "config.json").write_text(config)
    exact = {name: formula(matrix(flat(stored[name]))) for name, formula in formulas.items()}
    for number, weight in enumerate(("1", "-0.5", "0.3")):
        out = tmp_path / f"out{number}"
        adaptertool.merge(base, [adapter], out, weights=[weight])
        _require(out, stored, exact, Fraction(float(weight)))
        assert adaptertool.verify(out, base, [adapter], weights=[weight]).ok
    adaptertool.wise(base, adapter, tmp_path / "wise", "0.25")
    _require(tmp_path / "wise", stored, exact, Fraction(1, 4))
    with monkeypatch.context() as patch:
        patch.setattr(tiling, "BLOCK_ELEMENTS", 7)
        adaptertool.merge(base, [adapter], tmp_path / "blocks")
    one, other = load(tmp_path / "out0"), load(tmp_path / "blocks")
    assert all(same_bits(tensor, other[name]) for name, tensor in one.items())
    assert not adaptertool.verify(tmp_path / "out1", base, [adapter]).ok
    name = next(iter(formulas))
    if lora:
        _in_a_chain(tmp_path, base, stored[name], name, adapter, formulas[name])
    for report in (adaptertool.inspect(adapter), adaptertool.inspect(adapter, base)):
        assert report.adapter is not None and report.adapter.modules
    assert report.fits
    drift = adaptertool.drift(base, [adapter])
    assert {module.verdict for module in drift.modules} <= {"expected"}
    with pytest.raises(UnsupportedError, match=r"no adapter of its kind|are read and not written"):
        adaptertool.wise(base, adapter, tmp_path / "anew", "0.25", as_adapter=True)
    for call in (
        lambda: adaptertool.sum_adapters([adapter, adapter], tmp_path / "sum", base=base, rank=2),
        lambda: adaptertool.truncate(adapter, tmp_path / "truncated", rank=1),
    ):
        try:
            call()
        except AdapterToolError as error:
            assert isinstance(error, InputError), error


def _in_a_chain(tmp_path: Path, base: Path, weight: torch.Tensor, name: str, adapter: Path, formula: Formula) -> None:
    factors = lora_factors(name.removesuffix(".weight"), weight.shape, 2)
    lora = write_adapter(tmp_path / "lora", factors, r=2, lora_alpha=2)
    adaptertool.merge(base, [lora, adapter], tmp_path / "chain")
    a, b = factors.values()
    first = difference(delta(a, b))(matrix(weight))
    require(load(tmp_path / "chain")[name], formula(first), weight)


def _require(out: Path, stored: Tensors, exact: Mapping[str, Matrix], weight: Fraction) -> None:
    for name, found in load(out).items():
        if name in exact:
            wanted = mixed(matrix(flat(stored[name])), exact[name], weight)
            require(flat(found), wanted, flat(stored[name]))
        else:
            assert same_bits(found, stored[name])
