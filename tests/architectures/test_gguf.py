"""What tensors are called in GGUF, and how their numbers differ: as gguf-py's table, and numpy, have it."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest

from adaptertool.architectures.change import Change
from adaptertool.architectures.gguf import into_gguf, onto
from adaptertool.errors import UnsupportedError

gguf = pytest.importorskip("gguf")

TABLE = json.loads(files("adaptertool.architectures").joinpath("gguf.json").read_text())["architectures"]
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}


@pytest.mark.parametrize("name", TABLE)
def test_names_are_those_of_gguf_py(name: str) -> None:
    row = TABLE[name]
    (arch,) = (number for number, text in gguf.MODEL_ARCH_NAMES.items() if text == row["arch"])
    names = gguf.get_tensor_name_map(arch, 3)
    across = into_gguf({"architectures": [name], **HEADS})
    assert across is not None and across[0] == row["arch"]
    for module in row["names"]:
        one = module.replace("*", "2")
        for parameter in ("weight", "bias"):
            theirs = names.get_name(f"{one}.{parameter}", (".weight", ".bias"))
            assert [found.name for found in across[1](f"{one}.{parameter}")] == [theirs]
            back = onto({"architectures": [name], **HEADS}, None)
            assert [found.name for found in back(theirs)] == [f"{one}.{parameter}"]
    assert not list(across[1]("model.layers.0.self_attn.rotary.weight"))


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_the_order_of_rows_is_that_of_the_converter(heads: int) -> None:
    rows = np.arange(heads * 10)
    there = rows.reshape(heads, 2, 5).swapaxes(1, 2).reshape(-1)
    assert Change(heads).order(len(rows)) == there.tolist()
    assert there[Change(heads, into_gguf=False).order(len(rows))].tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("config", "fields", "name", "heads"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 2}, None, "blk.0.attn_q.weight", 6),
        ({"num_attention_heads": 6, "num_key_value_heads": 2}, None, "blk.0.attn_k.weight", 2),
        ({"num_attention_heads": 6, "num_key_value_heads": None}, None, "blk.0.attn_k.weight", 6),
        ({"num_attention_heads": 6}, None, "blk.0.attn_k.weight", 6),
        ({"num_attention_heads": 6}, None, "blk.0.attn_v.weight", 0),
        ({}, {"llama.attention.head_count": 6}, "model.layers.0.self_attn.k_proj.weight", 6),
        ({}, {"llama.attention.head_count_kv": 2}, "model.layers.0.self_attn.k_proj.weight", 2),
        ({}, {"llama.attention.head_count_kv": 2}, "model.layers.0.self_attn.q_proj.weight", None),
        ({}, {"llama.attention.head_count": "6"}, "model.layers.0.self_attn.q_proj.weight", None),
        ({"num_attention_heads": 0}, None, "blk.0.attn_q.weight", None),
        ({}, None, "blk.0.attn_k.weight", None),
    ],
)
def test_where_the_number_of_heads_is_from(
    config: dict[str, object], fields: dict[str, object] | None, name: str, heads: int | None
) -> None:
    own = None if fields is None else {"general.architecture": "llama", **fields}
    across = onto({"architectures": ["LlamaForCausalLM"], **config}, own)
    if heads is None:
        with pytest.raises(UnsupportedError, match=r"does not say how many there are \(num_"):
            list(across(name))
    else:
        assert {found.change.heads for found in across(name)} == {heads}
