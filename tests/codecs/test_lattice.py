"""What a weight may be where it stays as it is stored: its codes and scales apart, and its codes as bytes again."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_checkpoint
from long_tests import share
from quantised_bases import FORMATS, Q

from adaptertool.architectures.quantised import read_codes
from adaptertool.codecs.quantised.lattice import levels_of
from adaptertool.codecs.quantised.tables import E2M1, E4M3, E5M2, INT8
from adaptertool.codecs.tensors import reading
from adaptertool.files.reader import Inputs
from adaptertool.formats.checkpoints import open_checkpoint

# Formats of the tests' bases that can be written again
KEPT = [
    "FP8, blocks", "FP8, exponents", "FP8, .scale", "FP8, tensor", "FP8, rows", "MXFP8", "INT8", "INT8, groups",
    "INT4", "MXFP4", "NVFP4", "NVFP4 of ModelOpt",
]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_codes_and_scales(tmp_path: Path, name: str) -> None:
    made = FORMATS[name]()
    plain = {f"{Q}.weight": torch.randn(8, 6).bfloat16()}
    base = open_checkpoint(
        write_checkpoint(tmp_path / "base", plain | dict(made.tensors), config={"quantization_config": made.config})
    )
    weights, _, _ = read_codes(base)
    weight = weights[made.name]
    assert (weight.lattice is not None) == (name in KEPT)
    if weight.lattice is None:
        return
    lattice, rows = weight.lattice, len(made.exact)
    ref = weight.parts[0]
    with Inputs({header.path: header.stamp for header in base.headers}) as inputs:
        read = reading(inputs)
        stored = inputs.read(ref.path, ref.offset, ref.spec.nbytes)
        size = ref.spec.nbytes // rows
        for first, last in [(0, rows), *((0, 5), (3, 11), (rows - 1, rows))]:
            codes = lattice.codes(read, first, last)
            scales, divisor = lattice.each(read, first, last)
            found = [
                [Fraction(value) / Fraction(divisor) for value in row]
                for row in (lattice.table[codes] * scales).tolist()
            ]
            assert found == made.exact[first:last]
            if lattice.at_once == 1:
                assert bytes(lattice.stored(codes)) == stored[first * size : last * size]
        for first in range(0, rows, lattice.at_once):
            codes = lattice.codes(read, first, first + lattice.at_once)
            assert bytes(lattice.stored(codes)) == stored[first * size : (first + lattice.at_once) * size]


@pytest.mark.parametrize("table", [E2M1, E4M3, E5M2, INT8, np.arange(16) - 8.0], ids=["2", "4", "5", "8", "i"])
def test_the_nearest(table: np.ndarray) -> None:
    """Among all numbers of a table, by brute force; middles go to the even code."""
    levels = levels_of(table.tobytes())
    values = [Fraction(value) for value in table.tolist() if value == value]
    codes = [code for code, value in enumerate(table.tolist()) if value == value]
    drawn = np.random.default_rng(0).standard_normal(share(300)) * np.geomspace(1e-3, 1e3, share(300))
    for value in [*map(Fraction, drawn.tolist()), *map(Fraction, levels.middles.tolist())]:
        least = min(abs(value - one) for one in values)
        near = [code for code, one in zip(codes, values, strict=True) if abs(value - one) == least]
        wanted = {table[code] for code in near}
        found = levels.nearest(value)
        assert levels.values[found] in wanted and table[levels.codes[found]] == levels.values[found]
        assert len(wanted) == 1 or levels.codes[found] % 2 == 0
        if len(wanted) == 1:
            assert levels.guess(np.array([float(value)]))[0] == found or abs(float(value)) > 1e5
