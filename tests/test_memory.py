"""Resident memory is a constant plus threads × block, whatever the size of the tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import adaptertool, lora_factors, write_adapter
from test_plan import write_sparse


@pytest.mark.slow
def test_a_two_gigabyte_tensor_in_one_file(tmp_path: Path) -> None:
    """The limit of the issue is 700 MB with torch; the prediction of --dry-run must hold as well."""
    rows, columns = 65536, 16384
    write_sparse(tmp_path / "base.safetensors", {"up.weight": ("BF16", [rows, columns], rows * columns * 2)}, {})
    adapter = write_adapter(tmp_path / "a", lora_factors("up", (rows, columns)))
    call = ["merge", tmp_path / "base.safetensors", adapter, "-o", tmp_path / "out.safetensors", "--json"]
    predicted = json.loads(adaptertool(*call, "--dry-run").stdout)["memory_predicted"]
    done = json.loads(adaptertool(*call).stdout)
    (tmp_path / "out.safetensors").unlink()
    assert done["bytes_written"] > 2.1e9
    assert done["peak_memory"] < min(predicted, 700e6)
