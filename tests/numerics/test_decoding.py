"""Codes with scales: the kernel at every level and numpy give the same bits, those of rationals, rounded once."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import rounded_exactly, same_bits
from adaptertool.codecs.quantised.tables import E2M1, E4M3, paired
from adaptertool.numerics import compiled, decoding
from adaptertool.numerics.decoding import Coded, decoded

ALL = [None, *compiled.levels()]  # None is numpy
DTYPES = ("F64", "F32", "BF16", "F16")


def coded(rng: np.random.Generator, name: str) -> Coded:
    """Scales of 24 bits and of all sizes, so that products lie near the middle of two numbers, and some beyond them."""
    rows, columns, size = {"blocks": (40, 300, 128), "rows": (3, 4100, 4100), "ragged": (5, 70, 32)}.get(
        name, (7, 96, 32)
    )
    each, low = (2, name != "high first") if name in ("halves", "high first", "zeros", "quotient") else (1, True)
    table = paired(E2M1, low_first=low) if each == 2 else E4M3
    codes = rng.integers(0, 256, (rows, columns // each), dtype=np.uint8)
    codes[codes & 0x7F == 0x7F] = 0x80  # no NaN, but −0
    which = np.arange(rows, dtype=np.int32) // (32 if name == "blocks" else 1)
    shape = int(which.max()) + 1, -(-columns // size)
    scales = (rng.random(shape, np.float32) * 2.0 ** rng.integers(-20, 20, shape)).astype(np.float32).astype(np.float64)
    zeros = rng.integers(-8, 8, shape).astype(np.float64) if name in ("zeros", "ragged") else None
    return Coded(codes, table, which, scales, size, columns, zeros, 127.0 if name == "quotient" else 1.0)


def exact(one: Coded) -> list[Fraction]:
    each, found = len(one.table) // 256, []
    for row, place in enumerate(one.which):
        for column in range(one.columns):
            code = one.table[int(one.codes[row, column // each]) * each + column % each]
            group = column // one.size
            zero = 0 if one.zeros is None else Fraction(one.zeros[place, group])
            found.append((Fraction(code) - zero) * Fraction(one.scales[place, group]) / Fraction(one.divisor))
    return found


@pytest.mark.parametrize("name", ["blocks", "rows", "ragged", "halves", "high first", "zeros", "quotient"])
def test_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    one = coded(rng, name)
    wanted = exact(one._replace(codes=one.codes[:13], which=one.which[:13]))[:4000]
    some = slice(0, len(wanted))
    for dtype in DTYPES:
        found = []
        for level in ALL:
            monkeypatch.setattr(decoding, "FUNCTIONS", compiled.functions(level))
            found.append(decoded(one, dtype).reshape(-1))
        assert all(same_bits(found[0], other).all() for other in found)
        zero = np.array([value == 0 for value in wanted])  # their sign is that of the code
        right = rounded_exactly(wanted, dtype)
        assert (BY_DTYPE[dtype].words(right) == BY_DTYPE[dtype].words(found[0][some]))[~zero].all()


@pytest.mark.parametrize("level", ALL)
def test_what_is_not_finite_stays_so(level: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "FUNCTIONS", compiled.functions(level))
    codes = np.array([[0x7F, 0xFF, 0x38, 0x80]], np.uint8)
    for scale, wanted in ((np.nan, [True] * 4), (1.0, [True, True, False, False])):
        one = Coded(codes, E4M3, np.zeros(1, np.int32), np.full((1, 1), scale), 4, 4)
        for dtype in DTYPES:
            numbers = np.empty(4)
            BY_DTYPE[dtype].decode(decoded(one, dtype).reshape(-1), numbers)
            assert np.isnan(numbers).tolist() == wanted
            assert scale != 1 or (numbers[2] == 1 and numbers[3] == 0 and np.signbit(numbers[3]))


@pytest.mark.parametrize("level", ALL)
def test_no_rows(level: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "FUNCTIONS", compiled.functions(level))
    one = Coded(np.empty((0, 8), np.uint8), E4M3, np.empty(0, np.int32), np.ones((0, 1)), 8, 8)
    assert decoded(one, "BF16").shape == (0, 8)
