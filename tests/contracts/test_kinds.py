"""What every kind must hold to, over the tuple of kinds: a new one is tested by its line."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from long_numbers import errors_of, values_of
from long_numbers import exact as exactly_of

from adaptertool.errors import InternalError
from adaptertool.kinds import BY_NAME, KINDS, NORM, PRODUCT, Kind
from adaptertool.numerics.error_bound import Bound, Factor, FactorByRow
from adaptertool.numerics.interval import intervals, roots
from adaptertool.numerics.ops import BLOCKS, DIGITS, DOUBLES, FLOATS, INTERVALS, OPERATIONS, SYSTEMS, Ops
from adaptertool.tasks.verify import verify

OUT, IN, RANK = 6, 10, 3
SCALE, WEIGHT = 0.75, -1.25  # of few bits, so that their product is exact
UNIT = 2.0**-53

# Shapes of factors, where they do not follow from a rank
GIVEN = {
    "rotation": {"high": (2 * IN, 5), "low": (2 * IN, 5), "order": (2, IN), "rows": (OUT, 1)},
    "right-product": {"left": (IN, RANK), "high": (RANK, IN), "low": (RANK, IN)},
}

every_kind = pytest.mark.parametrize("kind", [k for k in KINDS if not k.becomes], ids=lambda kind: kind.name)
those_made = pytest.mark.parametrize("kind", [k for k in KINDS if k.becomes], ids=lambda kind: kind.name)


def given(kind: Kind) -> dict[str, tuple[int, ...]]:
    return GIVEN.get(kind.name) or dict.fromkeys(kind.roles, (RANK,))


def sample(kind: Kind, seed: int = 0, out: int = OUT) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A weight (out, in) and factors as matrices, float64 of few bits."""
    rng = np.random.default_rng(seed)
    shapes = kind.shapes((out, IN), given(kind))
    assert shapes is not None
    numbers = {role: rng.integers(1, 64, size=shape) / 32 for role, shape in sorted(shapes.items())}
    signs = {role: rng.choice([-1.0, 1.0], size=array.shape) for role, array in numbers.items()}
    factors = {role: (numbers[role] * signs[role]).reshape(shapes[role][0], -1) for role in numbers}
    factors |= {role: np.stack([rng.permutation(IN) * 1.0 for _ in factors[role]]) for role in kind.places}
    if "low" in factors:
        factors["low"] *= 2.0**-60
    return rng.integers(-64, 64, size=(out, IN)) / 16.0, factors


