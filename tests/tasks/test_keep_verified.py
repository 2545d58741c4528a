"""`--verify` of codes that are made anew: read back and judged before they are published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import load, lora_factors, write_adapter
from kept import FORMATS, base_of, factors_of
from quantised_bases import Q, X
from safetensors.torch import save_file

import adaptertool as library
from adaptertool.errors import StorageError
from adaptertool.output import verified
from adaptertool.spec.plan import Plan


@pytest.mark.parametrize("name", FORMATS)
def test_verified(tmp_path: Path, name: str) -> None:
    """In files of another size too, between the two, and where nothing changes."""
    made = FORMATS[name][0]()
    base = base_of(tmp_path / "base", made, shards=2)
    adapter = write_adapter(tmp_path / "adapter", factors_of(made, 0.3), r=2, lora_alpha=2)
    assert library.merge(base, [adapter], tmp_path / "out", quantise="keep", verify=True).verified
    library.merge(base, [adapter], tmp_path / "small", quantise="keep", verify=True, max_shard_size=900)
    assert load(tmp_path / "small").keys() == load(tmp_path / "out").keys()
    assert library.wise(base, adapter, tmp_path / "part", [0.0, 0.5], quantise="keep", verify=True).verified


@pytest.mark.parametrize("name", ["FP8, blocks", "FP8, rows", "INT8", "NVFP4"])
def test_other_kinds(tmp_path: Path, name: str) -> None:
    """DoRA, and what takes numbers one by one."""
    made = FORMATS[name][0]()
    rows, columns = len(made.exact), len(made.exact[0])
    base, factors = base_of(tmp_path / "base", made), factors_of(made, 0.3)
    magnitude = torch.tensor([float(sum(value * value for value in row)) ** 0.5 * 1.03 for row in made.exact])
    dora = factors | {f"{X}.lora_magnitude_vector": magnitude}
    adapter = write_adapter(tmp_path / "dora", dora, r=2, lora_alpha=2, use_dora=True)
    assert library.merge(base, [adapter], tmp_path / "out", quantise="keep", verify=True).verified
    a, b = factors.values()
    whole = tmp_path / "whole.safetensors"
    change = {f"{X}.diff": (b.float() @ a.float()).reshape(rows, columns).contiguous()}
    save_file(change | lora_factors(Q, (8, 6)) | {f"{Q}.alpha": torch.tensor(2.0)}, whole)
    assert library.merge(base, [whole], tmp_path / "diff", quantise="keep", verify=True).verified
    assert library.verify(tmp_path / "diff", base, [whole]).ok


@pytest.mark.parametrize("name", ["FP8, blocks", "INT4", "MXFP4", "NVFP4"])
def test_what_the_disk_has_changed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit of codes, of a scale, of what no adapter changes."""
    quantised = FORMATS[name][0]()
    base = base_of(tmp_path / "base", quantised)
    adapter = write_adapter(tmp_path / "adapter", factors_of(quantised, 0.3), r=2, lora_alpha=2)
    verify = verified.verify_outputs
    for tensor in (*quantised.tensors, "model.norm.weight"):

        def broken(plan: Plan, folder: Path, threads: int, tensor: str = tensor) -> None:
            (file,) = folder.glob("*.safetensors")
            stored = load(folder)
            stored[tensor].view(-1).view(torch.uint8)[0] ^= 4
            save_file(stored, file, {"format": "pt"})
            verify(plan, folder, threads)

        monkeypatch.setattr(verified, "verify_outputs", broken)
        with pytest.raises(StorageError, match="is the disk sound"):
            library.merge(base, [adapter], tmp_path / "out", quantise="keep", verify=True)
        assert not (tmp_path / "out").exists(), tensor
