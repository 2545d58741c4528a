"""The functions of kernel/, compiled when the package was installed; none where there was no compiler.

The library holds each function once for every level of instructions (kernel/level.h). The highest that this processor
has is taken, or a lower one that ADAPTERTOOL_KERNEL names; "off" takes none, and what calls these has a twin in numpy.
A library that was made of other sources than lie beside it is not used. Checkpoints in exact precision do not depend on
it: only the time does.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

LEVELS = ("baseline", "v3", "v4")  # in the order of kernel/levels.c
_FILE = Path(__file__).with_name("_kernel.so")
_STORED = ("BF16", "F16", "F32", "F64")
_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_size_t
_REAL = {"f4": ctypes.c_float, "f8": ctypes.c_double}
_STATISTICS: Mapping[str, tuple[Any, list[Any]]] = {
    **{f"compare_{dtype}": (None, [_POINTER, _POINTER, _COUNT, _POINTER, _POINTER]) for dtype in _STORED},
    **{f"energy_{dtype}": (ctypes.c_double, [_POINTER, _COUNT]) for dtype in _STORED},
    **{f"differing_{bits}": (_COUNT, [_POINTER, _POINTER, _COUNT]) for bits in (16, 32, 64)},
    "drifted": (None, [*[_POINTER] * 3, _COUNT, ctypes.c_double, _POINTER, _POINTER]),
    "column_sums": (None, [_POINTER, _POINTER, _COUNT, _COUNT, *[_POINTER] * 3]),
    "limits": (None, [*[_POINTER] * 4, _COUNT, *[_POINTER] * 4]),
    "outside": (None, [*[_POINTER] * 4, _COUNT, *[_POINTER] * 3]),
}


def _signatures() -> Mapping[str, tuple[Any, list[Any]]]:
    """Each function with the type of its result and those of its arguments: ctypes would pass anything."""
    found: dict[str, tuple[Any, list[Any]]] = {**_STATISTICS}
    for wide, real in _REAL.items():
        for stored in _STORED[:3]:
            found[f"widen_{stored}_{wide}"] = ctypes.c_uint32, [_POINTER, _POINTER, _COUNT]
        for name in ("round_f4_BF16", "round_f4_F16", "round_f8_BF16", "round_f8_F16", "round_f8_F32",
                     "round_f8_F64", "twice_f8_BF16", "twice_f8_F16"):  # fmt: skip
            if f"_{wide}_" in name:
                found[name] = _COUNT, [_POINTER, real, real, _POINTER, _COUNT, _POINTER]
        found[f"add_product_{wide}"] = None, [*[_POINTER] * 3, *[_COUNT] * 4]
        found[f"squares_{wide}"] = None, [*[_POINTER] * 4, *[_COUNT] * 4]
    for name in ("lora", "dora", "blend", "change"):
        for stored in ("BF16", "F16", "F32"):
            found[f"{name}_{stored}"] = ctypes.c_int, [_POINTER]
    found["blake3_groups"] = None, [_POINTER, _COUNT, ctypes.c_uint64, _POINTER]
    found["blake3_root"] = None, [_POINTER, _COUNT]
    found["subtract"] = ctypes.c_uint32, [*[_POINTER] * 5, _COUNT]
    found["there_and_back"] = None, [*[_POINTER] * 4, *[_COUNT] * 3]
    # kernel/double_double.h
    for name in ("pairs_sum", "pairs_product"):
        found[name] = None, [_POINTER, _POINTER, _COUNT, _POINTER, *[_COUNT] * 4, ctypes.c_double]
    found["pairs_dot"] = None, [*[_POINTER] * 4, *[_COUNT] * 4]
    found["pairs_blocks"] = ctypes.c_int, [*[_POINTER] * 3, *[_COUNT] * 2]
    found["pairs_total"] = found["pairs_squares"] = None, [*[_POINTER] * 2, *[_COUNT] * 2]
    found["pairs_nearest"] = _COUNT, [_POINTER, _COUNT, *[_POINTER] * 2]
    found["pairs_ends"] = None, [_POINTER, _COUNT, _POINTER, _POINTER, _COUNT]
    found["blockwise"] = None, [_POINTER, _COUNT, _POINTER, _POINTER, *[_COUNT] * 3]
    found["strips"] = None, [_POINTER]
    # kernel/small.h
    for stored in ("BF16", "F16", "F32"):
        found[f"small_{stored}"] = None, [_POINTER]
    for stored in _STORED:
        scales = [_POINTER, _POINTER, _COUNT, *[_POINTER] * 3, ctypes.c_double]
        found[f"decode_{stored}"] = None, [*scales, _POINTER, *[_COUNT] * 3]
    found["zero_rows"] = ctypes.c_int, [_POINTER, _POINTER, _COUNT, _POINTER]
    return found


def _load() -> ctypes.CDLL | None:
    if os.environ.get("ADAPTERTOOL_KERNEL") == "off" or not _FILE.exists():
        return None
    try:
        library = ctypes.CDLL(str(_FILE))
        library.sources.restype = ctypes.c_uint
    except (OSError, AttributeError):  # of another system, or old
        return None
    text = b"".join(path.read_bytes() for path in sorted(_FILE.with_name("kernel").glob("*.[ch]")))
    if library.sources() != zlib.crc32(text):  # it may take its arguments otherwise
        return None
    library.highest_level.restype = library.standard_arithmetic.restype = ctypes.c_int
    return library


def levels() -> tuple[str, ...]:
    """The levels that this processor has and the library too, the lowest first; none where there is no library."""
    if _library is None:
        return ()
    return tuple(
        level for level in LEVELS[: _library.highest_level() + 1] if hasattr(_library, f"widen_F32_f4_{level}")
    )


def functions(level: str | None) -> Mapping[str, Any]:
    """The functions of a level, by name; none for None. A level that `levels` does not name would end the process."""
    if _library is None or level is None:
        return {}
    found: dict[str, Any] = {"standard_arithmetic": _library.standard_arithmetic}
    for name, (result, arguments) in _signatures().items():
        call = found[name] = _library[f"{name}_{level}"]
        call.restype, call.argtypes = result, arguments
    return found


def _chosen() -> str | None:
    found, wanted = levels(), os.environ.get("ADAPTERTOOL_KERNEL")
    return wanted if wanted in found else found[-1] if found else None


_library = _load()
FUNCTIONS = functions(_chosen())


def address(array: npt.NDArray[Any], dtype: npt.DTypeLike, size: int) -> int:
    """The address of the first of `size` contiguous elements of an array of that dtype.

    Raises ValueError for any other array: C would not notice.
    """
    if array.dtype != dtype or array.size != size or not array.flags.c_contiguous:
        raise ValueError(f"not {size} contiguous elements of {np.dtype(dtype)}: {array.dtype}, {array.shape}")
    pointer: int = array.__array_interface__["data"][0]  # in half the time of `ctypes.data`
    return pointer
