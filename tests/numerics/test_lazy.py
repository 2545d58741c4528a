"""Formulas in strips: at every level of the kernel the bits that numpy gives for the same lines of Python."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptertool.codecs.numbers import doubles, largest_stored, rounded
from adaptertool.numerics import compiled, lazy, strips
from adaptertool.numerics.lazy import Lazy

DTYPES = ["BF16", "F16", "F32", "F64"]
SIZES = [1, 7, 8, 9, 127, 128, 129, 255, 256, 257, 1000, 4096, 70_001]
at_every_level = pytest.mark.parametrize("level", compiled.levels())
ODD = [0.0, -0.0, 1.0, -1.0, 5e-324, 1e308, -1e308, math.inf, -math.inf, math.nan]


@pytest.fixture
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lazy, strips):
        monkeypatch.setattr(module, "FUNCTIONS", compiled.functions(request.param))


def numbers(size: int, seed: int, *, odd: bool = True) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = np.round(rng.standard_normal(size), 2) * 2.0 ** rng.integers(-3, 3, size)
    if odd:
        places = rng.integers(0, size, size // 5)
        found[places] = rng.choice(ODD, len(places))
    return found


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """The same bits, but for those of NaN, which differ among processors."""
    one, other = (np.where(np.isnan(array), np.nan, array).view(np.uint64) for array in (found, expected))
    np.testing.assert_array_equal(one, other)


def evaluated(array: Lazy) -> np.ndarray:
    return array.stored(np.empty(array.size), "F64", 1)[0]


def ties(a: Any, b: Any, c: Any) -> Any:
    total = a.copy()
    total += b
    positive = total + c >= 0
    summed, count = a * 0, a * 0
    for one, weight in ((a, 0.3), (b, 1), (c, np.float64(-2.5))):
        agrees = ((one > 0) & positive) | ((one < 0) & ~positive)
        summed += agrees * (weight * one)
        count += agrees
    return np.where(count == 0, a, summed / np.where(count == 0, 1, count))


FORMULAS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "ties": ties,
    "every operator": lambda a, b, c: (a + b) * (a - c) / (b * 1.5) + (a / 3 - 2 / b) + 0.1 - (7 - c) * 1 / 1.0,
    "comparisons": lambda a, b, c: (a < b) * 1.0 + (a <= c) * 2.0 + (b > 0.5) * 4.0 + (a == c) * 8.0,
    "logic": lambda a, b, c: (~(a < b) & (b <= c)) * a + ((a == 0) | (c > 1)) * b,
    "magnitudes": lambda a, b, c: abs(a) - np.minimum(abs(b), 2.0) + np.clip(c, 0.0, 1.0) * np.maximum(abs(a), abs(b)),
    "choice": lambda a, b, c: np.where(a < b, 1.0, c) + np.where(b == c, a, 0),
    "an array beside": lambda a, b, c: (np.arange(a.size) % 3 == 0) * a + np.linspace(0, 1, a.size) * b - c,
    "a + number * b": lambda a, b, c: (a + 0.3 * b) - (b * -1.7 + c) + (a * b + 2 * c) + (0.1 * a + 0.2 * b),
    "one where equal": lambda a, b, c: np.where(a + b == c, c, a + b) + np.where(a == (d := a * 1.0), d, a),
    "the same twice": lambda a, b, c: a * a + (a - a) + (b + c) * (b + c),
}


@at_every_level
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("level")
def test_as_numpy_computes_it(name: str, size: int) -> None:
    arrays = [numbers(size, seed) for seed in range(3)]
    with np.errstate(all="ignore"):
        same(evaluated(FORMULAS[name](*map(Lazy.of, arrays))), FORMULAS[name](*arrays))


OPERATORS: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: a / b,
    lambda a, b: (a < b) * a,
    lambda a, b: np.where(a >= b, a, b),
    lambda a, _: abs(a),
    lambda a, b: a * 0.5 + b * -3,
]


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=40))
def test_any_formula(steps: list[tuple[int, int, int]]) -> None:
    """Where many arrays are needed late, none takes the strip of another."""
    arrays = [numbers(300, seed, odd=False) for seed in range(3)]
    plain, made = list(arrays), list(map(Lazy.of, arrays))
    with np.errstate(all="ignore"):
        for operator, one, other in steps:
            for values in (plain, made):
                values.append(OPERATORS[operator](values[one % len(values)], values[other % len(values)]))  # type: ignore[attr-defined]
        same(evaluated(made[-1]), plain[-1])
        assert repr(lazy.sums(made)) == repr([float(one.sum()) for one in plain])


@at_every_level
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("level")
def test_sums_are_those_of_numpy(size: int) -> None:
    a, b = numbers(size, 1, odd=False), numbers(size, 2, odd=False)
    found = lazy.sums([Lazy.of(a) * Lazy.of(b), Lazy.of(a), abs(Lazy.of(b))])
    assert found == [(a * b).sum(), a.sum(), abs(b).sum()]


@at_every_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("level")
def test_stored_numbers(dtype: str) -> None:
    """Read as they are stored, and rounded once: float64 next to the middle of two numbers too."""
    values = numbers(5000, 3)
    middles = doubles(rounded(values, dtype), dtype) * (1 + 2.0**-9)
    values[::3], values[1::3] = np.nextafter(middles, 0)[::3], middles[1::3]
    values[np.isnan(values)] = 0.5
    kept = rounded(values, dtype)
    same(evaluated(Lazy.of(kept, dtype)), doubles(kept, dtype))
    stored = np.empty_like(kept)
    sample, largest = Lazy.of(values).stored(stored, dtype, 7)
    np.testing.assert_array_equal(stored.view(f"u{stored.itemsize}"), kept.view(f"u{stored.itemsize}"))
    assert largest_stored(largest, dtype) == largest_stored(kept, dtype)
    same(sample, values[::7])


@at_every_level
@pytest.mark.usefixtures("level")
def test_digits_of_magnitudes() -> None:
    values = numbers(3000, 4)
    bits = abs(values).view(np.uint64)
    found, rest = Lazy.of(values).digits(0, 48)
    np.testing.assert_array_equal(found, np.bincount((bits >> np.uint64(48)).astype(np.int64), minlength=1 << 16))
    assert rest == np.bitwise_or.reduce(bits) & np.uint64((1 << 48) - 1)
    digit = int(found.argmax())
    chosen = bits[bits >> np.uint64(48) == digit]
    np.testing.assert_array_equal(Lazy.of(values).collected(digit, 48), chosen)
    found, rest = Lazy.of(values).digits(digit, 32)
    below = (chosen >> np.uint64(32)).astype(np.int64) & 0xFFFF
    np.testing.assert_array_equal(found, np.bincount(below, minlength=1 << 16))
    assert rest == np.bitwise_or.reduce(chosen) & np.uint64((1 << 32) - 1)


@at_every_level
@pytest.mark.parametrize(("equal", "skip_equal"), [(0, 0), (3, 0), (40, 5), (10**6, 10**6)])
@pytest.mark.usefixtures("level")
def test_between(equal: int, skip_equal: int) -> None:
    """Among those that are equal to a bound the first stay, or go."""
    values = np.round(numbers(3000, 5, odd=False), 1)
    sizes = abs(values)
    same_, skipped_ = sizes == 0.5, sizes == 1.5
    kept = (sizes > 0.5) | (same_ & (np.cumsum(same_) <= equal))
    skipped = (sizes > 1.5) | (skipped_ & (np.cumsum(skipped_) <= skip_equal))
    same(evaluated(Lazy.of(values).between(0.5, equal, 1.5, skip_equal)), (kept & ~skipped) * values)
    formula = Lazy.of(values).between(0.5, equal)
    for _again in range(2):
        same(evaluated(formula), kept * values)


def test_what_is_refused() -> None:
    """What numpy would do otherwise, or not in place, raises, and is never wrong in silence."""
    array = Lazy.of(np.ones(4))
    for wrong in (
        lambda: array & array,
        lambda: ~array,
        lambda: array + np.ones(5),
        lambda: array + np.ones((2, 2)),
        lambda: array + np.ones(4, np.float32),
        lambda: np.add(np.ones(4), array, out=np.ones(4)),
        lambda: np.add.reduce(array),
        lambda: np.sqrt(array),
        lambda: np.concatenate([array, array]),
        lambda: array[0],
        lambda: bool(array == array),
    ):
        with pytest.raises(TypeError):
            wrong()


def test_the_steps_are_those_of_the_kernel() -> None:
    text = (Path(compiled.__file__).parent / "kernel" / "strips.h").read_text()
    (listed,) = re.findall(r"enum \{\n(.*?)\};", text, re.DOTALL)
    names = re.findall(r"[A-Z][A-Z_0-9]+", re.sub(r"/\*.*?\*/", "", listed, flags=re.DOTALL))
    assert tuple(names) == strips.STEPS
    assert f"#define STRIP {strips._STRIP} " in text
