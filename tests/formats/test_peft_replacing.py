"""Adapters of PEFT that hold nothing but tuned tensors: LN_TUNING and TRAINABLE_TOKENS."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import load, write_checkpoint
from one_kind import write

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

E = "model.embed_tokens"


def test_layer_norms(tmp_path: Path) -> None:
    stored = {"n.weight": torch.randn(4), "n.bias": torch.randn(4), "l.weight": torch.randn(4, 4)}
    base = write_checkpoint(tmp_path / "base", stored)
    tuned = {"n.ln_tuning_layers.weight": torch.randn(4), "n.ln_tuning_layers.bias": torch.randn(4)}
    adapter = write(tmp_path / "a", tuned, peft_type="LN_TUNING", target_modules=["n"])
    adaptertool.merge(base, [adapter], tmp_path / "out", weights=["0.5"])
    found = load(tmp_path / "out")
    for part in ("weight", "bias"):
        exact = (stored[f"n.{part}"].double() + tuned[f"n.ln_tuning_layers.{part}"].double()) / 2
        assert found[f"n.{part}"].equal(exact.float())
    assert found["l.weight"].equal(stored["l.weight"])
    adaptertool.merge(base, [adapter], tmp_path / "whole")
    assert load(tmp_path / "whole")["n.bias"].equal(tuned["n.ln_tuning_layers.bias"])
    assert adaptertool.verify(tmp_path / "whole", base, [adapter]).ok
    assert not adaptertool.verify(tmp_path / "out", base, [adapter]).ok
    assert adaptertool.inspect(adapter, base).fits
    adaptertool.drift(base, [adapter])
    adaptertool.wise(base, adapter, tmp_path / "half", "0.5", as_adapter=True)
    assert "LN_TUNING" in (tmp_path / "half" / "adapter_config.json").read_text()
    adaptertool.merge(base, [tmp_path / "half"], tmp_path / "again")
    assert all(tensor.equal(found[name]) for name, tensor in load(tmp_path / "again").items())


@pytest.mark.parametrize("tied", [False, True])
def test_token_rows(tmp_path: Path, tied: bool) -> None:
    stored = {f"{E}.weight": torch.randn(10, 6)} | ({} if tied else {"lm_head.weight": torch.randn(10, 6)})
    base = write_checkpoint(tmp_path / "base", stored)
    (base / "config.json").write_text(
        f'{{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": {str(tied).lower()},'
        ' "vocab_size": 10}'
    )
    rows = torch.randn(3, 6)
    adapter = write(
        tmp_path / "a", {f"{E}.trainable_tokens_delta": rows}, peft_type="TRAINABLE_TOKENS", token_indices=[7, 0, 9]
    )
    adaptertool.merge(base, [adapter], tmp_path / "out")
    expected = stored[f"{E}.weight"].clone()
    expected[[7, 0, 9]] = rows
    found = load(tmp_path / "out")
    assert found.pop(f"{E}.weight").equal(expected)
    assert all(tensor.equal(stored[name]) for name, tensor in found.items())
    assert adaptertool.verify(tmp_path / "out", base, [adapter]).ok and adaptertool.inspect(adapter, base).fits


@pytest.mark.parametrize("kind", ["LN_TUNING", "TRAINABLE_TOKENS"])
def test_sum_and_truncate_refuse_them(tmp_path: Path, kind: str) -> None:
    """Their keys are none that an adapter of LoRA has."""
    tensors = {
        "LN_TUNING": {"n.ln_tuning_layers.weight": torch.ones(3)},
        "TRAINABLE_TOKENS": {f"{E}.trainable_tokens_delta": torch.ones(2, 6)},
    }[kind]
    base = write_checkpoint(tmp_path / "base", {f"{E}.weight": torch.randn(10, 6), "n.weight": torch.ones(3)})
    fields = {"token_indices": [1, 2]} if kind == "TRAINABLE_TOKENS" else {}
    adapter = write(tmp_path / "a", tensors, peft_type=kind, **fields)
    with pytest.raises(UnsupportedError, match="no factors"):
        adaptertool.sum_adapters([adapter, adapter], tmp_path / "sum", base=base, rank=1)
    with pytest.raises(UnsupportedError, match="no factors"):
        adaptertool.truncate(adapter, tmp_path / "truncated", rank=1)
    adaptertool.wise(base, adapter, tmp_path / "half", "0.5", as_adapter=True)
    adaptertool.wise(base, adapter, tmp_path / "wise", "0.5")
    adaptertool.merge(base, [tmp_path / "half"], tmp_path / "out")
    one, other = load(tmp_path / "wise"), load(tmp_path / "out")
    assert all(tensor.allclose(other[name], atol=1e-6) for name, tensor in one.items())


def test_what_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {f"{E}.weight": torch.randn(10, 6), "n.weight": torch.ones(3)})
    rows = {f"{E}.trainable_tokens_delta": torch.randn(2, 6)}
    norm = {"n.ln_tuning_layers.weight": torch.ones(3)}
    for number, (tensors, fields, error) in enumerate(
        [
            (rows, {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1, 10]}, MismatchError),
            (rows, {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1, 1]}, InputError),
            (rows, {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1]}, InputError),
            (rows, {"peft_type": "TRAINABLE_TOKENS"}, InputError),
            (rows, {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1, 2], "r": 3}, UnsupportedError),
            (norm, {"peft_type": "LN_TUNING", "quite_new": True}, UnsupportedError),
            ({**norm, "n.weight": torch.ones(3)}, {"peft_type": "LN_TUNING"}, InputError),
            ({"n.ln_tuning_layers.weight": torch.ones(4)}, {"peft_type": "LN_TUNING"}, MismatchError),
        ]
    ):
        with pytest.raises(error):
            adaptertool.merge(base, [write(tmp_path / f"{number}", tensors, **fields)], tmp_path / "out")
