"""Arrays of which only the formula is known, until it is asked for: then the kernel computes it in strips that stay in
the cache (kernel/strips.h), where numpy would go through the memory once for each operation.

What is written with numpy for flat arrays of float64, element by element, works on these as it is, and gives the same
bits: operators, `abs`, `numpy.where`, `minimum`, `maximum` and `clip`. Numbers are Python's. `x += y` makes another
array, which then is x. Without the kernel there are none, and what would make them goes on with numpy.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from adaptertool.numerics.compiled import FUNCTIONS, address
from adaptertool.numerics.rounding import STORED, Array
from adaptertool.numerics.strips import Between, Digits, Formula, Written, run

DTYPES = STORED.keys()  # that formulas read and write
_LOGIC = frozenset({"AND", "OR", "NOT"})
_TRUTHS = frozenset({"READ_TRUTH", "LESS", "LESS_EQUAL", "EQUAL"}) | _LOGIC
DIGIT = 16  # bits that `digits` tells apart


class Lazy(Formula, NDArrayOperatorsMixin):
    """A flat array of float64, or of truth values, by its formula."""

    __slots__ = ()

    @classmethod
    def of(cls, array: Array, dtype: str = "F64") -> Lazy:
        """The array, flat and contiguous, as `dtype` stores it: BF16, F16, F32 or F64."""
        return cls(f"READ_{dtype}", (), array.size, address(array, STORED[dtype], array.size), array)

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.pop("out", None)
        if method != "__call__" or options or function not in _FUNCTIONS or not (out is None or out[0] is inputs[0]):
            return NotImplemented
        return _FUNCTIONS[function](*inputs)

    def __array_function__(self, function: Any, _types: Any, inputs: Any, options: Any) -> Any:
        if function is np.where:
            return _made("CHOICE", *inputs, **options)
        if function is np.clip:
            array, least, most = inputs
            return np.minimum(np.maximum(array, least, **options), most)
        return NotImplemented

    @property
    def is_truth(self) -> bool:
        return self.name in _TRUTHS

    def __bool__(self) -> bool:
        """Raises TypeError."""
        raise TypeError("the numbers of an array are not known yet")

    def copy(self) -> Lazy:
        """The array itself, which never changes."""
        return self

    def between(self, bound: float, equal: int, skip: float = math.inf, skip_equal: int = 0) -> Lazy:
        """Times 1 where the magnitude is over `bound`, or equal to it for the first `equal` times; but times 0 where it
        is so by `skip` and `skip_equal`, and everywhere else."""
        by = Between(bound, skip, equal, skip_equal)
        return Lazy("BETWEEN", (self,), self.size, ctypes.addressof(by), by)

    def digits(self, prefix: int, width: int) -> tuple[Array, int]:
        """How many of the bit patterns of magnitudes that are `prefix`, but for the lowest `width` + 16 bits, have d as
        the upper 16 of these, uint64 (65536,); and all others of these bits that one of them has."""
        found = np.zeros(1 << DIGIT, np.uint64)
        by = Digits(prefix, width, found.ctypes.data, 0, 0)
        run([Lazy("COUNT", (self,), self.size, ctypes.addressof(by), by)])
        return found, by.rest

    def collected(self, prefix: int, width: int) -> Array:
        """The bit patterns of magnitudes that are `prefix`, but for the lowest `width` bits, uint64, in order."""
        found = np.empty(self.size + 1, np.uint64)  # each is written, and the next takes its place if it is not one
        by = Digits(prefix, width, found.ctypes.data, 0, 0)
        run([Lazy("COLLECT", (self,), self.size, ctypes.addressof(by), by)])
        return found[: by.count].copy()

    def stored(self, out: Array, dtype: str, every: int) -> tuple[Array, Array]:
        """out = the numbers rounded once, as `dtype` stores them, (size,) and contiguous; returns every n-th of them as
        it is, from the first on, and the largest magnitude of `out`, (1,), which is not finite if one is not."""
        sample = np.empty(-(-self.size // every))
        by = Written(address(out, STORED[dtype], self.size), sample.ctypes.data, every, 0)
        run([Lazy(f"WRITE_{dtype}", (self,), self.size, ctypes.addressof(by), by)])
        return sample, np.array([by.largest], np.uint64).astype(f"u{out.itemsize}").view(out.dtype)


def there() -> bool:
    """Whether there are such arrays: the kernel makes them."""
    return "strips" in FUNCTIONS


def sums(arrays: Iterable[Any]) -> list[float]:
    """The sum of each array of one length, as numpy adds them up."""
    arrays = list(arrays)
    if not there():
        return [float(one.sum()) for one in arrays]
    return run([Lazy("SUM", (_wrapped(one),), one.size) for one in arrays])


def _wrapped(value: Any) -> Any:
    """A Lazy, or a number. Raises TypeError for what is none."""
    if isinstance(value, Lazy | float | int):
        return value
    array = np.asarray(value)
    if array.ndim == 0:
        return float(array)
    if array.dtype == bool and array.ndim == 1:
        array = np.ascontiguousarray(array)
        return Lazy("READ_TRUTH", (), array.size, array.ctypes.data, array)
    if array.dtype == np.float64 and array.ndim == 1:
        return Lazy.of(np.ascontiguousarray(array))
    raise TypeError(f"no flat array of float64 or truth values: {array.dtype}, {array.shape}")


def _made(name: str, *inputs: Any) -> Any:
    """The step of that name, of these; NotImplemented for logic of what are no truth values. Raises TypeError."""
    wrapped = [_wrapped(one) for one in inputs]
    if name in _LOGIC and not all(isinstance(one, Lazy) and one.is_truth for one in wrapped):
        return NotImplemented
    sizes = {one.size for one in wrapped if isinstance(one, Lazy)}
    if len(sizes) != 1:
        raise TypeError(f"arrays of different lengths: {sorted(sizes)}")
    if name in ("MULTIPLY", "DIVIDE") and not isinstance(wrapped[-1], Lazy) and wrapped[-1] == 1:
        return wrapped[0]
    size = sizes.pop()
    if name == "CHOICE":
        wrapped = [one if isinstance(one, Lazy) else Lazy("FILL", (one,), size) for one in wrapped]
    return Lazy(name, wrapped, size)


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.add: lambda a, b: _made("ADD", a, b),
    np.subtract: lambda a, b: _made("SUBTRACT", a, b),
    np.multiply: lambda a, b: _made("MULTIPLY", a, b),
    np.divide: lambda a, b: _made("DIVIDE", a, b),
    np.less: lambda a, b: _made("LESS", a, b),
    np.less_equal: lambda a, b: _made("LESS_EQUAL", a, b),
    np.greater: lambda a, b: _made("LESS", b, a),
    np.greater_equal: lambda a, b: _made("LESS_EQUAL", b, a),
    np.equal: lambda a, b: _made("EQUAL", a, b),
    np.bitwise_and: lambda a, b: _made("AND", a, b),
    np.bitwise_or: lambda a, b: _made("OR", a, b),
    np.invert: lambda a: _made("NOT", a),
    np.absolute: lambda a: _made("MAGNITUDE", a),
    np.minimum: lambda a, b: _made("SMALLER", a, b),
    np.maximum: lambda a, b: _made("LARGER", a, b),
}
