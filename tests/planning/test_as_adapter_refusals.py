"""What wise --as-adapter refuses: adapters for which no adapter is the interpolation."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, PREFIX, load, lora_factors, snapshot, write_adapter, write_checkpoint
from conftest import adaptertool as command
from interpolated import train
from layers import make_base
from safetensors.torch import save_file

import adaptertool
from adaptertool.arithmetic import tiling
from adaptertool.errors import AdapterToolError, NonFiniteError, UnsupportedError, UsageError
from adaptertool.files.parsed import Parsed
from adaptertool.formats.checkpoints import open_checkpoint
from adaptertool.formats.peft.read import read_adapter
from adaptertool.planning.as_adapter import into_adapter


def refused(tmp_path: Path, base: Path, tuned: Path, kind: type[AdapterToolError], message: str, alpha: str) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(kind, match=message):
        adaptertool.wise(base, tuned, tmp_path / "out", alpha, as_adapter=True)
    assert snapshot(tmp_path) == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize("layer", ["linear", "turned"])
def test_a_magnitude_that_is_not_positive_is_refused(
    tmp_path: Path, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 24)  # two rows of the linear layer
    zoo, base = make_base(tmp_path / "base")
    adapter = train(tmp_path / "a", zoo, target_modules=[layer], use_dora=True)
    tensors = load(adapter)
    tensors[f"{PREFIX}{layer}.lora_magnitude_vector"][4] /= 4
    save_file(tensors, adapter / "adapter_model.safetensors")
    message = rf"{layer} with output row 4 of {layer}\.weight.*alpha 1.5 .* = -0\.\d+ .*write a checkpoint"
    refused(tmp_path, base, adapter, UnsupportedError, message, "1.5")
    adaptertool.wise(base, adapter, tmp_path / "within", "0.9", as_adapter=True)


def test_a_row_of_norm_zero_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.diag(torch.tensor([1.0, 0.0, 2.0]))})
    factors = {"l.lora_A.weight": torch.ones(1, 3), "l.lora_B.weight": torch.zeros(3, 1)}
    adapter = write_adapter(
        tmp_path / "a", factors | {"l.lora_magnitude_vector": torch.ones(3)}, r=1, lora_alpha=1, use_dora=True
    )
    refused(tmp_path, base, adapter, NonFiniteError, r"l with output row 1 of l\.weight.* have norm 0", "0.5")


def test_a_saved_weight_under_dora_is_refused(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = train(tmp_path / "a", zoo, target_modules=["linear"], use_dora=True)
    tensors = load(adapter) | {f"{PREFIX}linear.base_layer.weight": torch.randn(20, 12)}
    save_file(tensors, adapter / "adapter_model.safetensors")
    refused(tmp_path, base, adapter, UnsupportedError, "linear has a saved weight under DoRA", "0.5")


def test_a_checkpoint_is_refused(tmp_path: Path) -> None:
    message = "tuned is a full checkpoint, and --as-adapter is for adapters; without it"
    refused(tmp_path, FIXTURES / "base", FIXTURES / "tuned", UsageError, message, "0.5")
    done = command("wise", FIXTURES / "base", FIXTURES / "tuned", "-o", tmp_path / "o", "--alpha", 1, "--as-adapter")
    assert done.returncode == 2 and "full checkpoint" in done.stderr


def test_what_no_number_holds_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(6, 5)})
    adapter = write_adapter(tmp_path / "a", lora_factors("l", (6, 5)), lora_alpha=1e300)
    refused(tmp_path, base, adapter, UsageError, r"alpha 1e\+10 times lora_alpha 1e\+300", "1e10")
    factors = lora_factors("l", (6, 5))
    factors["l.lora_B.weight"][2, 1] = torch.nan
    broken = write_adapter(tmp_path / "b", factors)
    refused(tmp_path, base, broken, NonFiniteError, r"l\.lora_B\.weight holds nan at element 9", "0.5")
    dora = write_adapter(
        tmp_path / "c", lora_factors("l", (6, 5)) | {"l.lora_magnitude_vector": torch.full((6,), 3e38)}, use_dora=True
    )
    refused(tmp_path, base, dora, NonFiniteError, "l: a rescaled factor is beyond the range of F32", "100")
    weights = {"n.weight": torch.full((3,), 3e38)}
    far = write_checkpoint(tmp_path / "far", weights)
    saved = write_adapter(tmp_path / "d", {"n.weight": -weights["n.weight"]}, modules_to_save=["n"])
    refused(tmp_path, far, saved, NonFiniteError, r"n\.weight, element \(0,\): the result is beyond", "-1")


def test_a_saved_tensor_that_no_step_makes_is_refused(tmp_path: Path) -> None:
    """Copied as it is it would be that of α = 1. No input leads there; a plan that leaves one out would."""
    base = write_checkpoint(tmp_path / "base", {"n.weight": torch.ones(3)})
    path = write_adapter(tmp_path / "a", {"n.weight": torch.zeros(3)}, modules_to_save=["n"])
    plan = dataclasses.replace(adaptertool.prepare_wise(base, path, 0.5), shards=())
    with pytest.raises(UnsupportedError, match=r"n\.weight changes nothing"):
        into_adapter(plan, open_checkpoint(base), read_adapter(Parsed(path), lambda _: True), [Decimal("0.5")])
