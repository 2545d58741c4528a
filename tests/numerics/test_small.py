"""Many tensors in one call: the very bits and sums that a call for each makes, at every level of instructions; and
what is told of factors, by numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.numerics import compiled, fused, small

ALL = compiled.levels()
SHAPES = [(1, 1, (1,)), (5, 33, (3,)), (64, 64, (4,)), (7, 15, (16, 2)), (130, 70, (17,)), (6, 32, (40, 1, 3))]
pytestmark = pytest.mark.skipif(not ALL, reason="no compiled kernel: there was no C compiler")


class Stretch:
    """Tensors of several shapes, with gaps between them, and their factors as bytes; some stored transposed."""

    def __init__(self, dtype: str, held: str, *, few_bits: bool, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.dtype, self.few_bits = dtype, few_bits
        self.tensors: list[Any] = []
        self.products: list[Any] = []
        self.pairs: list[tuple[Any, Any]] = []  # (left times the scale, right) of each tensor, float64
        pieces, content, at = [], b"", 0
        for number, (rows, columns, ranks) in enumerate(SHAPES):
            w = rounded(rng.standard_normal((rows, columns)) * 0.02, dtype)
            gap = rng.standard_normal(number).astype(w.dtype)
            self.tensors.append((at, rows, columns, len(ranks), few_bits))
            pieces += [w.reshape(-1), gap]
            at += w.size + gap.size
            lefts, rights = [], []
            for rank in ranks:
                left, right = rng.standard_normal((rows, rank)) * 0.1, rng.standard_normal((rank, columns)) * 0.1
                left[0], right[:, 0] = 0.0, 0.0
                a, b, turned = rounded(right, held), rounded(left, held), number % 2 == 1
                scale = 2.0 if few_bits else 4 / 3
                places = []
                for factor in (a, b):
                    content += b"?" * (1 if number % 3 else 0)  # they may begin anywhere
                    places.append(len(content))
                    content += (factor.T if turned else factor).tobytes()
                self.products.append((*places, small.STORED[held], small.STORED[held], rank, turned, scale))
                lefts.append(doubles(b, held) * scale)
                rights.append(doubles(a, held))
            self.pairs.append((np.concatenate(lefts, axis=1), np.concatenate(rights)))
        self.stored = np.concatenate(pieces)
        self.factors = np.frombuffer(content, np.uint8)

    def add(self, alphas: Any) -> tuple[Any, list[Any]]:
        out = [self.stored.copy() for _ in alphas]
        changes = small.add_products(self.stored, self.dtype, self.tensors, self.products, self.factors, alphas, out)
        return changes, out


@pytest.mark.parametrize("alphas", [(1.0,), (1 / 3, 1.0, -2.0), tuple(k / 8 for k in range(1, 9))])
@pytest.mark.parametrize("held", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_as_one_by_one(dtype: str, held: str, alphas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stretch = Stretch(dtype, held, few_bits=(few := held != "F32"), seed=len(alphas))
    decided = 0
    for level in ALL:
        for module in (fused, small):
            monkeypatch.setattr(module, "FUNCTIONS", compiled.functions(level))
        changes, out = stretch.add(alphas)
        expected = [stretch.stored.copy() for _ in alphas]
        for n, ((at, rows, columns, _, _), (left, right)) in enumerate(
            zip(stretch.tensors, stretch.pairs, strict=True)
        ):
            cut = slice(at, at + rows * columns)
            scaled, packed = (
                fused.Left.of(left, few_bits=stretch.few_bits),
                fused.Right.of(right, few_bits=stretch.few_bits),
            )
            assert scaled is not None and packed is not None
            into, sample = [one[cut] for one in expected], (0, max(1, rows // 64) | 1)
            made = fused.add_product(stretch.stored[cut], dtype, scaled, packed, alphas, into, sample)
            if changes.changed[n, 0] < 0 or made is None:  # others decide
                assert changes.changed[n, 0] < 0
                for one, wanted in zip(out, expected, strict=True):
                    one[cut] = wanted[cut]
                continue
            decided += 1
            assert not any(len(one.open) for one in made)
            assert changes.changed[n].tolist() == [one.changed for one in made]
            assert changes.kept[n].tolist() == [one.kept for one in made]
            assert changes.update[n].tolist() == [one.update for one in made]
        for one, wanted in zip(out, expected, strict=True):
            assert one.tobytes() == wanted.tobytes()  # what lies between them too
    assert decided >= (1 if few and 1 / 3 in alphas else 0.8 * len(SHAPES)) * len(
        ALL
    )  # with 1/3, few bits make many near ties


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_what_is_not_made_is_told(dtype: str) -> None:
    """Numbers that are not finite, or so large or small that bounds do not hold, in the weight or in a factor."""
    for bad in (np.nan, np.inf, -np.inf, 1e30, 1e-44):
        for where in ("right", "left"):
            stretch = Stretch(dtype, "F32", few_bits=False, seed=3)
            product = list(stretch.products[2])
            content = stretch.factors.copy()
            begin = product[0 if where == "right" else 1] + 4 * 7
            content[begin : begin + 4] = np.frombuffer(np.float32(bad).tobytes(), np.uint8)
            if bad == 1e-44 and where == "left":
                product[-1] = 1e-100
            stretch.factors, stretch.products[2] = content, tuple(product)
            changed = stretch.add([1.0])[0].changed[:, 0]
            assert (changed[2] < 0) == (bad != 1e-44 or where == "left"), (bad, where)
            assert (np.delete(changed, 2) >= 0).sum() >= 4
    for bad in (np.nan, np.inf, -np.inf):
        stretch = Stretch(dtype, "F32", few_bits=False, seed=3)
        stretch.stored[stretch.tensors[1][0] + 100] = rounded(np.array([bad]), dtype)[0]
        changed = stretch.add([0.5])[0].changed[:, 0]
        assert changed[1] < 0 and (np.delete(changed, 1) >= 0).sum() >= 4
    assert (stretch.add([1.0] * 9)[0].changed == -1).all()  # more of α than there is room for
    assert (stretch.add([2.0**-70])[0].changed == -1).all() and (stretch.add([2.0**70])[0].changed == -1).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_ties_are_exact_or_left(dtype: str) -> None:
    """w + half a unit in its last place: with factors of few bits nothing is left, and ties go to even."""
    w = rounded(np.array([[1.0, 1.0, 1.0, -0.0]]), dtype)
    unit = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-23}[dtype]
    right, left = rounded(np.array([[unit, 3 * unit, 2 * unit, 0.0]]), "BF16"), rounded(np.array([[0.5]]), "BF16")
    out = [w.reshape(-1).copy()]
    content = np.frombuffer(right.tobytes() + left.tobytes(), np.uint8)
    changes = small.add_products(
        w.reshape(-1), dtype, [(0, 1, 4, 1, True)], [(0, 8, 0, 0, 1, False, 1.0)], content, [1.0], out
    )
    assert changes.changed.tolist() == [[2]]
    assert doubles(out[0], dtype).tolist() == [1.0, 1 + 2 * unit, 1 + unit, 0.0] and np.signbit(
        doubles(out[0], dtype)[3]
    )


def test_rows_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for level in ALL:
        monkeypatch.setattr(small, "FUNCTIONS", compiled.functions(level))
        content, factors, expected = b"!", [], []
        for dtype in small.STORED:
            for rows, columns in ((1, 1), (7, 1), (1, 40), (9, 33)):
                values = rng.standard_normal((rows, columns)) * (rng.random((rows, 1)) < 0.5)
                values[:, ::2] *= -1  # zeros of both signs
                stored = rounded(values, dtype)
                factors.append((len(content), rows, columns, small.STORED[dtype]))
                expected.append(int((doubles(stored, dtype) == 0).all(1).sum()))
                content += stored.tobytes()
        data = np.frombuffer(content, np.uint8)
        assert small.zero_rows(data, factors) == expected and sum(expected) > 10
        for at, rows, columns, stored in factors:
            dtype = next(name for name, number in small.STORED.items() if number == stored)
            for bad in (np.nan, -np.nan, np.inf, -np.inf):
                damaged, one = data.copy(), rounded(np.array([bad]), dtype)
                begin = at + int(rng.integers(rows * columns)) * one.itemsize
                damaged[begin : begin + one.itemsize] = one.view(np.uint8)
                assert small.zero_rows(damaged, factors) is None
    monkeypatch.setattr(small, "FUNCTIONS", {})
    assert small.zero_rows(data, factors) is None and not small.can("BF16")
