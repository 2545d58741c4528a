"""Resident memory is a constant plus threads × block, whatever the size of the tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import PREFIX, adaptertool, lora_factors, write_adapter, write_sparse
from long_tests import ALL


@pytest.mark.slow
def test_a_two_gigabyte_tensor_in_one_file(tmp_path: Path) -> None:
    """The prediction of --dry-run must hold as well. (A quarter of it, where not all tests run.)"""
    rows, columns = 65536 if ALL else 16384, 16384
    write_sparse(tmp_path / "base.safetensors", {"up.weight": ("BF16", [rows, columns], rows * columns * 2)}, {})
    adapter = write_adapter(tmp_path / "a", lora_factors("up", (rows, columns)))
    call = ["merge", tmp_path / "base.safetensors", adapter, "-o", tmp_path / "out.safetensors", "--json"]
    predicted = json.loads(adaptertool(*call, "--dry-run").stdout)["memory_predicted"]
    done = json.loads(adaptertool(*call).stdout)
    (tmp_path / "out.safetensors").unlink()
    assert done["bytes_written"] >= rows * columns * 2
    assert done["peak_memory"] < min(predicted, 300e6)


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
def test_fused_experts(tmp_path: Path, transposed: bool) -> None:
    """Of the factors of all experts only those at work are held: kept whole as float64 they are 600 MB here."""
    experts, rows, columns, rank = 64, 512, 1024, 256
    base = tmp_path / "base.safetensors"
    write_sparse(base, {"experts.w": ("BF16", [experts, rows, columns], experts * rows * columns * 2)}, {})
    a, b = (rows, columns) if transposed else (columns, rows)
    adapter = tmp_path / "a"
    adapter.mkdir()
    wide = experts * rank
    factors = {"lora_A.weight": ("F32", [wide, a], wide * a * 4), "lora_B.weight": ("F32", [b, wide], wide * b * 4)}
    write_sparse(
        adapter / "adapter_model.safetensors", {f"{PREFIX}experts.{name}": spec for name, spec in factors.items()}, {}
    )
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_parameters": ["experts.w"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    call = ["merge", base, adapter, "-o", tmp_path / "out.safetensors", "--json"]
    predicted = json.loads(adaptertool(*call, "--dry-run").stdout)["memory_predicted"]
    done = json.loads(adaptertool(*call).stdout)
    assert done["tensors_edited"] == 1
    assert done["peak_memory"] < min(predicted, 400e6)
