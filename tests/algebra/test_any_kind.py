"""sum --base of each kind of adapter: the nearest LoRA of a rank, against what the kind's own library merges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load, write_checkpoint
from every_kind import ALL, LYCORIS, train

import adaptertool
from adaptertool.errors import AdapterToolError, UnsupportedError

SIZE, NAMES = (16, 12), ["one", "two"]
# Saved tensors, and whole differences, stay what they are or are refused: they are no factors
NO_FACTORS = {"LN_TUNING": "its tensors are no factors", "full": "has a whole difference"}
RANK = 3


def base_of(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    stored = {f"{name}.weight": torch.randn(SIZE) for name in NAMES}
    return write_checkpoint(folder, stored), stored


def changes(made: Path, base: Path, out: Path, stored: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What a merge of a LoRA adds, from its factors in float64 and the merge itself."""
    adaptertool.merge(base, [made], out)
    return {name: (tensor.double() - stored[name].double()).numpy() for name, tensor in load(out).items()}


def require_nearest(found: np.ndarray, change: np.ndarray, rank: int, error: float) -> None:
    """That it is as near as the leading part by a dense SVD, and the error is as it says."""
    values = np.linalg.svd(change, compute_uv=False)
    norm, least = np.linalg.norm(change), np.linalg.norm(values[rank:])
    assert norm > 1e-3
    off = float(np.linalg.norm(found - change))
    assert abs(off - least) <= 1e-5 * norm
    assert abs(error - off / norm) <= 1e-5


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in NO_FACTORS])
def test_the_leading_part_of_each_kind(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(3)
    trained = train(tmp_path / "a", kind, NAMES, SIZE)
    base, stored = base_of(tmp_path / "base")
    out = tmp_path / ("out.safetensors" if kind in LYCORIS else "out")
    report = adaptertool.sum_adapters([trained.path], out, base=base, rank=RANK)
    found = changes(out, base, tmp_path / "merged", stored)
    assert len(report.layers) == len(NAMES)
    for layer in report.layers:
        name = layer.layer.removeprefix("lycoris_")
        weight = stored[f"{name}.weight"].double()
        change = (trained.merges[name](weight) - weight).detach().numpy()
        assert layer.rank <= RANK
        require_nearest(found[f"{name}.weight"], change, RANK, layer.error)
