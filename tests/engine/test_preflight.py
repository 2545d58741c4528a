"""Factors are read once before a run, many at once: what is told of them is what each by itself tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lora_factors, write_adapter, write_checkpoint
from safetensors.torch import save_file

from adaptertool import merge, prepare_merge
from adaptertool.codecs.tensors import require_finite
from adaptertool.codecs.zero_rows import zero_rows_of
from adaptertool.engine.preflight import require_finite_factors
from adaptertool.errors import NonFiniteError
from adaptertool.files.header import read_header
from adaptertool.files.reader import Inputs
from adaptertool.numerics import compiled

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
SHAPES = ((), (1,), (7,), (4, 5), (5, 4), (3, 2, 4), (6, 1))
kernel = pytest.mark.skipif(not compiled.levels(), reason="no compiled kernel: there was no C compiler")


@kernel
@pytest.mark.parametrize("seed", range(3))
def test_rows_of_zeros_in_many_at_once(tmp_path: Path, seed: int) -> None:
    """Of all dtypes and shapes, in any order, some of them twice; and None where a number of any is not finite."""
    torch.manual_seed(seed)
    tensors = {}
    for number in range(60):
        values = torch.randn(SHAPES[number % len(SHAPES)]) * (torch.rand(SHAPES[number % len(SHAPES)]) < 0.4)
        tensors[f"t{number}"] = values.to(DTYPES[number % len(DTYPES)])
    for name in ("fine", "damaged"):
        save_file(tensors, tmp_path / name)
        tensors["t17"].view(-1)[0] = float("nan")
    fine, damaged = (read_header(tmp_path / name) for name in ("fine", "damaged"))
    order = np.random.default_rng(seed).integers(60, size=90)
    refs = [fine.tensors[f"t{number}"] for number in order]
    with Inputs({header.path: header.stamp for header in (fine, damaged)}) as inputs:
        expected = [require_finite(inputs, ref) for ref in refs]
        assert zero_rows_of(inputs, refs) == expected and sum(expected) > 20
        assert zero_rows_of(inputs, [*refs, damaged.tensors["t17"]]) is None
        assert zero_rows_of(inputs, [*refs, damaged.tensors["t18"]]) is not None


def test_a_factor_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two adapters are the same files: the notes of each are those that it has alone."""
    names = [f"model.layers.{number}.up_proj" for number in range(6)]
    base = write_checkpoint(tmp_path / "base", {f"{name}.weight": torch.randn(12, 8) for name in names})
    factors = {key: one for name in names for key, one in lora_factors(name, (12, 8)).items()}
    factors[f"{names[2]}.lora_B.weight"][:] = 0.0
    factors[f"{names[4]}.lora_B.weight"][3:5] = 0.0
    adapter = write_adapter(tmp_path / "adapter", factors)
    sizes = []
    read = Inputs.read_into

    def noted(self: Inputs, path: Path, offset: int, view: memoryview) -> None:
        sizes.append(len(view))
        read(self, path, offset, view)

    monkeypatch.setattr(Inputs, "read_into", noted)
    found = []
    for given in ([adapter], [adapter, adapter]):
        plan = prepare_merge(base, given)
        sizes.clear()
        with Inputs(plan.inputs) as inputs:
            found.append(require_finite_factors(plan, inputs))
        assert sum(sizes) == sum(one.nbytes for one in factors.values())
    once, twice = found
    assert len(once) == 2 and "1 of 6 modules" in once[0] and "2 of" not in once[1] and "16.7%" in once[1]
    assert twice == [*once, *once]


def test_the_first_that_is_not_finite_is_named(tmp_path: Path) -> None:
    names = [f"model.layers.{number}.up_proj" for number in range(6)]
    base = write_checkpoint(tmp_path / "base", {f"{name}.weight": torch.randn(12, 8) for name in names})
    factors = {key: one for name in names for key, one in lora_factors(name, (12, 8)).items()}
    factors[f"{names[4]}.lora_A.weight"][1, 3] = float("inf")
    factors[f"{names[2]}.lora_B.weight"][2, 1] = float("nan")
    adapter = write_adapter(tmp_path / "adapter", factors)
    with pytest.raises(NonFiniteError, match=rf"{names[2]}\.lora_B\.weight holds nan at element 9;"):
        merge(base, [adapter], tmp_path / "out")
