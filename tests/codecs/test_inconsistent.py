"""Codes whose config, or what stands beside them, says something else than the tensors: refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tensors, lora_factors, write_adapter, write_checkpoint
from quantised_bases import Q, X, bnb4, fp8_block, gptq, group, packed

import adaptertool
from adaptertool.errors import AdapterToolError, MismatchError, UnsupportedError

STATE = f"{X}.weight.quant_state.bitsandbytes__nf4"


def refused(folder: Path, tensors: Tensors, config: dict[str, Any], error: type[AdapterToolError], match: str) -> None:
    fields = {"model_type": "llama", "tie_word_embeddings": False, "quantization_config": config}
    base = write_checkpoint(folder / "base", {f"{Q}.weight": torch.zeros(8, 6)} | tensors, config=fields)
    adapter = write_adapter(folder / "adapter", lora_factors(Q, (8, 6)))
    with pytest.raises(error, match=match):
        adaptertool.merge(base, [adapter], folder / "out", dtype="bf16")
    assert not (folder / "out").exists()


@pytest.mark.parametrize("said", [{"bits": 4.0}, {"checkpoint_format": []}, {"checkpoint_format": {}}])
def test_fields_of_other_types(tmp_path: Path, said: dict[str, Any]) -> None:
    made = gptq()
    refused(tmp_path, dict(made.tensors), made.config | said, UnsupportedError, r"of GPTQ \(2, 4, 8\) bits are decoded")


@pytest.mark.parametrize("offset", ["1" + "0" * 400, "[" * 5000])
def test_numbers_and_nesting_beyond_all_sense(tmp_path: Path, offset: str) -> None:
    made = bnb4("nf4", nested=True)
    text = bytes(made.tensors[STATE].tolist()).decode().replace("0.1234567", offset)
    tensors = dict(made.tensors) | {STATE: torch.tensor(list(text.encode()), dtype=torch.uint8)}
    refused(tmp_path, tensors, made.config, MismatchError, "is not the JSON that bitsandbytes writes")


def test_a_shape_beyond_all_sense(tmp_path: Path) -> None:
    made = bnb4("nf4")
    state = json.loads(bytes(made.tensors[STATE].tolist())) | {"shape": [10**3000, 10**3000]}
    tensors = dict(made.tensors) | {STATE: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)}
    refused(tmp_path, tensors, made.config, UnsupportedError, "which is not known here")


def test_without_the_order_that_the_config_speaks_of(tmp_path: Path) -> None:
    """Nothing else tells which scale belongs to an input."""
    made = gptq(order=False)
    refused(tmp_path / "a", dict(made.tensors), made.config | {"desc_act": True}, MismatchError, "g_idx is not there")
    config = group(num_bits=4, type="int", symmetric=True, group_size=32, actorder="group")
    refused(tmp_path / "b", dict(packed(4).tensors), config, MismatchError, "weight_g_idx is not there")


def test_groups_of_another_size_than_the_config_has(tmp_path: Path) -> None:
    made = packed(4, columns=64)
    config = group(num_bits=4, type="int", symmetric=True, group_size=16)
    refused(tmp_path, dict(made.tensors), config, MismatchError, "names no group_size by which 64 columns")


@pytest.mark.parametrize("shape", [(1,), (20, 1), (20,)])
def test_one_scale_where_the_config_has_blocks(tmp_path: Path, shape: tuple[int, ...]) -> None:
    made = fp8_block()
    tensors = dict(made.tensors) | {f"{X}.weight_scale_inv": torch.ones(shape)}
    refused(tmp_path, tensors, made.config, MismatchError, r"has blocks of 16×32, which do not make so many")
