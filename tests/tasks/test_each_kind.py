"""Every command tried on an adapter of every kind: it works, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, write_checkpoint
from every_kind import ALL, train
from oracle import half_ulp_excess
from peft_doubles import in_doubles
from peft_doubles import quiet as quiet

import adaptertool
from adaptertool.errors import AdapterToolError, InputError, UsageError

SIZE = (8, 12)
# Which commands can write an adapter of theirs; all others refuse them by name. A product of factors that tell what
# they change is a LoRA to all of these.
PRODUCT = {"convert", "sum", "truncate"}
WRITTEN: Mapping[str, set[str]] = {
    "LORA": PRODUCT | {"as adapter"},
    "DORA": {"as adapter", "convert", "truncate"},
    "locon dora": {"convert", "truncate"},
    **dict.fromkeys(("ADALORA", "DELORA", "TINYLORA", "UNILORA"), PRODUCT),
    "LOHA": {"as adapter", "convert"},
    **{kind: {"convert"} for kind in ("LOKR", "loha of LyCORIS", "lokr of LyCORIS")},
    "LN_TUNING": {"as adapter", "convert"},
}


def works(call: Callable[[], Any]) -> bool:
    """False where it is refused by name."""
    try:
        call()
    except AdapterToolError as error:
        assert isinstance(error, InputError | UsageError) and len(str(error)) > 40, error
        return False
    return True


@pytest.mark.parametrize("kind", ALL)
def test_every_command(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train(tmp_path / "a", kind, ["l"], SIZE)
    weight = torch.randn(SIZE)
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight, "rest.weight": torch.randn(4, 4)})
    (base / "config.json").write_text('{"tie_word_embeddings": false}')
    with in_doubles(monkeypatch):
        right = trained.merges["l"](weight.double())
    tolerance = 2 if "dora" in kind else 1 + 1e-5

    adaptertool.merge(base, [trained.path], tmp_path / "out", verify=True)
    assert half_ulp_excess(load(tmp_path / "out")["l.weight"], right).max() <= tolerance
    adaptertool.wise(base, trained.path, tmp_path / "wise", "0.25")
    halfway = weight.double() + (right - weight.double()) / 4
    assert half_ulp_excess(load(tmp_path / "wise")["l.weight"], halfway).max() <= tolerance
    assert adaptertool.verify(tmp_path / "out", base, [trained.path], strict=True).ok
    for report in (adaptertool.inspect(trained.path), adaptertool.inspect(trained.path, base)):
        assert report.adapter is not None and report.refusal is None
        assert all(module.parameters > 0 for module in report.adapter.modules)
    assert report.fits
    assert {module.verdict for module in adaptertool.drift(base, [trained.path]).modules} <= {"expected"}
    assert adaptertool.diff(base, tmp_path / "out").tensors
    adaptertool.extract(base, tmp_path / "out", tmp_path / "extracted", rank=2)
    calls: dict[str, Callable[[], Any]] = {
        "sum": lambda: adaptertool.sum_adapters([trained.path, trained.path], tmp_path / f"sum{end}", base=base),
        "truncate": lambda: adaptertool.truncate(trained.path, tmp_path / f"cut{end}", rank=1, base=base),
        "as adapter": lambda: adaptertool.wise(base, trained.path, tmp_path / "less", "0.5", as_adapter=True),
        "convert": lambda: adaptertool.convert(trained.path, tmp_path / f"other{other[1]}", to=other[0], base=base),
    }
    end = trained.path.suffix
    other = ("peft", "") if end else ("kohya", ".safetensors")
    found = {name for name, call in calls.items() if works(call)}
    assert (tmp_path / "less").exists() == ("as adapter" in found)
    assert found == WRITTEN.get(kind, set())
