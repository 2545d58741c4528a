"""Adapters without what PEFT draws by chance: the refusal says how to save it, and what that saves is merged as PEFT
merges what there was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from layers import check, make_base, peft_merge
from peft import get_peft_model

import adaptertool
from adaptertool.errors import UnsupportedError

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "VeraConfig": ("save_projection", {"r": 3}),
    "PveraConfig": ("save_projection", {"r": 4}),
    "RandLoraConfig": ("save_projection", {"r": 3}),
    "TinyLoraConfig": ("save_projection", {"u": 5}),
    "UniLoraConfig": ("save_indices", {"r": 3, "theta_d_length": 50}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_refusal_says_how_to_save_it(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field, fields = CASES[name]
    zoo, base = make_base(tmp_path / "base")
    config = getattr(peft, name)(target_modules=["linear"], **{field: False}, **fields)
    tuned = get_peft_model(copy.deepcopy(zoo).float(), config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(tmp_path / "ADAPTER")
    with pytest.raises(UnsupportedError, match=f"{field} = false: what PEFT draws by chance") as refusal:
        adaptertool.merge(base, [tmp_path / "ADAPTER"], tmp_path / "out")
    recipe = "\n".join(line.strip() for line in str(refusal.value).splitlines() if line.startswith("  "))
    monkeypatch.chdir(tmp_path)
    exec(recipe, {"peft": peft, "base": copy.deepcopy(zoo).float()})  # it is ours
    adaptertool.merge(base, [tmp_path / "WHOLE"], tmp_path / "out")
    check(base, tmp_path / "out", peft_merge(zoo, tmp_path / "ADAPTER"), 1)
