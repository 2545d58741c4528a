"""`verify` over all kinds: each fault that has a meaning for a kind is named, on a square weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from conftest import write_checkpoint
from every_kind import ALL, train
from peft_doubles import in_doubles
from peft_doubles import quiet as quiet

import adaptertool

SIZE = (12, 12)
# code: (W, W') -> what a tool with that fault stores
FAULTS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "not-applied": lambda w, _: w,
    "negated": lambda w, right: w - (right - w),
    "wrong-scale": lambda w, right: w + 0.37 * (right - w),
    "transposed": lambda w, right: w + (right - w).T,
}
TWICE = "applied-twice"
# Their change is made of the weight: that of a weight is no transpose of another's
OF_WEIGHT = {
    *("DORA", "BOFT", "DEFT", "GLORA", "HIRA", "HRA", "IA3", "LN_TUNING", "OFT", "ROAD"),
    *("locon dora", "loha dora", "lokr dora", "diag-oft", "glora of LyCORIS", "ia3 of LyCORIS"),
}
ONCE_FOR_ALL = {"LN_TUNING"}  # what it is replaced by is the same the second time


@pytest.mark.parametrize("kind", ALL)
def test_each_fault_is_named(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train(tmp_path / "a", kind, ["l"], SIZE)
    stored = {"l.weight": torch.randn(SIZE), "rest.weight": torch.randn(SIZE)}
    base = write_checkpoint(tmp_path / "base", stored)
    (base / "config.json").write_text('{"tie_word_embeddings": false}')
    w = stored["l.weight"].double()
    with in_doubles(monkeypatch):
        right = trained.merges["l"](w)
        faults = {code: fault(w, right) for code, fault in FAULTS.items()}
        if kind not in ONCE_FOR_ALL:
            faults[TWICE] = trained.merges["l"](right)
    named = {}
    for code, weight in {"": right, **faults}.items():
        made = write_checkpoint(tmp_path / f"out{code}", stored | {"l.weight": weight.float().contiguous()})
        (made / "config.json").write_text('{"tie_word_embeddings": false}')
        report = adaptertool.verify(made, base, [trained.path])
        found = next(tensor for tensor in report.tensors if tensor.name == "l.weight")
        assert report.ok != bool(code), (code, found)
        named[code] = found.diagnosis or ""
    wanted = {code: "unknown" if code == "transposed" and kind in OF_WEIGHT else code for code in named}
    assert named == wanted
