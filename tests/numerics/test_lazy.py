"""Formulas in strips: at every level of the kernel the bits that numpy gives for the same lines of Python."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adaptertool.codecs.numbers import doubles, largest_stored, rounded
from adaptertool.numerics import compiled, lazy, strips
from adaptertool.numerics.joined_steps import joined
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
    "stored, less an array": lambda a, b, c: (a - b) + (c - b) * 0.7 + 0.2 * (a - c) + ((b - a) - (c - a)),
    "a mean of differences": lambda a, b, c: np.where((m := a + ((a * 0 + 0.5 * (b - a)) + 0.3 * (c - a))) == a, a, m),
    "a mix": lambda a, b, c: (0.3 * a + 0.8 * (a + (b - a))) + (c * -1.5 + 0.1 * b) + ((b - c) + (c - a)) + 2 * b,
    "products of several uses": lambda a, b, c: (p := 0.5 * (b - a)) + (c + p) + (p + a) * (b - a),
    "the same twice": lambda a, b, c: a * a + (a - a) + (b + c) * (b + c),
}


@pytest.mark.long("name")
@at_every_level
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("level")
def test_as_numpy_computes_it(name: str, size: int) -> None:
    arrays = [numbers(size, seed) for seed in range(3)]
    with np.errstate(all="ignore"):
        same(evaluated(FORMULAS[name](*map(Lazy.of, arrays))), FORMULAS[name](*arrays))


@at_every_level
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("level")
def test_of_stored_numbers_too(name: str, dtype: str) -> None:
    """Steps that are joined read, compute and write in one loop, and what is computed first has no other strip."""
    stored = [rounded(numbers(700, seed), dtype) for seed in range(3)]
    arrays = [doubles(one, dtype) for one in stored]
    with np.errstate(all="ignore"):
        made = FORMULAS[name](*(Lazy.of(one, dtype) for one in stored))
        expected = FORMULAS[name](*arrays)
        same(evaluated(made), expected)
        ordinary = np.isfinite(expected)
        if ordinary.all():
            np.testing.assert_array_equal(written(made, dtype), rounded(expected, dtype))


def written(array: Lazy, dtype: str) -> np.ndarray:
    out = rounded(np.zeros(array.size), dtype)
    array.stored(out, dtype, 99)
    return out


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
@example([(4, 0, 0), (0, 0, 0), (1, 3, 0)])  # a sum of −0
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
        products = [(one * other, x * y) for one, other, x, y in zip(made, made[2:], plain, plain[2:], strict=False)]
        assert repr(lazy.sums(one for one, _ in products)) == repr([float(one.sum()) for _, one in products])


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
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("level")
def test_ordinary_numbers_are_written_as_the_others_are(dtype: str) -> None:
    """Those of a strip without an odd one, next to the middle of two numbers by float64 and by float32, and such with
    one odd one: what is too small or too large, or no number, whatever its bits."""
    rng = np.random.default_rng(8)
    near = doubles(rounded(rng.standard_normal(256) * 2.0 ** rng.integers(-8, 8, 256), dtype), dtype)
    spacing = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24, "F64": 0}[dtype]
    middles = near + np.sign(near) * 2.0 ** np.floor(np.log2(abs(near))) * spacing
    floats = middles.astype(np.float32)
    for values in (
        near,
        middles,
        np.nextafter(middles, 0),
        np.nextafter(middles, np.copysign(np.inf, middles)),
        np.nextafter(floats, np.float32(0)).astype(np.float64),
        np.nextafter(floats, np.copysign(np.float32(np.inf), floats)).astype(np.float64),
        rng.standard_normal(256),
    ):
        np.testing.assert_array_equal(written(Lazy.of(values), dtype), rounded(values, dtype))
        for odd in (0.0, -0.0, 5e-324, 2.0**-126, -(2.0**-127), 2.0**-133, 3 * 2.0**-135, 2.0**-134, 1e308, 3.39e38):
            with_odd = values.copy()
            with_odd[100] = odd
            np.testing.assert_array_equal(written(Lazy.of(with_odd), dtype), rounded(with_odd, dtype))
        for bits in (
            0x7FF0000000000000,
            0x7FF0000000000001,
            0x7FFFFFFFFFFFFFFF,
            0xFFFFFFFFFFFFFFFF,
            0x7FF8000000000000,
        ):
            with_odd = values.copy()
            with_odd[255] = np.uint64(bits).view(np.float64)
            out = np.empty_like(rounded(values, dtype))
            _, largest = Lazy.of(with_odd).stored(out, dtype, 99)
            assert not math.isfinite(largest_stored(largest, dtype))
            np.testing.assert_array_equal(out[:255], rounded(values, dtype)[:255])


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


def test_steps_that_are_joined() -> None:
    """A mean of three models goes through its strips seven times, and sums of products once for each."""
    base, one, other = (Lazy.of(np.zeros(9, np.uint16), "BF16") for _ in range(3))
    made = base + (base * 0 + 0.2 * (base - base) + 0.5 * (one - base) + 0.3 * (other - base))
    last = strips.Formula("WRITE_BF16", (np.where(made == base, base, made),), 9)
    names = [
        "READ_BF16",
        "SUBTRACT",
        "TIMES_ADD_TIMES",
        "ADD_DIFFERENCE_BF16",
        "ADD_DIFFERENCE_BF16",
        "ADD",
        "WRITE_BF16",
    ]
    assert joined_names(last) == names
    arc = strips.Formula("WRITE_BF16", (0.3 * base + 0.8 * (base + (one - base)),), 9)
    assert joined_names(arc) == ["READ_BF16", "ADD_DIFFERENCE_BF16", "TIMES_ADD_TIMES", "WRITE_BF16"]
    assert joined_names(Lazy("SUM", (base * one,), 9)) == ["READ_BF16", "READ_BF16", "SUM"]
    assert joined_names(Lazy("SUM", ((base - one) * 2,), 9)) == ["READ_BF16", "DIFFERENCE_BF16", "MULTIPLY", "SUM"]


def joined_names(last: strips.Formula) -> list[str]:
    order = strips._in_order([last])
    return [node.name for node in joined(strips.form_of(order)).values()]


def test_the_numbers_of_a_formula_are_its_own() -> None:
    """Formulas of one form are compiled once; what differs is not kept."""
    for array in (np.array([1.0, -0.0]), np.array([3.0, 5.0])):
        for number in (0.5, -0.0, 0.0, 2.0):
            same(evaluated(Lazy.of(array) * number + 1.0 - number), array * number + 1.0 - number)


def test_the_steps_are_those_of_the_kernel() -> None:
    text = (Path(compiled.__file__).parent / "kernel" / "strips.h").read_text()
    (listed,) = re.findall(r"enum \{\n(.*?)\};", text, re.DOTALL)
    names = re.findall(r"[A-Z][A-Z_0-9]+", re.sub(r"/\*.*?\*/", "", listed, flags=re.DOTALL))
    assert tuple(names) == strips.STEPS
    assert f"#define STRIP {strips._STRIP} " in text
