"""Right products on weights that are stored transposed, in chains, and in torch; test_hra.py has the commands."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load, write_checkpoint
from one_kind import write
from rationals import EVERY, matrix, require
from skews import reflections, times

import adaptertool
from adaptertool.arithmetic import requirements
from adaptertool.kinds.right_product import HIGH, LEFT, LOW, RIGHT_PRODUCT
from adaptertool.numerics.error_bound import Bound, Factor
from adaptertool.numerics.ops import BLOCKS, FLOATS

LAYER = "h.0.attn.c_attn"
OUT, COLUMNS = 10, 6
exactly = np.frompyfunc(lambda number: Fraction(float(number)), 1, 1)


@pytest.mark.parametrize("most", [1, 1 << 14])
@pytest.mark.parametrize("output", EVERY)
@pytest.mark.parametrize("size", [(OUT, COLUMNS), (COLUMNS, COLUMNS)])
def test_weights_that_are_stored_transposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], output: torch.dtype, most: int
) -> None:
    """Also where they are square; and two, one after the other."""
    monkeypatch.setattr(requirements, "_MOST_NEIGHBOURS", most)
    weight, both = torch.randn(size).to(output), [torch.randn(COLUMNS, 2), torch.randn(COLUMNS, 3)]
    base = write_checkpoint(tmp_path / "base", {f"{LAYER}.weight": weight.T.contiguous()})
    (base / "config.json").write_text(json.dumps({"model_type": "gpt2", "tie_word_embeddings": False}))
    adapters = [
        write(tmp_path / f"a{k}", {f"{LAYER}.hra_u": u}, peft_type="HRA", apply_GS=False) for k, u in enumerate(both)
    ]
    adaptertool.merge(base, adapters, tmp_path / "out")
    exact = times(times(np.array(matrix(weight)), reflections(both[0])), reflections(both[1]))
    require(load(tmp_path / "out")[f"{LAYER}.weight"].T, exact.tolist(), weight)
    assert adaptertool.verify(tmp_path / "out", base, adapters).ok


def test_tensors_of_torch() -> None:
    rows, left, right = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, 2).double(), torch.randn(2, 6).double()
    factors = {LEFT: left, HIGH: right, LOW: right * 2.0**-60}
    made = rows.clone()
    RIGHT_PRODUCT.apply(FLOATS, made, factors, 1.0, -0.3)
    torch.testing.assert_close(made, rows - 0.3 * rows @ left @ right)


@pytest.mark.parametrize("columns", [3, 300])
def test_rows_that_lie_in_memory_as_columns(columns: int) -> None:
    """In several parts; the others of the memory stay as they are."""
    rng, stored = np.random.default_rng(0), np.zeros((700, columns + 2))
    rows, left, right = (rng.integers(-8, 8, size) / 4.0 for size in ((columns, 700), (700, 2), (2, 700)))
    stored[:, 1:-1] = rows.T
    RIGHT_PRODUCT.apply(BLOCKS, stored[:, 1:-1].T, {LEFT: left, HIGH: right, LOW: right * 0}, 1.0, -0.5)
    assert (rows - 0.5 * (rows @ left) @ right == stored[:, 1:-1].T).all()  # of few bits
    assert not stored[:, [0, -1]].any()


@pytest.mark.parametrize("unit", [2.0**-53, 2.0**-24])
def test_the_bound_holds_at_the_ends_of_the_range(unit: float) -> None:
    rng, dtype = np.random.default_rng(0), np.float64 if unit < 2.0**-30 else np.float32
    for power in (-1000, -500, -140, -60, 0, 60, 120):
        scale = 2.0 ** (power if dtype is np.float64 else power // 8)
        rows, left, right = (rng.standard_normal(shape) * scale for shape in ((5, 40), (40, 3), (3, 40)))
        low = right * 2.0**-60
        bound = RIGHT_PRODUCT.bound(
            Bound(float(abs(rows).max())),
            {LEFT: Factor(left), HIGH: Factor(right), LOW: Factor(low)},
            1.0,
            0.7,
            unit,
            40,
        )
        w, a, b, c = (exactly(array) for array in (rows, left, right, low))
        wanted = w + Fraction(0.7) * times(times(w, a), b + c)
        made = rows.astype(dtype)
        own = {LEFT: left.astype(dtype), HIGH: right.astype(dtype), LOW: low.astype(dtype)}
        RIGHT_PRODUCT.apply(FLOATS, made, own, 1.0, 0.7)
        rounded = abs(rows.astype(dtype).astype(float) - rows).max() * (1 + 40 * 3 * scale**2)
        off = abs(wanted - exactly(made)).astype(float)
        assert (off <= bound.error + bound.relative * abs(made) + rounded).all()
