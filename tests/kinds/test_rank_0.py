"""Modules of rank 0, as AdaLoRA may prune one to: nothing is changed, or it is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import load, same_bits
from one_kind import IN, OUT, base_of, write

import adaptertool
from adaptertool.errors import UnsupportedError

N = torch.randn
CASES = {
    "ADALORA": ({"l.lora_A": N(0, IN), "l.lora_B": N(OUT, 0), "l.lora_E": N(0, 1)}, {"init_r": 3, "lora_alpha": 2}),
    "HIRA": ({"l.hira_A": N(0, IN), "l.hira_B": N(OUT, 0)}, {}),
    "GLORA": ({"l.glora_A.Xd": N(OUT, 0), "l.glora_A.Xu": N(0, IN)}, {}),
}
REFUSED = {
    "TINYLORA": {
        "base_model.tinylora_v.0": N(2),
        "l.tinylora_A": N(0, IN),
        "l.tinylora_B": N(OUT, 0),
        "l.tinylora_P": N(2, 0, 0),
    },
    "VBLORA": {
        "base_model.vblora_vector_bank": N(3, 2),
        "l.vblora_logits_A": N(0, IN // 2, 3),
        "l.vblora_logits_B": N(OUT // 2, 0, 3),
    },
}


@pytest.mark.parametrize("kind", CASES)
def test_nothing_is_changed(tmp_path: Path, kind: str) -> None:
    tensors, fields = CASES[kind]
    base, adapter = base_of(tmp_path / "base"), write(tmp_path / "a", tensors, peft_type=kind, **fields)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    assert same_bits(load(tmp_path / "out")["l.weight"], load(base)["l.weight"])
    assert adaptertool.verify(tmp_path / "out", base, [adapter]).ok
    adaptertool.drift(base, [adapter])


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name(tmp_path: Path, kind: str) -> None:
    fields = {"topk": 2} if kind == "VBLORA" else {}
    adapter = write(tmp_path / "a", REFUSED[kind], peft_type=kind, r=3, **fields)
    with pytest.raises(UnsupportedError, match=f"{kind.lower()} on a weight of that shape"):
        adaptertool.merge(base_of(tmp_path / "base"), [adapter], tmp_path / "out")
