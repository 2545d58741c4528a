"""kernel.c, compiled when the package was installed; None where there was no compiler, or ADAPTERTOOL_KERNEL is "off".

Checkpoints in exact precision do not depend on it: only the time does.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_size_t
_REAL = {"f4": ctypes.c_float, "f8": ctypes.c_double}
_ROUND = {
    "round_f4_BF16", "round_f4_F16", "round_f8_BF16", "round_f8_F16", "round_f8_F32", "twice_f8_BF16", "twice_f8_F16",
}  # fmt: skip


def _load() -> ctypes.CDLL | None:
    if os.environ.get("ADAPTERTOOL_KERNEL") == "off":
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernel{suffix}")
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError:  # of another system
                return None
    return None


def _functions(library: ctypes.CDLL) -> Mapping[str, Any]:
    """Each function with its types: ctypes would pass anything."""
    library.standard_arithmetic.restype = library.has_products.restype = ctypes.c_int
    found: dict[str, Any] = {"standard_arithmetic": library.standard_arithmetic}
    for wide, real in _REAL.items():
        for stored in ("BF16", "F16", "F32"):
            widen = found[f"widen_{stored}_{wide}"] = library[f"widen_{stored}_{wide}"]
            widen.argtypes, widen.restype = [_POINTER, _POINTER, _COUNT], ctypes.c_uint32
        for name in (name for name in _ROUND if f"_{wide}_" in name):
            rounds = found[name] = library[name]
            rounds.argtypes, rounds.restype = [_POINTER, real, real, _POINTER, _COUNT, _POINTER], _COUNT
        if library.has_products():
            for name, pointers in ((f"add_product_{wide}", 3), (f"squares_{wide}", 4)):
                found[name] = library[name]
                found[name].argtypes, found[name].restype = [*[_POINTER] * pointers, *[_COUNT] * 4], None
    return found


_library = _load()
FUNCTIONS: Mapping[str, Any] = _functions(_library) if _library is not None else {}


def address(array: npt.NDArray[Any], dtype: npt.DTypeLike, size: int) -> int:
    """The address of the first of `size` contiguous elements of an array of that dtype.

    Raises ValueError for any other array: C would not notice.
    """
    if array.dtype != dtype or array.size != size or not array.flags.c_contiguous:
        raise ValueError(f"not {size} contiguous elements of {np.dtype(dtype)}: {array.dtype}, {array.shape}")
    pointer: int = array.ctypes.data
    return pointer
