"""`verify` on many architectures: what PEFT merges in the usual ways is right, and faults planted there are found."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import expert_models
import models
import pytest
import torch
from expert_models import FUSED, train
from models import build
from peft import PeftModel

import adaptertool

BF16 = torch.bfloat16
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{f"{name}": case for name, case in models.MODELS.items()},
    **{
        f"{name} experts": (fields, {"target_modules": [], "target_parameters": parameters})
        for name, (fields, parameters) in expert_models.MODELS.items()
        if parameters is FUSED
    },
}


@pytest.mark.long
@pytest.mark.parametrize("case", MODELS)
def test_merges_of_peft(tmp_path: Path, case: str) -> None:
    fields, options = MODELS[case]
    model = build(case.split()[0], fields).to(BF16)
    base = tmp_path / "base"
    model.save_pretrained(base, max_shard_size="60KB")
    adapter = train(model, tmp_path / "adapter", **({"target_modules": "all-linear"} | options))
    for number, dtype in enumerate([BF16, torch.float32]):
        loaded = type(model).from_pretrained(base, dtype=dtype)
        wrapped = PeftModel.from_pretrained(loaded, adapter)
        out = tmp_path / str(number)
        copy.deepcopy(wrapped).merge_and_unload().save_pretrained(out)
        report = adaptertool.verify(out, base, [adapter])
        wrong = [tensor for tensor in report.tensors if tensor.status not in ("exact", "rounding")]
        assert report.ok, (wrong[:4], report.problems)
        assert report.summary.exact + report.summary.rounding == len(report.tensors) > 0
        for layer in wrapped.modules():
            if isinstance(getattr(layer, "scaling", None), dict):
                layer.scaling = {name: 1.5 * scale for name, scale in layer.scaling.items()}
        wrapped.merge_and_unload().save_pretrained(tmp_path / f"wrong-{number}")
        report = adaptertool.verify(tmp_path / f"wrong-{number}", base, [adapter])
        assert not report.ok and report.summary.diagnosis == ("wrong-scale",)
        assert {round(t.fitted_scale or 0, 1) for t in report.tensors if t.status == "wrong"} == {1.5}
