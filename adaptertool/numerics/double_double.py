"""Arithmetic in double-double: a number is the sum of two float64, high + low, with a bound of its error.

It has about 106 bits, and works on arrays: what float64 leaves open by the million is settled here, and little is left
to rationals. The bound is found as the numbers are computed: sums and products of float64 are split into the rounded
one and its error, exactly (numerics.error_free), and what is dropped counts with its own size, or u = 2^-53 of what was
rounded. So the bound asks for nothing, not even that low is small beside
high; and it is 0 where nothing was dropped, so that a middle of two stored values is known for one. Products so small
that bits are lost below the subnormal numbers count 2^-1060. What overflows has a bound that is infinite or NaN.

Compiled (kernel/double_double.h), or by the same operations in numpy (numerics.error_free).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.numerics.compiled import FUNCTIONS, address
from adaptertool.numerics.error_free import WIDER, dot_of, ends_of, product_of, sum_of, total_of, two_sum

Array = Any  # of float64


class DoubleDouble:
    """An array of numbers, each within `error` of high + low: float64 arrays of one shape, the three `parts`."""

    __slots__ = ("parts", "plain")
    __array_ufunc__ = None  # numpy leaves mixed operations to us

    def __init__(self, parts: Array, *, plain: bool = False) -> None:
        """parts: (3, ...); plain: known to be float64, without low and error."""
        self.parts, self.plain = parts, plain

    @classmethod
    def of(cls, values: Array) -> DoubleDouble:
        """Float64 values, of any shape, exactly."""
        parts = np.zeros((3, *values.shape))
        parts[0] = values
        return cls(parts, plain=True)

    @classmethod
    def near(cls, number: Fraction) -> DoubleDouble:
        """A rational, of shape (), with what is left of it as the error; infinite beyond float64."""
        try:
            high = float(number)
            low = float(number - Fraction(high))
        except OverflowError:
            return cls(np.full(3, np.inf))
        rest = abs(number - Fraction(high) - Fraction(low))
        error = float(np.nextafter(float(rest), np.inf)) if rest else 0.0
        return cls(np.array([high, low, error]))

    @property
    def high(self) -> Array:
        return self.parts[0]

    @property
    def low(self) -> Array:
        return self.parts[1]

    @property
    def error(self) -> Array:
        return self.parts[2]

    @property
    def known(self) -> Array:
        """Whether there is a number, and a bound of its error."""
        return np.isfinite(self.high + self.low) & np.isfinite(self.error)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parts.shape[1:])

    @property
    def T(self) -> DoubleDouble:  # as numpy has it
        return DoubleDouble(self.parts.transpose(0, *range(self.parts.ndim - 1, 0, -1)), plain=self.plain)

    def copy(self) -> DoubleDouble:
        return DoubleDouble(self.parts.copy())

    def reshape(self, *shape: int) -> DoubleDouble:
        return DoubleDouble(self.parts.reshape(3, *shape), plain=self.plain)

    def __getitem__(self, key: Any) -> DoubleDouble:
        return DoubleDouble(self.parts[_all_of(key)], plain=self.plain)

    def __setitem__(self, key: Any, other: DoubleDouble) -> None:
        self.parts[_all_of(key)] = other.parts
        self.plain = False

    def __add__(self, other: DoubleDouble) -> DoubleDouble:
        return _each("sum", self, other)

    def __sub__(self, other: DoubleDouble) -> DoubleDouble:
        return _each("sum", self, other, sign=-1.0)

    def __mul__(self, other: Fraction | DoubleDouble) -> DoubleDouble:
        """The product with a rational, or element by element."""
        return _each("product", self, DoubleDouble.near(other) if isinstance(other, Fraction) else other)

    def __iadd__(self, other: DoubleDouble) -> DoubleDouble:
        return _each("sum", self, other, into=self)

    def __isub__(self, other: DoubleDouble) -> DoubleDouble:
        return _each("sum", self, other, into=self, sign=-1.0)

    def __imul__(self, other: Fraction | DoubleDouble) -> DoubleDouble:
        return _each("product", self, DoubleDouble.near(other) if isinstance(other, Fraction) else other, into=self)

    def __truediv__(self, other: DoubleDouble) -> DoubleDouble:
        """The quotient q by positive numbers y: two digits, then |x/y − q| = |x − q·y| / y."""
        with np.errstate(all="ignore"):
            first = DoubleDouble.of(self.high / other.high)
            second = (self - other * first).high / other.high
            quotient = DoubleDouble(np.stack([*two_sum(first.high, second), np.zeros_like(second)]))
            left = self - other * quotient
            return quotient._off_by(left, other.high - abs(other.low) - other.error)

    def sqrt(self) -> DoubleDouble:
        """√x of numbers that are not negative: s of two digits, then |√x − s| = |x − s²| / (√x + s); of 0 it is 0,
        with an error that is not known."""
        with np.errstate(all="ignore"):
            first = DoubleDouble.of(np.sqrt(self.high))
            second = np.where(first.high == 0, 0.0, (self - first * first).high / (2 * first.high))
            root = DoubleDouble(np.stack([*two_sum(first.high, second), np.zeros_like(second)]))
            return root._off_by(self - root * root, root.high - abs(root.low))

    def _off_by(self, left: DoubleDouble, divisor: Array) -> DoubleDouble:
        """The same with an error of |left| / divisor, infinite where that is not positive."""
        size = abs(left.high) + abs(left.low) + left.error
        error = np.where(size == 0, 0.0, np.nextafter(size / divisor * WIDER, np.inf))
        self.parts[2] = np.where(divisor > 0, error, np.inf)
        return self

    def __matmul__(self, other: DoubleDouble) -> DoubleDouble:
        """The product of matrices, or of batches (n, 1, r) and (n, r, 1), with float64 at the right."""
        assert other.plain
        if self.parts.ndim == 3:
            return DoubleDouble(_dot(self.parts, other.high, across=False))
        left, right = self.parts[:, :, 0].transpose(0, 2, 1), other.high[:, :, 0].T
        return DoubleDouble(_dot(left, right, across=True).reshape(3, -1, 1, 1))

    @classmethod
    def of_columns(cls, left: Array, right: Array) -> DoubleDouble:
        """The sums, for each column, of the products of the parts (3, r, columns) and float64 (r, columns)."""
        return cls(_dot(left, right, across=True).reshape(3, -1))

    def plus_product(self, left: DoubleDouble, right: DoubleDouble) -> DoubleDouble:
        """self + left @ right, of matrices, with float64 at the right."""
        assert right.plain
        return DoubleDouble(_dot(left.parts, right.high, across=False, to=self.parts))

    def add_product(self, left: DoubleDouble, right: DoubleDouble) -> None:
        """The same in place."""
        if self.parts.flags.c_contiguous:
            assert right.plain
            _dot(left.parts, right.high, across=False, to=self.parts, out=self.parts)
            self.plain = False
        else:
            self[...] = self.plus_product(left, right)

    def sum(self, axis: int) -> DoubleDouble:
        """The sums of the rows of a matrix, for axis 1."""
        assert axis == 1
        return self._total("pairs_total")

    def squares(self) -> DoubleDouble:
        """The sums of the squares of the rows of a matrix."""
        return self._total("pairs_squares")

    def _total(self, name: str) -> DoubleDouble:
        parts = np.ascontiguousarray(self.parts)
        (_, rows, columns), call = parts.shape, FUNCTIONS.get(name)
        if call is None:
            with np.errstate(all="ignore"):
                return DoubleDouble(total_of(parts if name == "pairs_total" else product_of(parts, parts)))
        out = np.empty((3, rows))
        call(address(parts, np.float64, parts.size), out.ctypes.data, rows, columns)
        return DoubleDouble(out)

    def nearest(self, out: Array) -> Array:
        """out = the numbers, rounded to nearest, flat; returns the indices where the error leaves another one possible,
        or there is no number, or 0."""
        parts, call = np.ascontiguousarray(self.parts).reshape(3, -1), FUNCTIONS.get("pairs_nearest")
        if call is None:
            with np.errstate(all="ignore"):
                out[:], above = ends_of(parts, odd=False)
            return np.flatnonzero((out != above) | (parts[0] == 0) | ~np.isfinite(out))
        found, count = np.empty(out.size, np.int32), out.size
        given = address(parts, np.float64, 3 * count), count, address(out, np.float64, count)
        return found[: call(*given, found.ctypes.data)].copy()

    def ends(self, *, odd: bool) -> tuple[Array, Array]:
        """Both ends of the interval that holds each number, rounded to nearest; or to odd, so that rounding them to
        less bits is the rounding of the ends themselves (numerics.rounding.to_odd)."""
        parts, call = np.ascontiguousarray(self.parts), FUNCTIONS.get("pairs_ends")
        if call is None:
            with np.errstate(all="ignore"):
                return ends_of(parts, odd=odd)
        below, above = np.empty((2, *self.shape))
        call(address(parts, np.float64, parts.size), below.size, below.ctypes.data, above.ctypes.data, int(odd))
        return below, above


def _all_of(key: Any) -> tuple[Any, ...]:
    return (slice(None), *key) if isinstance(key, tuple) else (slice(None), key)


def _each(
    name: str, left: DoubleDouble, right: DoubleDouble, into: DoubleDouble | None = None, sign: float = 1.0
) -> DoubleDouble:
    """left + sign·right, or the product: element by element, of shapes that broadcast; in `into`, or in a new array."""
    alike = into is not None or left.shape == right.shape
    shape = left.shape if alike else np.broadcast_shapes(left.shape, right.shape)
    parts = np.ascontiguousarray(left.parts if left.shape == shape else np.broadcast_to(left.parts, (3, *shape)))
    kept = into is not None and into.parts.flags.c_contiguous
    out = into.parts if kept and into is not None else np.empty((3, *shape))
    other, rows, columns, down, across = right.parts, 1, out[0].size, 0, 1
    if right.parts[0].size == 1:
        across = 0
    elif right.shape != shape and right.shape[0] == right.parts[0].size == shape[0]:  # one for each row
        rows, columns, down, across = shape[0], out[0].size // shape[0], 1, 0
    elif right.shape != shape:
        other = np.broadcast_to(other, (3, *shape))
    other = np.ascontiguousarray(other)
    call = FUNCTIONS.get(f"pairs_{name}")
    if call is not None:
        given = address(parts, np.float64, parts.size), address(other, np.float64, other.size), other[0].size
        call(*given, address(out, np.float64, out.size), rows, columns, down, across, sign)
    else:
        signed = other.reshape(3, rows, -1) * np.array([sign, sign, 1.0]).reshape(3, 1, 1)
        with np.errstate(all="ignore"):
            made = (sum_of if name == "sum" else product_of)(parts.reshape(3, rows, columns), signed)
        out[...] = made.reshape(out.shape)
    if into is None:
        return DoubleDouble(out)
    if not kept:
        into.parts[...] = out
    into.plain = False
    return into


def _dot(left: Array, right: Array, *, across: bool, to: Array | None = None, out: Array | None = None) -> Array:
    """left @ right, (3, n, columns), for left (3, n, r) and right (r, columns); across: of each column with its own
    left, (3, r, columns). And `to` more, in `out`, which may be that: both of the shape of the result."""
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    (rank, columns), rows = right.shape, 1 if across else left.shape[1]
    call, to = FUNCTIONS.get("pairs_dot"), None if to is None else np.ascontiguousarray(to)
    out = np.empty((3, rows, columns)) if out is None else out
    if call is None:
        with np.errstate(all="ignore"):
            dot = dot_of(left[:, None] if across else left[..., None], right)
            out[...] = dot if to is None else sum_of(to, dot)
        return out
    begin = None if to is None else address(to, np.float64, out.size)
    given = address(left, np.float64, left.size), address(right, np.float64, right.size), begin
    call(*given, address(out, np.float64, out.size), rows, columns, rank, int(across))
    return out
