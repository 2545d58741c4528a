"""`--dtype` of GGUF models: blocks are the numbers that gguf-py makes of them, and what is merged is rounded once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import lora_factors, write_adapter
from gguf_files import STRING, field, packed, text, write_lora
from oracle import fractions, round_fraction

import adaptertool
from adaptertool.codecs.quantised.gguf import DECODED
from adaptertool.errors import UnsupportedError

gguf = pytest.importorskip("gguf")

HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # bytes of float16
FIELDS = [
    field("general.architecture", "llama"), field("general.file_type", 7), field("llama.attention.head_count", 1),
    field("llama.attention.head_count_kv", 1), field("odd.list", text("a"), STRING), field("llama.context_length", 9),
]  # fmt: skip
Q, V, UP = "blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.0.ffn_up.weight"
NORM, ROUTER = "blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight"
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def blocks(dtype: str, shape: tuple[int, int], seed: int = 0) -> tuple[bytes, Any]:
    """Blocks of any codes, with scales of a usual size; and what gguf-py makes of them."""
    rng, (elements, size, _) = np.random.default_rng(seed), DECODED[dtype]
    count = shape[0] * shape[1] // elements
    content = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES.get(dtype, (0,)):
        content[:, at : at + 2] = rng.normal(size=count).astype(np.float16).view(np.uint8).reshape(count, 2)
    rows = content.reshape(shape[0], -1)
    return content.tobytes(), gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[dtype])


@pytest.mark.parametrize("dtype", DECODED)
def test_blocks_are_what_gguf_py_makes_of_them(dtype: str) -> None:
    """It rounds to float32, and some of these have more bits."""
    elements, size, decode = DECODED[dtype]
    content, expected = blocks(dtype, (48, elements))
    found = decode(np.frombuffer(content, np.uint8).reshape(-1, size))
    assert found.dtype == np.float64
    largest = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(found - expected) <= 2.0**-22 * largest).all()
    assert (found.astype(np.float32) == expected).mean() > 0.9


def write_model(path: Path) -> tuple[Path, dict[str, Any]]:
    """A model of several types; and its numbers, by gguf-py."""
    rng, tensors, numbers = np.random.default_rng(1), {}, {}
    for seed, (name, dtype) in enumerate(((Q, "Q8_0"), (V, "Q6_K"))):
        content, numbers[name] = blocks(dtype, (8, 256), seed)
        tensors[name] = (int(gguf.GGMLQuantizationType[dtype]), (8, 256), content)
    for name, kind, dtype, shape in ((UP, 1, np.float16, (5, 256)), (NORM, 0, np.float32, (256,))):
        numbers[name] = rng.normal(size=shape).astype(dtype)
        tensors[name] = (kind, shape, numbers[name].tobytes())
    numbers[ROUTER] = rng.normal(size=(3, 256)).astype(np.float32)
    tensors[ROUTER] = (0, (3, 256), numbers[ROUTER].tobytes())
    path.write_bytes(packed(tensors, FIELDS))
    return path, numbers


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_is_rounded_once(tmp_path: Path, dtype: str) -> None:
    base, numbers = write_model(tmp_path / "b.gguf")
    a, b = (tensor.numpy() for tensor in lora_factors("x", (8, 256), 2).values())
    adapter = write_lora(tmp_path / "a.gguf", {f"{Q}.lora_a": a, f"{Q}.lora_b": b}, alpha=4)
    report = adaptertool.merge(base, [adapter], out := tmp_path / "out.gguf", dtype=dtype)
    assert any("decoded from Q6_K, Q8_0 and stored as" in note for note in report.notes)
    reader = gguf.GGUFReader(out)
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == list(numbers)
    types = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert types == {Q: dtype.upper(), V: dtype.upper(), UP: dtype.upper(), NORM: "F32", ROUTER: "F32"}
    assert all(found[name].data.tobytes() == numbers[name].tobytes() for name in (NORM, ROUTER))
    assert reader.fields["general.file_type"].contents() == {"f16": 1, "bf16": 32, "f32": 0}[dtype]
    assert reader.fields["odd.list"].parts and reader.fields["llama.context_length"].contents() == 9
    stored = torch.frombuffer(bytearray(found[Q].data.tobytes()), dtype=DTYPES[dtype])
    two, first, second = Fraction(2), fractions(torch.from_numpy(b)), fractions(torch.from_numpy(a))
    for place in range(0, 8 * 256, 97):
        row, column = divmod(place, 256)
        change = sum(first[row * 2 + k] * second[k * 256 + column] for k in range(2))
        exact = Fraction(float(numbers[Q][row, column])) + two * change
        assert Fraction(stored[place].item()) == round_fraction(exact, DTYPES[dtype])


def test_an_adapter_for_the_checkpoint(tmp_path: Path) -> None:
    """Rows of q are in another order here; what is not changed is decoded alone."""
    base, numbers = write_model(tmp_path / "b.gguf")
    low = lora_factors("model.layers.0.self_attn.q_proj", (8, 256))
    adaptertool.merge(base, [write_adapter(tmp_path / "a", low)], out := tmp_path / "out.gguf", dtype="f32")
    found = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(out).tensors}
    assert adaptertool.merge(base, [tmp_path / "a"], tmp_path / "v.gguf", dtype="bf16", verify=True).verified
    a, b = (tensor.double().numpy() for tensor in low.values())
    change = (2 * b @ a).reshape(2, 4, 256).swapaxes(0, 1).reshape(8, 256)
    assert np.allclose(found[Q], numbers[Q] + change, rtol=1e-6, atol=1e-6)
    assert (found[V] == numbers[V]).mean() > 0.9
    report = adaptertool.verify(out, base, [tmp_path / "a"], strict=True)
    assert report.ok, report


def test_refusals(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.IQ4_NL
    path = tmp_path / "iq.gguf"
    path.write_bytes(packed({Q: (int(kind), (8, 32), bytes(8 * 18))}, FIELDS))
    adapter = write_lora(
        tmp_path / "a.gguf", {f"{Q}.lora_a": np.ones((2, 32), np.float32), f"{Q}.lora_b": np.ones((8, 2), np.float32)}
    )
    with pytest.raises(UnsupportedError, match=r"attn_q\.weight is IQ4_NL, and decoded are Q8_0"):
        adaptertool.merge(path, [adapter], tmp_path / "out.gguf", dtype="f16")
    base, _ = write_model(tmp_path / "b.gguf")
    with pytest.raises(UnsupportedError, match="--dtype"):
        adaptertool.merge(
            base,
            [
                write_lora(
                    tmp_path / "q.gguf",
                    {f"{Q}.lora_a": np.ones((2, 256), np.float32), f"{Q}.lora_b": np.ones((8, 2), np.float32)},
                )
            ],
            tmp_path / "out.gguf",
        )
    assert not (tmp_path / "out.gguf").exists()