def of_system(kind: Kind, of: Callable[[Any], Any], factors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return dict(factors) if kind.neighbours else {role: of(factor) for role, factor in factors.items()}


def with_norms(kind: Kind, ops: Ops, rows: Any, factors: Mapping[str, Any], scale: Any = SCALE) -> dict[str, Any]:
    if kind.norms is None:
        return dict(factors)
    squares = kind.norms.squares(ops, rows, factors, scale)
    return {**factors, NORM: roots(squares, 128) if ops is INTERVALS else np.sqrt(squares)}


def exactly(kind: Kind, rows: np.ndarray, factors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The result in intervals of rationals, as float64; each is narrower than 2^-60."""
    exact = intervals(rows)
    own = with_norms(kind, INTERVALS, exact, of_system(kind, intervals, factors), Fraction(SCALE))
    kind.apply(INTERVALS, exact, own, Fraction(SCALE), Fraction(WEIGHT))
    assert all(end.high - end.low < Fraction(1, 2**60) for end in exact.flat)
    return np.array([[float(end.low) for end in row] for row in exact])


def applied(kind: Kind, rows: np.ndarray, factors: Mapping[str, np.ndarray], dtype: Any = np.float64) -> np.ndarray:
    made = rows.astype(dtype)
    own = with_norms(kind, BLOCKS, made, factors)
    kind.apply(BLOCKS, made, {role: factor.astype(dtype) for role, factor in own.items()}, SCALE, WEIGHT)
    return made


@every_kind
def test_roles_are_cut_in_one_way(kind: Kind) -> None:
    assert kind.by_row | kind.by_column <= kind.roles
    assert not kind.by_row & kind.by_column and kind.places <= kind.roles
    assert not kind.elementwise or kind.by_row == kind.roles
    assert kind.pair is None or set(kind.pair) <= kind.roles
    assert set(kind.anew) <= kind.roles and kind.operations <= set(OPERATIONS)


@every_kind
def test_shapes_name_every_role_and_do_not_fit_another_weight(kind: Kind) -> None:
    shapes = given(kind)
    one, other, wider = (kind.shapes(weight, shapes) for weight in ((OUT, IN), (OUT + 1, IN), (OUT, IN + 5)))
    assert one is not None and one.keys() == kind.roles
    assert one != other if kind.by_row else one != wider
    if not kind.elementwise:
        assert kind.shapes((OUT,), shapes) is None


@every_kind
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_floats_are_within_the_bound_of_the_exact_result(kind: Kind, dtype: Any) -> None:
    for seed in range(5):
        rows, factors = sample(kind, seed)
        made, exact = applied(kind, rows, factors, dtype), exactly(kind, rows, factors)
        unit = float(np.finfo(dtype).eps) / 2
        own = {role: Factor(factor) for role, factor in with_norms(kind, BLOCKS, rows, factors).items()}
        bound = kind.bound(Bound(float(abs(rows).max())), own, SCALE, WEIGHT, unit, IN)
        assert math.isfinite(bound.error)
        assert (abs(made - exact) <= bound.error + bound.relative * abs(made)).all()
        assert abs(made).max() <= bound.largest * (1 + 2 * unit) + bound.absolute


@pytest.mark.parametrize("kind", [k for k in KINDS if k.bound_by_row], ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_floats_are_within_the_bound_of_their_row(kind: Kind, dtype: Any) -> None:
    """Rows of many sizes; the largest bound is that of all."""
    assert kind.bound_by_row is not None
    for seed in range(5):
        rows, factors = sample(kind, seed)
        sizes = np.ldexp(1.0, np.random.default_rng(seed).integers(-16, 4, (OUT, 1)))
        factors |= {role: factors[role] * sizes for role in kind.by_row}
        made, exact = applied(kind, rows, factors, dtype), exactly(kind, rows, factors)
        unit, size = float(np.finfo(dtype).eps) / 2, Bound(float(abs(rows).max()))
        numbers = with_norms(kind, BLOCKS, rows, factors)
        own = {role: (FactorByRow if role in kind.by_row else Factor)(factor) for role, factor in numbers.items()}
        bound = kind.bound_by_row(size, own, SCALE, WEIGHT, unit, IN)
        assert bound.known and np.shape(bound.error) == (OUT, 1)
        assert (abs(made - exact) <= bound.error + bound.relative * abs(made)).all()
        assert (abs(made).max(1, keepdims=True) <= bound.largest * (1 + 2 * unit) + bound.absolute).all()
        assert (abs(exact - rows) <= bound.moved).all()
        whole = kind.bound(size, {role: Factor(factor.array) for role, factor in own.items()}, SCALE, WEIGHT, unit, IN)
        assert bound.of_all.error <= whole.error * (1 + 2.0**-40) and bound.of_all.relative <= whole.relative


@pytest.mark.parametrize("kind", [BY_NAME["lora"], BY_NAME["dora"]], ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("off", [0.0, 2.0**-40, 2.0**-12])
def test_a_product_may_stand_for_its_factors(kind: Kind, dtype: Any, off: float) -> None:
    """And be off by what it says."""
    for seed in range(5):
        rows, factors = sample(kind, seed)
        assert kind.pair is not None
        left, right = (factors[role] for role in kind.pair)
        product = left @ right + off * np.random.default_rng(seed).choice([-1.0, 1.0], rows.shape)  # of few bits
        others = {role: factor for role, factor in factors.items() if role not in kind.pair}
        own = with_norms(kind, BLOCKS, rows, {**others, PRODUCT: product})
        made = rows.astype(dtype)
        kind.apply(BLOCKS, made, {role: factor.astype(dtype) for role, factor in own.items()}, SCALE, WEIGHT)
        known = {role: Factor(factor, Bound(0.0, off) if role == PRODUCT else None) for role, factor in own.items()}
        unit = float(np.finfo(dtype).eps) / 2
        bound = kind.bound(Bound(float(abs(rows).max())), known, SCALE, WEIGHT, unit, IN)
        assert math.isfinite(bound.error)
        assert (abs(made - exactly(kind, rows, factors)) <= bound.error + bound.relative * abs(made)).all()
        assert abs(made).max() <= bound.largest * (1 + 2 * unit) + bound.absolute
        whole = rows.copy()
        kind.apply(BLOCKS, whole, own, SCALE, 1)
        np.testing.assert_allclose(whole, rows + (made - rows) / WEIGHT, atol=float(bound.absolute) * 2 + 1e-12)


@every_kind
def test_single_elements_are_as_in_blocks(kind: Kind) -> None:
    if kind.neighbours:
        return
    rows, factors = sample(kind)
    exact = exactly(kind, rows, factors)
    at = np.array([0, 3, 5]), np.array([9, 0, 4])
    cut = {
        role: factor[at][:, None, None]
        if kind.elementwise
        else factor[at[0]][:, None, :]
        if role in kind.by_row | {NORM}
        else factor[:, at[1]].T[:, :, None]
        if role in kind.by_column
        else factor[None]
        for role, factor in with_norms(kind, BLOCKS, rows, factors).items()
    }
    some = rows[at][:, None, None]
    made = some.copy()
    kind.apply(FLOATS, made, cut, SCALE, WEIGHT)
    np.testing.assert_allclose(made.ravel(), exact[at], rtol=1e-14)


@every_kind
@pytest.mark.parametrize("weight", [Fraction(1), Fraction(WEIGHT), Fraction(0.1)])
@pytest.mark.parametrize("ops", [DOUBLES, DIGITS], ids=lambda ops: ops.name)
def test_numbers_with_an_error_hold_the_exact_result(kind: Kind, ops: Ops, weight: Fraction) -> None:
    """Rows, and single elements; to 90 bits in double-double, exactly in long numbers where there is no norm."""
    rows, factors = sample(kind)
    exact = intervals(rows)
    own = with_norms(kind, INTERVALS, exact, of_system(kind, intervals, factors), Fraction(SCALE))
    kind.apply(INTERVALS, exact, own, Fraction(SCALE), weight)
    held = of_system(kind, ops.array, factors)
    whole = ops.array(rows).copy()
    if kind.norms is not None:
        assert ops.root is not None
        held[NORM] = ops.root(kind.norms.squares(ops, whole, held, Fraction(SCALE)))
    kind.apply(ops, whole, held, Fraction(SCALE), weight)
    made = [(whole, exact)]
    if not kind.neighbours:
        at = np.array([0, 3, 5]), np.array([9, 0, 4])
        cut = {
            role: factor[at].reshape(-1, 1, 1)
            if kind.elementwise
            else factor[at[0]].reshape(3, 1, -1)
            if role in kind.by_row | {NORM}
            else ops.array(factors[role][:, at[1]].T[:, :, None])
            for role, factor in held.items()
            if kind.elementwise or role in kind.by_row | kind.by_column | {NORM}
        }
        single = ops.array(rows[at][:, None, None]).copy()
        kind.apply(ops, single, cut, Fraction(SCALE), weight)
        made.append((single.reshape(3), exact[at]))
    for found, expected in made:
        if ops is DIGITS:
            numbers, errors = values_of(found), errors_of(found)
        else:
            numbers, errors = exactly_of(found.high) + exactly_of(found.low), exactly_of(found.error)
        for place, end in np.ndenumerate(expected):
            number, error = numbers[place], errors[place]
            assert end.low - error <= number <= end.high + error
            assert error <= (abs(number) + Fraction(1, 64)) / 2 ** (90 if ops is DOUBLES else 240)
            assert not error or ops is DOUBLES or kind.norms is not None


@every_kind
def test_rows_may_be_cut_anywhere(kind: Kind) -> None:
    rows, factors = sample(kind)
    whole = applied(kind, rows, factors)
    for cut in (1, 4):
        parts = [
            applied(kind, rows[part], {r: f[part] if r in kind.by_row else f for r, f in factors.items()})
            for part in (slice(0, cut), slice(cut, None))
        ]
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-15)


@every_kind
def test_it_asks_for_no_operation_that_it_does_not_announce(kind: Kind) -> None:
    rows, factors = sample(kind)
    lacking = dataclasses.replace(BLOCKS, **dict.fromkeys(set(OPERATIONS) - kind.operations))  # type: ignore[arg-type]
    own = with_norms(kind, BLOCKS, rows, factors)
    kind.apply(lacking, rows.copy(), own, SCALE, WEIGHT)


@every_kind
def test_an_exact_system_can_do_what_it_needs(kind: Kind) -> None:
    """Else a merge could not settle an element."""
    assert any(ops.exact and ops.can(kind.operations) for ops in SYSTEMS)
    assert INTERVALS.can(kind.operations)


@every_kind
def test_nothing_changes_with_a_weight_of_zero(kind: Kind) -> None:
    rows, factors = sample(kind)
    own, made = with_norms(kind, BLOCKS, rows, factors), rows.copy()
    kind.apply(BLOCKS, made, own, SCALE, 0.0)
    np.testing.assert_array_equal(made, rows)


@every_kind
def test_the_change_is_proportional_to_the_scale_where_it_is_said(kind: Kind) -> None:
    rows, factors = sample(kind)
    changes = []
    for scale in (1.0, 2.0):
        made = rows.copy()
        own = with_norms(kind, BLOCKS, rows, factors, scale)
        kind.apply(BLOCKS, made, own, scale, 1.0)
        changes.append(made - rows)
    assert np.allclose(changes[1], 2 * changes[0], rtol=1e-12) == kind.linear


@every_kind
def test_factors_of_the_whole_change_make_it(kind: Kind) -> None:
    if kind.low_rank is None and not kind.is_product:
        return
    rows, factors = sample(kind)
    if kind.low_rank is not None:
        b, a = kind.low_rank(factors)
    else:
        assert kind.pair is not None
        b, a = (factors[role] for role in kind.pair)
    np.testing.assert_allclose(rows + SCALE * WEIGHT * (b @ a), exactly(kind, rows, factors), rtol=1e-12)


@every_kind
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_numbers_out_of_range_are_known_for_such(kind: Kind, dtype: Any) -> None:
    """An overflow in floats never goes with a finite bound: else what is no number would be stored."""
    rows, factors = sample(kind)
    powers, unit = ((60, 100, 126), 2.0**-24) if dtype == np.float32 else ((300, 900, 1010), UNIT)
    numeric = sorted(kind.roles - kind.places)
    for power, zero, weight in itertools.product(powers, (None, *numeric), (WEIGHT, 0.0)):
        for huge in (numeric, *({role} for role in numeric)):
            own = {role: np.ldexp(factor, power) if role in huge else factor for role, factor in factors.items()}
            own |= {} if zero is None else {zero: np.zeros_like(factors[zero])}
            with np.errstate(all="ignore"):
                made = rows.astype(dtype)
                own = {role: factor.astype(dtype) for role, factor in with_norms(kind, BLOCKS, made, own).items()}
                kind.apply(BLOCKS, made, own, SCALE, weight)
                numbers = {name: Factor(factor.astype(np.float64)) for name, factor in own.items()}
                bound = kind.bound(Bound(4.0), numbers, SCALE, weight, unit, IN)
            assert np.isfinite(made).all() or not bound.is_below(2.0**126 if dtype == np.float32 else math.inf)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_spellings_name_every_role(kind: Kind) -> None:
    for spelling in kind.spellings.values():
        of_bias = frozenset() if spelling.bias is None else BY_NAME[spelling.bias].roles
        all_of_it = {*spelling.keys.values(), *spelling.embedding.values(), *spelling.shared.values()}
        all_of_it |= {*spelling.of_sorts.values()}
        assert all_of_it == kind.roles | of_bias
        assert spelling.tag and not spelling.keys.keys() & spelling.refused.keys()


@those_made
def test_one_that_comes_down_to_others_has_nothing_else(kind: Kind) -> None:
    assert kind.optional <= kind.roles and kind.by_row | kind.by_column <= kind.roles
    assert not (kind.pair or kind.is_product or kind.norms or kind.anew or kind.low_rank)
    assert not (kind.single or kind.elementwise or kind.replaces or kind.operations)
    with pytest.raises(InternalError):
        kind.apply(BLOCKS, np.zeros((1, 1)), {}, 1.0, 1.0)


def test_names_are_unique() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    tags = [(name, spelling.tag) for kind in KINDS for name, spelling in kind.spellings.items()]
    assert len(set(tags)) == len(tags)


def test_each_fault_that_verify_names_is_in_its_page() -> None:
    text = (ROOT / "docs/verify.md").read_text()
    for kind in KINDS:
        for misreading in kind.misreadings:
            assert f"`{misreading.code}`" in text
            assert misreading.code in (verify.__doc__ or "")
